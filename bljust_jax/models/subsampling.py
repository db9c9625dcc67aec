"""Convolutional subsampling by 4 or 8: 3x3 convolutions of stride 2 and a linear map.

Strided convolutions are `lax.conv`, NHWC. Their backward pass on CPUs is matrix products: that of
`lax.conv` is tens of times slower inside `lax.scan` (gradient accumulation), and not faster
outside. A depthwise convolution is a sum of nine products; on accelerators its kernel gradient is
that of `lax.conv`, which reads the input once.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bljust_jax.common.shapes import Features, Grid, Lengths, Mask
from bljust_jax.models.layers import KERNEL, Dense
from bljust_jax.models.remat import keep
from bljust_jax.ops.log_mel import Counts, valid_frames

FACTORS = {"conv2d": 4, "parakeet": 8}  # default factor of each kind


def output_lengths(lengths: Counts, factor: int = 4) -> Counts:
    """Valid output frames: halved and rounded up per stage, ceil(length / factor) in total."""
    return (lengths + factor - 1) // factor


def strided_taps(x: Grid) -> list[Float[Array, "b u g c"]]:
    """The nine inputs of a 3x3 convolution of stride 2 and padding 1, row-major over the kernel.

    Tap (i, j) at output (u, g) is x[2u + i - 1, 2g + j - 1], zero outside; U = ceil(T / 2),
    G = ceil(F / 2). Computed from even and odd phases, whose transposes are pads.
    """
    batch, frames, bands, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, frames % 2), (0, bands % 2), (0, 0)))
    x = x.reshape(batch, (frames + 1) // 2, 2, (bands + 1) // 2, 2, channels)

    def phase(x: Array, tap: int, axis: int) -> Array:
        samples = lax.index_in_dim(x, 0 if tap == 1 else 1, axis + 1, keepdims=False)
        return _later(samples, axis) if tap == 0 else samples

    return [phase(phase(x, i, 1), j, 2) for i in range(3) for j in range(3)]


def _later(x: Array, axis: int) -> Array:
    """y[n] = x[n - 1] along `axis`, 0 at its start."""
    pad = [(int(a == axis), 0) for a in range(x.ndim)]
    return lax.slice_in_dim(jnp.pad(x, pad), 0, x.shape[axis], axis=axis)


def _earlier(x: Array, axis: int) -> Array:
    """y[n] = x[n + 1] along `axis`, 0 at its end."""
    pad = [(0, int(a == axis)) for a in range(x.ndim)]
    return lax.slice_in_dim(jnp.pad(x, pad), 1, x.shape[axis] + 1, axis=axis)


def _convolve(x: Grid, kernel: Float[Array, "3 3 i k"], groups: int = 1) -> Array:
    """3x3 convolution of stride 2 and padding 1 by XLA's own."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (2, 2),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@jax.custom_vjp
def strided_conv(x: Grid, kernel: Float[Array, "3 3 c k"]) -> Float[Array, "b u g k"]:
    """3x3 convolution over (time, band), stride 2, padding 1.

    Computed by `lax.conv`, except for the backward pass on CPUs. That pass keeps x and the kernel.
    """
    return _convolve(x, kernel)


def _conv_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel), (x, kernel)


def _conv_backward(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    def transposed(x, kernel, grad):
        return jax.vjp(_convolve, x, kernel)[1](grad)

    def products(x, kernel, grad):
        return _gradient_of_input(x, kernel, grad), _gradient_of_kernel(x, kernel, grad)

    return lax.platform_dependent(*residuals, grad, cpu=products, default=transposed)


strided_conv.defvjp(_conv_forward, _conv_backward)


def _gradient_of_input(x: Grid, kernel: Array, grad: Array) -> Grid:
    """One product for each of the four phases (even or odd frame, even or odd band) of the input.

    An even position is tap 1 of one output; an odd one is tap 2 of the output before it and tap 0
    of the one after it.
    """
    after = {0: grad, 1: _earlier(grad, 1), 2: _earlier(grad, 2)}
    after[3] = _earlier(after[1], 2)
    taps = {0: [(1, 0)], 1: [(2, 0), (0, 1)]}  # of a phase: (tap, whether of the output after it)

    def phase(row: int, band: int) -> Array:
        pairs = [(i, j, u + 2 * v) for i, u in taps[row] for j, v in taps[band]]
        weights = jnp.concatenate([kernel[i, j].T for i, j, _ in pairs])
        return jnp.concatenate([after[n] for *_, n in pairs], axis=-1) @ weights

    rows = [jnp.stack([phase(row, 0), phase(row, 1)], axis=3) for row in (0, 1)]
    every = jnp.stack(rows, axis=2)  # [B, U, 2, G, 2, C]
    batch, frames, _, bands, _, channels = every.shape
    return every.reshape(batch, 2 * frames, 2 * bands, channels)[:, : x.shape[1], : x.shape[2]]


def _gradient_of_kernel(x: Grid, kernel: Array, grad: Array) -> Array:
    """One product per tap, or one of all taps for a single channel."""
    taps, grad = strided_taps(x), grad.reshape(-1, grad.shape[-1])
    if x.shape[-1] == 1:
        taps = [jnp.concatenate(taps, axis=-1)]
    products = [tap.reshape(-1, tap.shape[-1]).T @ grad for tap in taps]
    return jnp.stack(products).reshape(kernel.shape)


@jax.custom_vjp
def depthwise_strided(x: Grid, kernel: Float[Array, "3 3 c"]) -> Float[Array, "b u g c"]:
    """Depthwise 3x3 convolution, stride 2, padding 1.

    Products and sums use the wider dtype of kernel and x; the result has the dtype of x.
    """
    weights = kernel.reshape(9, 1, 1, 1, -1)
    return sum(w * tap for w, tap in zip(weights, strided_taps(x), strict=True)).astype(x.dtype)


def _depthwise_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_strided(x, kernel), (x, kernel)


def _depthwise_backward(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    wide = jnp.promote_types(x.dtype, kernel.dtype)

    def of_x(x):
        weights = kernel.reshape(9, 1, 1, 1, -1)
        return sum(w * tap for w, tap in zip(weights, strided_taps(x), strict=True))

    def by_taps(x, grad):
        products = [jnp.sum(tap * grad.astype(wide), (0, 1, 2)) for tap in strided_taps(x)]
        return jnp.stack(products).reshape(kernel.shape)

    def by_conv(x, grad):
        shape = jax.ShapeDtypeStruct((3, 3, 1, x.shape[-1]), x.dtype)
        transposed = jax.linear_transpose(lambda k: _convolve(x, k, x.shape[-1]), shape)
        return transposed(grad)[0].reshape(kernel.shape).astype(wide)

    of_kernel = lax.platform_dependent(x, grad, cpu=by_taps, default=by_conv)
    (of_input,) = jax.linear_transpose(of_x, jax.ShapeDtypeStruct(x.shape, wide))(grad.astype(wide))
    return of_input.astype(x.dtype), of_kernel.astype(kernel.dtype)


depthwise_strided.defvjp(_depthwise_forward, _depthwise_backward)


@jax.custom_vjp
def rectify(x: Grid, valid: Mask) -> Grid:
    """max(x, 0) in valid frames and 0 elsewhere, NaN included; `valid` `[B, U]`. The backward pass
    keeps the result alone."""
    return jnp.where(valid[:, :, None, None], jnp.maximum(x, 0), 0)


def _rectify_forward(x: Array, valid: Array) -> tuple[Array, Array]:
    y = rectify(x, valid)
    return y, y


def _rectify_backward(y: Array, grad: Array) -> tuple[Array, None]:
    return jnp.where(y > 0, grad, 0), None


rectify.defvjp(_rectify_forward, _rectify_backward)


class StridedConv(nn.Module):
    """3x3 convolution over (time, band), stride 2, padding 1; kernel `[3, 3, C_in, C_out]`."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Grid) -> Float[Array, "b u g k"]:
        kernel = self.param("kernel", KERNEL, (3, 3, x.shape[-1], self.channels))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,))
        y = keep(strided_conv(x.astype(self.dtype), kernel.astype(self.dtype)), "convolution")
        return y + bias.astype(self.dtype)[None, None, None, :]


class StridedDepthwiseConv(nn.Module):
    """`depthwise_strided` with a bias; kernel `[3, 3, C]`."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Grid) -> Float[Array, "b u g c"]:
        kernel = self.param("kernel", nn.initializers.normal(1 / 3), (3, 3, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        y = depthwise_strided(x.astype(self.dtype), kernel)
        return y + bias.astype(self.dtype)[None, None, None, :]


class Subsampling(nn.Module):
    """Features `[B, T, M]` to latents `[B, ceil(T / factor), D]`: log2(factor) stages, then linear.

    A stage halves time and bands and ends in ReLU. It is a full 3x3 convolution or, with
    `separable` and after the first stage, a depthwise convolution and a pointwise map. Padded
    frames are set to 0 before each stage, NaN included, and in the output. Output t depends on the
    frames factor t +- (factor - 1): a causal encoder looks ahead by 30 ms at factor 4, by 70 ms at
    8, plus one window. Sources: full stages,
    factor 4: Gulati et al., Conformer, Interspeech 2020, figure 1; separable stages, factor 8:
    Rekesh et al., Fast Conformer, ASRU 2023, section 3.1 (NVIDIA's Parakeet).
    """

    channels: int
    dim: int
    factor: int = 4
    separable: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Features, lengths: Lengths
    ) -> tuple[Float[Array, "b u d"], Lengths]:
        valid = valid_frames(features.shape[1], lengths)
        x = jnp.where(valid[..., None], features, 0.0)[..., None]
        for stage in range(1, int(math.log2(self.factor)) + 1):
            x = self._stage(x, stage)
            lengths = (lengths + 1) // 2
            valid = valid_frames(x.shape[1], lengths)
            x = rectify(x, valid)
        x = x.reshape(*x.shape[:2], -1)
        # Frames that SpecAugment masks are this bias alone; with a bias of exactly 0 the first
        # LayerNorm would multiply their gradient by a thousand.
        bias = nn.initializers.normal(0.1)
        x = Dense(self.dim, dtype=self.dtype, bias_init=bias, name="linear")(x)
        return jnp.where(valid[..., None], x, 0.0), lengths

    def _stage(self, x: Array, stage: int) -> Array:
        if stage == 1 or not self.separable:
            return StridedConv(self.channels, self.dtype, name=f"conv{stage}")(x)
        x = StridedDepthwiseConv(self.dtype, name=f"depthwise{stage}")(x)
        return Dense(self.channels, dtype=self.dtype, name=f"pointwise{stage}")(x)


def subsampling_flops(
    frames: int, bands: int, channels: int, dim: int, factor: int, separable: bool
) -> tuple[int, int]:
    """(floating-point operations of one forward pass of `Subsampling`, its output frames).

    Stage n has t_n f_n outputs per channel, half of the previous rounded up: 2 t f 9 C for the
    first, 2 t f 9 C^2 for a full stage, 2 t f (9 C + C^2) for a separable one; then 2 t f C d.
    """
    total, inputs = 0, 1
    for _ in range(int(math.log2(factor))):
        frames, bands = (frames + 1) // 2, (bands + 1) // 2
        kernel = 9 + channels if separable and inputs > 1 else 9 * inputs
        total += 2 * frames * bands * kernel * channels
        inputs = channels
    return total + 2 * frames * bands * channels * dim, frames
