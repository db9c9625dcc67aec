"""LayerNorm, and BatchNorm over valid frames; both are independent of padding, in float32."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bljust_jax.common.shapes import Frames, Mask
from bljust_jax.models import remat

EPSILON = 1e-5
MOMENTUM = 0.1

Stats = dict[str, Any]


def at_least_float32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x in float32; float64 stays."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def layer_norm(
    x: Float[Array, "*n"],
    scale: Float[Array, " d"],
    bias: Float[Array, " d"],
    axis: int = -1,
    dtype: Any = None,
) -> Float[Array, "*n"]:
    """(x - mean) / sqrt(var + 1e-5) * scale + bias over one axis of x, D entries long.

    The variance is computed from centred entries, since means of trained features are far from 0.
    Sums are float32 or wider; the result has `dtype`, by default that of the sums. The backward
    pass keeps x in its own dtype and two numbers per row. Source: Ba, Kiros and Hinton, 2016.
    """
    dtype = jnp.dtype(dtype or jnp.promote_types(x.dtype, jnp.float32))
    return _layer_norm(x, scale, bias, axis % x.ndim, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _layer_norm(x: Array, scale: Array, bias: Array, axis: int, dtype: Any) -> Array:
    return _layer_norm_forward(x, scale, bias, axis, dtype)[0]


def _layer_norm_forward(x: Array, scale: Array, bias: Array, axis: int, dtype: Any):
    wide = at_least_float32(x)
    mean = jnp.mean(wide, axis, keepdims=True)
    centred = wide - mean
    rstd = lax.rsqrt(jnp.mean(jnp.square(centred), axis, keepdims=True) + EPSILON)
    y = centred * rstd * _along(scale, axis, x.ndim) + _along(bias, axis, x.ndim)
    kept = remat.keep(mean, "norm_mean"), remat.keep(rstd, "norm_rstd")
    return y.astype(dtype), (x, scale, bias, *kept)


def _layer_norm_backward(axis: int, dtype: Any, residuals: tuple[Array, ...], grad: Array):
    """With h = (x - mean) rstd and d = grad scale: rstd (d - mean(d) - h mean(d h))."""
    del dtype
    x, scale, bias, mean, rstd = residuals
    rows = tuple(n for n in range(x.ndim) if n != axis)
    grad, normed = at_least_float32(grad), (at_least_float32(x) - mean) * rstd
    slope = grad * _along(scale, axis, x.ndim)
    mean_of = partial(jnp.mean, axis=axis, keepdims=True)
    # mean(h) is 0 but for rounding, which biases before a norm would receive as their gradient
    slope -= mean_of(slope) + (normed - mean_of(normed)) * mean_of(slope * normed)
    of_scale = jnp.sum(grad * normed, rows).astype(scale.dtype)
    return (slope * rstd).astype(x.dtype), of_scale, jnp.sum(grad, rows).astype(bias.dtype)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _along(vector: Array, axis: int, ndim: int) -> Array:
    return jnp.expand_dims(vector, [n for n in range(ndim) if n != axis])


class LayerNorm(nn.Module):
    """`layer_norm` over `axis` with the parameters "scale" and "bias"."""

    dtype: Any = None
    axis: int = -1

    @nn.compact
    def __call__(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[self.axis],))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[self.axis],))
        return layer_norm(x, scale, bias, self.axis, self.dtype)


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + 1e-5) * scale + bias per channel, with moments over valid frames.

    `batch=True` uses the moments of the batch and moves the stored ones a tenth of the way towards
    them (with unbiased variance, as torch does); otherwise the stored moments are used, unchanged.
    A batch without valid frames does not change them. Sums run over the whole array: under `jit`
    with a sharded batch they are global. Source: Ioffe and Szegedy, ICML 2015.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Frames, valid: Mask, stats: Stats, batch: bool = False
    ) -> tuple[Frames, Stats]:
        """`stats` is {"mean" `[D]`, "var" `[D]`}; valid: True = real frame."""
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        x = at_least_float32(x)
        mean, var = stats["mean"], stats["var"]
        if batch:
            mean, var, stats = _batch_moments(x, valid, stats)
        y = (x - mean[None, None, :]) * (lax.rsqrt(var + EPSILON) * scale)[None, None, :]
        return (y + bias[None, None, :]).astype(self.dtype), stats


def _batch_moments(x: Array, valid: Array, stats: Stats) -> tuple[Array, Array, Stats]:
    """(mean, biased variance, updated stats) of the valid frames, in two passes for precision."""
    valid = valid[..., None]
    count = jnp.sum(valid, dtype=x.dtype)
    mean = jnp.sum(jnp.where(valid, x, 0.0), (0, 1)) / jnp.maximum(count, 1)
    squares = jnp.sum(jnp.square(jnp.where(valid, x - mean[None, None, :], 0.0)), (0, 1))
    seen = {"mean": mean, "var": squares / jnp.maximum(count - 1, 1)}
    rate = jnp.where(count > 0, MOMENTUM, 0.0)
    moved = {
        name: stats[name]
        + (rate * (lax.stop_gradient(seen[name]) - stats[name])).astype(stats[name].dtype)
        for name in seen
    }
    return mean, squares / jnp.maximum(count, 1), moved
