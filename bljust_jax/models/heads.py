"""Linear heads on an encoder, single or stacked: parameters and application."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bljust_jax.common.shapes import Frames, Logits, Rng


def dtype_of(config: Any) -> str:
    """`config.model.dtype`, float32 for an encoder without that field."""
    return config.model.get("dtype", "float32")


def init(rng: Rng, dim: int, out: int, *, steps: int | None = None) -> dict[str, Array]:
    """{"kernel": `[dim, out]`, "bias": `[out]`}; with `steps`, one map per step on a leading axis.

    Kernels are normal with variance 1 / dim, biases 0, float32.
    """
    lead = () if steps is None else (steps,)
    kernel = jax.random.normal(rng, (*lead, dim, out), jnp.float32) * dim**-0.5
    return {"kernel": kernel, "bias": jnp.zeros((*lead, out), jnp.float32)}


def apply(
    params: dict[str, Array], x: Frames, dtype: Any = jnp.float32
) -> Logits | Float[Array, "b t steps k"]:
    """x @ kernel + bias: `[B, T, K]`, or `[B, T, steps, K]` for a stack of maps.

    dtype: of the factors of the products, of the backward pass too. float32 takes the kernel's
        own; with bfloat16 sums are float32, and so is the result.
    """
    kernel, bias = params["kernel"], params["bias"]
    if jnp.dtype(dtype) == jnp.bfloat16:
        wide = kernel if kernel.ndim == 2 else jnp.moveaxis(kernel, 0, 1)
        y = _product(x, wide.reshape(wide.shape[0], -1), dtype)
        return y.reshape(*x.shape[:-1], *bias.shape) + bias[None, None]
    x = x.astype(kernel.dtype)
    if kernel.ndim == 2:
        return x @ kernel + bias[None, None, :]
    return jnp.einsum("btd,sdk->btsk", x, kernel) + bias[None, None, :, :]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Frames, kernel: Float[Array, "d k"], dtype: Any) -> Logits:
    """x @ kernel with factors of `dtype` and float32 sums."""
    return _dot(x.astype(dtype), kernel.astype(dtype), ((2,), (0,)))


def _dot(a: Array, b: Array, axes: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    return jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32)


def _product_forward(x: Array, kernel: Array, dtype: Any) -> tuple[Array, tuple[Any, ...]]:
    return _product(x, kernel, dtype), (x.astype(dtype), kernel, jnp.zeros((), x.dtype))


def _product_backward(dtype: Any, residuals: tuple[Any, ...], grad: Array) -> tuple[Array, Array]:
    x, kernel, like = residuals
    grad = grad.astype(dtype)
    of_x = _dot(grad, kernel.astype(dtype), ((2,), (1,)))
    of_kernel = _dot(x, grad, ((0, 1), (0, 1)))
    return of_x.astype(like.dtype), of_kernel.astype(kernel.dtype)


_product.defvjp(_product_forward, _product_backward)
