"""Flax modules of wav2vec 2.0: waveform convolutions, convolutional positions, Transformer block.

Parameters are float32; `dtype` is the dtype of the products. Norms and the softmax run in float32.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bljust_jax.common.shapes import Frames, Lengths, Mask
from bljust_jax.models import remat
from bljust_jax.models.attention import MASKED_SCORE, attend, project
from bljust_jax.models.layers import KERNEL, Dense, Dropout
from bljust_jax.models.norms import EPSILON, LayerNorm, at_least_float32
from bljust_jax.ops.log_mel import frame_count, valid_frames
from bljust_jax.parallel.batch_map import map_rows

gelu = partial(jax.nn.gelu, approximate=False)


class StridedConv(nn.Module):
    """y[t] = sum_j x[stride t + j] kernel[j] (+ bias), without padding; kernel `[K, C, C']`."""

    channels: int
    taps: int
    stride: int
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b u k"]:
        # variance 2 / fan-in, for the GELU that follows
        initialise = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("kernel", initialise, (self.taps, x.shape[-1], self.channels))
        axes = ("NWC", "WIO", "NWC")
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = lax.conv_general_dilated(x, kernel, (self.stride,), "VALID", dimension_numbers=axes)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,))
            y = y + bias.astype(self.dtype)[None, None, :]
        return remat.keep(y, "convolution")


class TimeNorm(nn.Module):
    """(x - mean) / sqrt(var + 1e-5) * scale + bias, moments per utterance and channel over the
    counted frames: group norm with one channel per group."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"], counted: Mask) -> Float[Array, "b t c"]:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        x, counted = at_least_float32(x), counted[..., None]
        count = jnp.maximum(jnp.sum(counted, axis=1, keepdims=True), 1).astype(x.dtype)
        mean = jnp.sum(jnp.where(counted, x, 0.0), axis=1, keepdims=True) / count
        squares = jnp.where(counted, jnp.square(x - mean), 0.0)
        var = jnp.sum(squares, axis=1, keepdims=True) / count
        y = (x - mean) * lax.rsqrt(var + EPSILON) * scale[None, None, :] + bias[None, None, :]
        return y.astype(self.dtype)


class WaveformEncoder(nn.Module):
    """Waveform `[B, S]` to features `[B, T, C]`: strided convolutions, each with its norm and GELU.

    norm="layer": a LayerNorm after each; "group": a `TimeNorm` after the first only, over valid
    frames or, with `whole`, over all. Padded samples are first set to 0, NaN included; a valid
    frame depends on valid samples only. Source: Baevski et al., wav2vec 2.0, NeurIPS 2020,
    section 4.2 and appendix B.
    """

    channels: tuple[int, ...]
    taps: tuple[int, ...]
    strides: tuple[int, ...]
    use_bias: bool
    norm: str
    whole: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b s"], lengths: Lengths
    ) -> tuple[Float[Array, "b t c"], Lengths]:
        x = jnp.where(valid_frames(x.shape[1], lengths), x, 0.0)[..., None]
        shapes = zip(self.channels, self.taps, self.strides, strict=True)
        for n, (channels, taps, stride) in enumerate(shapes):
            conv = StridedConv(channels, taps, stride, self.use_bias, self.dtype, name=f"conv{n}")
            x = conv(x)
            lengths = frame_count(lengths, taps, stride)
            if self.norm == "layer":
                x = LayerNorm(dtype=self.dtype, name=f"norm{n}")(x)
            elif n == 0:
                counted = self.whole | valid_frames(x.shape[1], lengths)
                x = TimeNorm(self.dtype, name="norm0")(x, counted)
            x = gelu(x)
        return x, lengths


class Projection(nn.Module):
    """(Linear of LayerNorm of the features, LayerNorm of the features)."""

    dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> tuple[Frames, Float[Array, "b t c"]]:
        normed = LayerNorm(dtype=self.dtype, name="norm")(x)
        return Dense(self.dim, dtype=self.dtype, name="linear")(normed), normed


def grouped_conv(x: Frames, kernel: Float[Array, "k i d"]) -> Frames:
    """y[t, o] = sum over j, i of kernel[j, i, o] x[t + j - K // 2, g I + i], x = 0 outside.

    Groups have I channels in and out; o lies in group g. Computed as a product of Fourier
    transforms over time: with 128 taps it takes a fiftieth of the operations, and the gradient of
    `lax.conv` with groups is ten times slower on XLA:CPU. Sums are float32, the result has the
    dtype of x.
    """
    batch, frames, dim = x.shape
    taps, width, _ = kernel.shape
    size = -(-(frames + taps) // 64) * 64
    wide = at_least_float32(x)
    there = map_rows(partial(jnp.fft.rfft, n=size, axis=1))
    back = map_rows(partial(jnp.fft.irfft, n=size, axis=1))
    spectrum = there(wide).reshape(batch, -1, dim // width, width)
    response = jnp.fft.rfft(kernel.astype(wide.dtype), size, axis=0).conj()
    response = response.reshape(-1, width, dim // width, width)
    product = jnp.einsum(
        "bfgi,figo->bfgo", spectrum, response, precision=lax.Precision.HIGHEST
    ).reshape(batch, -1, dim)
    y = jnp.roll(back(product), taps // 2, axis=1)
    return y[:, :frames].astype(x.dtype)


class Positions(nn.Module):
    """x + GELU(convolution of x), the convolution weight-normalised per tap:

        weight[j] = gain[j] kernel[j] / |kernel[j]|,  kernel `[K, D / groups, D]`.

    Tap j of output t reads frame t + j - K // 2. A gain starts at 2 / sqrt(groups) times the norm
    of its tap. Source: wav2vec 2.0, section 2; Salimans and
    Kingma, Weight Normalization, NeurIPS 2016.
    """

    taps: int
    groups: int

    @nn.compact
    def __call__(self, x: Frames) -> Frames:
        dim = x.shape[-1]
        kernel = self.param("kernel", KERNEL, (self.taps, dim // self.groups, dim))
        bias = self.param("bias", nn.initializers.zeros_init(), (dim,))
        norm = jnp.sqrt(jnp.sum(jnp.square(kernel), axis=(1, 2)))
        gain = self.param("gain", lambda _: 2 * self.groups**-0.5 * norm)
        weight = kernel * (gain / norm)[:, None, None]
        return x + gelu(grouped_conv(x, weight) + bias.astype(x.dtype)[None, None, :])


class SelfAttention(nn.Module):
    """softmax(q k^T / sqrt(D / H)) v over valid keys, H heads; all four maps have a bias.

    `form` is that of `attention.attend`. Dropout of the weights, which not every form offers, is
    computed in plain XLA.
    """

    heads: int
    dropout: float = 0.0
    dtype: Any = jnp.float32
    form: str = "auto"

    @nn.compact
    def __call__(self, x: Frames, valid: Mask, train: bool = False) -> Frames:
        dim = x.shape[-1]
        query, key, value = project(x, self.heads, self.dtype, ("query", "key", "value"))
        query = query * (dim // self.heads) ** -0.5
        if train and self.dropout:
            scores = at_least_float32(jnp.einsum("bqhd,bkhd->bhqk", query, key))
            scores = jnp.where(valid[:, None, None, :], scores, MASKED_SCORE)
            weights = remat.keep(jax.nn.softmax(scores).astype(self.dtype), "attention_weights")
            weights = Dropout(self.dropout)(weights, train)
            context = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
            context = remat.keep(context, "attention_context")
        else:
            context = attend(query, key, value, None, valid, form=self.form)
        return Dense(dim, dtype=self.dtype, name="out")(context.reshape(x.shape))


class TransformerBlock(nn.Module):
    """x + attention, x + feed-forward (GELU), each with a LayerNorm: of the branch's input if
    `stable`, else of the sum. Dropout, with rng "dropout", acts on each branch and on the attention
    weights; `attention` is the form of `SelfAttention`."""

    heads: int
    ff_dim: int
    stable: bool
    dropout: float = 0.0
    dtype: Any = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: Frames, valid: Mask, train: bool = False) -> Frames:
        options = self.dropout, self.dtype, self.attention
        attention = SelfAttention(self.heads, *options, name="attention")

        def feed_forward(x: Array) -> Array:
            hidden = remat.keep(Dense(self.ff_dim, dtype=self.dtype, name="up")(x), "ff_up")
            return Dense(x.shape[-1], dtype=self.dtype, name="down")(gelu(hidden))

        def residual(x: Array, branch: Any, name: str) -> Array:
            norm = LayerNorm(dtype=self.dtype, name=name)
            branch = branch(norm(x) if self.stable else x)
            x = remat.keep(x + Dropout(self.dropout)(branch, train), "residual")
            return x if self.stable else norm(x)

        x = residual(x, partial(attention, valid=valid, train=train), "attention_norm")
        return residual(x, feed_forward, "ff_norm")
