"""Flax modules of the Conformer block: feed-forward, convolution module, block.

Parameters are float32; `dtype` is the dtype of the products. Norms and the softmax run in float32.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from bljust_jax.common.shapes import Frames, Mask
from bljust_jax.models import remat
from bljust_jax.models.attention import Attention
from bljust_jax.models.depthwise import depthwise_conv
from bljust_jax.models.layers import Dense, Dropout
from bljust_jax.models.norms import BatchNorm, LayerNorm, Stats


class DepthwiseConv(nn.Module):
    """`depthwise_conv` with a bias; kernel `[K, D]`."""

    taps: int

    @nn.compact
    def __call__(self, x: Frames, causal: bool = False) -> Frames:
        initialise = nn.initializers.normal(self.taps**-0.5)
        kernel = self.param("kernel", initialise, (self.taps, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        y = depthwise_conv(x, kernel, causal) + bias.astype(x.dtype)[None, None, :]
        # else compilers compute the sum over the taps once per reader
        return lax.optimization_barrier(y)


class FeedForward(nn.Module):
    """Linear to `expansion` times the width, SiLU, linear back."""

    expansion: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Frames) -> Frames:
        hidden = Dense(self.expansion * x.shape[-1], dtype=self.dtype, name="up")(x)
        hidden = remat.keep(hidden, "ff_up")
        return Dense(x.shape[-1], dtype=self.dtype, name="down")(nn.silu(hidden))


class ConvModule(nn.Module):
    """Pointwise to twice the width, GLU, depthwise convolution, norm, SiLU, pointwise.

    The norm is LayerNorm or, if stored statistics are given, the paper's BatchNorm: with moments of
    the batch in training, except in a causal context, since they depend on future frames.
    """

    taps: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Frames,
        valid: Mask,
        causal: bool = False,
        train: bool = False,
        stats: Stats | None = None,
    ) -> tuple[Frames, Stats | None]:
        dim = x.shape[-1]
        x = remat.keep(Dense(2 * dim, dtype=self.dtype, name="pointwise_in")(x), "glu")
        x = jnp.where(valid[..., None], nn.glu(x), 0.0)
        x = remat.keep(DepthwiseConv(self.taps, name="depthwise")(x, causal), "depthwise")
        if stats is None:
            x = LayerNorm(dtype=self.dtype, name="norm")(x)
        else:
            batch = train and not causal
            x, stats = BatchNorm(dtype=self.dtype, name="norm")(x, valid, stats, batch)
        return Dense(dim, dtype=self.dtype, name="pointwise_out")(nn.silu(x)), stats


class ConformerBlock(nn.Module):
    """x + FF/2, + attention, + convolution, + FF/2, LayerNorm; each branch normalised at its input.

    Dropout, with rng "dropout", acts on each branch before it is added; `window`, `positions` and
    the form `attention` are those of `Attention`. Returns the statistics of BatchNorm, None if none
    are given. Source: Gulati et al., Conformer, Interspeech 2020, equation 1.
    """

    heads: int
    taps: int
    expansion: int = 4
    dropout: float = 0.0
    window: int = 0
    dtype: Any = jnp.float32
    positions: str = "relative"
    attention: str = "auto"

    @nn.compact
    def __call__(
        self,
        x: Frames,
        valid: Mask,
        causal: bool = False,
        train: bool = False,
        stats: Stats | None = None,
    ) -> tuple[Frames, Stats | None]:
        def norm(name: str) -> nn.Module:
            return LayerNorm(dtype=self.dtype, name=name)

        def add(x: Array, share: float, branch: Array) -> Array:
            return remat.keep(x + share * Dropout(self.dropout)(branch, train), "residual")

        feed_forward = partial(FeedForward, self.expansion, self.dtype)
        x = add(x, 0.5, feed_forward(name="ff1")(norm("ff1_norm")(x)))
        attention = Attention(
            self.heads, self.window, self.dtype, self.positions, self.attention, name="attention"
        )
        x = add(x, 1.0, attention(norm("attention_norm")(x), valid, causal))
        convolution = ConvModule(self.taps, self.dtype, name="conv")
        branch, stats = convolution(norm("conv_norm")(x), valid, causal, train, stats)
        x = add(x, 1.0, branch)
        x = add(x, 0.5, feed_forward(name="ff2")(norm("ff2_norm")(x)))
        return norm("norm")(x), stats
