"""Depthwise convolution over time as a sum of shifted products, with its own VJP."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bljust_jax.common.shapes import Frames
from bljust_jax.models.norms import at_least_float32

BLOCK = 32  # frames per block of the kernel's gradient, at least


def depthwise_conv(x: Frames, kernel: Float[Array, "k d"], causal: bool = False) -> Frames:
    """y[b, t, d] = sum_j kernel[j, d] x[b, t + j - c, d], c = (k - 1) / 2, x = 0 outside.

    A sum of shifted products, because a grouped convolution inside `lax.scan` is tens of times
    slower on XLA:CPU. Sums are float32, the result has the dtype of x.

    Args:
      kernel: an odd number of taps `[K, D]`.
      causal: omit the taps j > c, which read future frames; their gradient is 0.
    """
    return _depthwise_conv(x, kernel, (kernel.shape[0] - 1) // 2 if causal else kernel.shape[0] - 1)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise_conv(x: Array, kernel: Array, last: int) -> Array:
    """Taps 0 ... last."""
    taps = enumerate(_shifted(x, kernel.shape[0])[: last + 1])
    return sum(tap * kernel[j][None, None, :] for j, tap in taps).astype(x.dtype)


def _shifted(x: Array, taps: int) -> list[Array]:
    """x[b, t + j - c] for each tap j."""
    frames, side = x.shape[1], (taps - 1) // 2
    x = jnp.pad(x, ((0, 0), (side, side), (0, 0)))
    return [x[:, j : j + frames] for j in range(taps)]


def _forward(x: Array, kernel: Array, last: int):
    return _depthwise_conv(x, kernel, last), (x, kernel)


def _backward(last: int, residuals: tuple[Array, Array], grad: Array):
    x, kernel = residuals
    taps = kernel.shape[0]
    back = _shifted(grad, taps)[::-1]
    grad_x = sum(back[j] * kernel[j][None, None, :] for j in range(last + 1))
    # else compilers compute the sum once per reader
    grad_x = lax.optimization_barrier(grad_x.astype(x.dtype))
    grad_kernel = lax.platform_dependent(
        x, grad, cpu=partial(sum_by_tap, taps), default=partial(sum_by_block, taps)
    )
    used = jnp.arange(taps)[:, None] <= last
    return grad_x, jnp.where(used, grad_kernel, 0.0).astype(kernel.dtype)


_depthwise_conv.defvjp(_forward, _backward)


def sum_by_tap(taps: int, x: Frames, grad: Frames) -> Float[Array, "k d"]:
    """The kernel's gradient, sum over b and t of grad[b, t] x[b, t + j - c], one sum per tap: each
    reads both arrays, which caches of a CPU hold. Sums are float32 or wider."""
    grad = at_least_float32(grad)
    return jnp.stack([jnp.sum(tap * grad, axis=(0, 1)) for tap in _shifted(x, taps)])


def sum_by_block(taps: int, x: Frames, grad: Frames) -> Float[Array, "k d"]:
    """`sum_by_tap` in one product, which reads both arrays once: of blocks of N frames of `grad`
    with windows of N + K - 1 frames of x, summed along diagonals."""
    batch, frames, dim = x.shape
    side = (taps - 1) // 2
    size = max(BLOCK, -(-(taps - 1) // 8) * 8)
    count, width = -(-frames // size), size + taps - 1
    rest = count * size - frames
    grad = jnp.pad(grad, ((0, 0), (0, rest), (0, 0))).reshape(batch, count, size, dim)
    x = jnp.pad(x, ((0, 0), (side, rest + size - side), (0, 0)))
    x = x.reshape(batch, count + 1, size, dim)
    windows = jnp.concatenate([x[:, :-1], x[:, 1:, : taps - 1]], axis=2)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    pairs = jnp.einsum("bnwd,bncd->dcw", windows, grad, preferred_element_type=wide)
    # in rows longer by one, column j of row c is column c + j
    flat = jnp.pad(pairs.reshape(dim, size * width), ((0, 0), (0, size)))
    return flat.reshape(dim, size, width + 1)[:, :, :taps].sum(axis=1).T
