"""Convolutional subsampling by 4: two 3x3 convolutions of stride 2 and a linear map.

A strided convolution is one product of its nine strided taps with the kernel. `lax.conv` is faster
only outside a loop: inside `lax.scan` (gradient accumulation) its backward pass on XLA:CPU is tens
of times slower.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from bljust_jax.ops.features import Counts, valid_frames

STRIDE = 4


def receptive_field() -> tuple[int, int, int]:
    """(stride, left, right) in feature frames: output t sees inputs 4t - 3 ... 4t + 3 alone."""
    return STRIDE, 3, 3


def output_lengths(lengths: Counts) -> Counts:
    """Valid output frames: ceil(ceil(length / 2) / 2) = ceil(length / 4)."""
    return (lengths + 3) // 4


def strided_taps(x: Float[Array, "b t f c"]) -> list[Float[Array, "b u g c"]]:
    """The nine inputs of a 3x3 convolution of stride 2 and padding 1, row-major over the kernel.

    Tap (i, j) at output (u, g) is x[2u + i - 1, 2g + j - 1], zero outside; u = ceil(T / 2) and
    g = ceil(F / 2). Taken from the even and odd phases, whose transposes are plain pads.
    """
    batch, frames, bands, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, frames % 2), (0, bands % 2), (0, 0)))
    x = x.reshape(batch, (frames + 1) // 2, 2, (bands + 1) // 2, 2, channels)

    def phase(x: Array, tap: int, axis: int) -> Array:
        samples = lax.index_in_dim(x, 0 if tap == 1 else 1, axis + 1, keepdims=False)
        if tap > 0:
            return samples
        one = [(0, 0)] * samples.ndim
        one[axis] = (1, 0)
        return lax.slice_in_dim(jnp.pad(samples, one), 0, samples.shape[axis], axis=axis)

    return [phase(phase(x, i, 1), j, 2) for i in range(3) for j in range(3)]


class StridedConv(nn.Module):
    """3x3 convolution over (time, band), stride 2, padding 1; kernel `[3, 3, C_in, C_out]`."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t f c"]) -> Float[Array, "b u g k"]:
        initialise = nn.initializers.lecun_normal()
        kernel = self.param("kernel", initialise, (3, 3, x.shape[-1], self.channels))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,))
        columns = jnp.concatenate(strided_taps(x.astype(self.dtype)), axis=-1)
        kernel = kernel.astype(self.dtype).reshape(columns.shape[-1], self.channels)
        return columns @ kernel + bias.astype(self.dtype)[None, None, None, :]


class Subsampling(nn.Module):
    """Features `[B, T, M]` to latents `[B, ceil(T / 4), D]`: conv, ReLU, conv, ReLU, linear.

    Padded frames are set to 0 before each convolution, NaN included, and in the output. Source:
    Gulati et al., Conformer, Interspeech 2020, figure 1.
    """

    channels: int
    dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[Array, "b t m"], lengths: Int[Array, "b"]
    ) -> tuple[Float[Array, "b u d"], Int[Array, "b"]]:
        valid = valid_frames(features.shape[1], lengths)
        x = jnp.where(valid[..., None], features, 0.0)[..., None]
        for name in ("conv1", "conv2"):
            x = nn.relu(StridedConv(self.channels, self.dtype, name=name)(x))
            lengths = (lengths + 1) // 2
            valid = valid_frames(x.shape[1], lengths)
            x = jnp.where(valid[:, :, None, None], x, 0.0)
        x = x.reshape(*x.shape[:2], -1)
        x = nn.Dense(self.dim, dtype=self.dtype, name="linear")(x)
        return jnp.where(valid[..., None], x, 0.0), lengths
