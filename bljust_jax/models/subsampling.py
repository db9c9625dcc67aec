"""Convolutional subsampling by 4 or 8: 3x3 convolutions of stride 2 and a linear map.

A strided convolution is computed as a matrix product of its nine strided taps with the kernel:
inside `lax.scan` (gradient accumulation) the backward pass of `lax.conv` on XLA:CPU is tens of
times slower. A depthwise convolution is a sum of nine products.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bljust_jax.common.shapes import Features, Grid, Lengths
from bljust_jax.models.layers import KERNEL, Dense
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


def depthwise_strided(x: Grid, kernel: Float[Array, "3 3 c"]) -> Float[Array, "b u g c"]:
    """Depthwise 3x3 convolution, stride 2, padding 1.

    Products and sums use the wider dtype of kernel and x; the result has the dtype of x.
    """
    weights = kernel.reshape(9, 1, 1, 1, -1)
    return sum(w * tap for w, tap in zip(weights, strided_taps(x), strict=True)).astype(x.dtype)


class StridedConv(nn.Module):
    """3x3 convolution over (time, band), stride 2, padding 1; kernel `[3, 3, C_in, C_out]`."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Grid) -> Float[Array, "b u g k"]:
        kernel = self.param("kernel", KERNEL, (3, 3, x.shape[-1], self.channels))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,))
        columns = jnp.concatenate(strided_taps(x.astype(self.dtype)), axis=-1)
        kernel = kernel.astype(self.dtype).reshape(columns.shape[-1], self.channels)
        return columns @ kernel + bias.astype(self.dtype)[None, None, None, :]


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
            x = nn.relu(self._stage(x, stage))
            lengths = (lengths + 1) // 2
            valid = valid_frames(x.shape[1], lengths)
            x = jnp.where(valid[:, :, None, None], x, 0.0)
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
