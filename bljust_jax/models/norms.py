"""LayerNorm, and BatchNorm over valid frames; both are independent of padding, in float32."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bljust_jax.common.shapes import Frames, Mask

EPSILON = 1e-5
MOMENTUM = 0.1

LayerNorm = partial(nn.LayerNorm, epsilon=EPSILON)

Stats = dict[str, Any]


def at_least_float32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x in float32; float64 stays."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


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
