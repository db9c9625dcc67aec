"""Flax modules of the Conformer block: feed-forward, convolution module, block.

Parameters are float32; `dtype` is the dtype of the products. Norms and the softmax run in float32.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bljust_jax.common.shapes import Frames, Mask
from bljust_jax.models.attention import Attention
from bljust_jax.models.layers import Dense
from bljust_jax.models.norms import BatchNorm, LayerNorm, Stats, at_least_float32


def depthwise_conv(x: Frames, kernel: Float[Array, "k d"], causal: bool = False) -> Frames:
    """y[b, t, d] = sum_j kernel[j, d] x[b, t + j - c, d], c = (k - 1) / 2, x = 0 outside.

    A sum of shifted products with its own VJP, because a grouped convolution inside `lax.scan` is
    tens of times slower on XLA:CPU. Sums are float32, the result has the dtype of x.

    Args:
      kernel: an odd number of taps `[K, D]`.
      causal: omit the taps j > c, which read future frames; their gradient is 0.
    """
    return _depthwise_conv(x, kernel, (kernel.shape[0] - 1) // 2 if causal else kernel.shape[0])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise_conv(x: Array, kernel: Array, last: int) -> Array:
    frames, shifted = x.shape[1], _pad_frames(x, kernel.shape[0])
    taps = [shifted[:, j : j + frames] * kernel[j][None, None, :] for j in _used(kernel, last)]
    return sum(taps).astype(x.dtype)


def _used(kernel: Array, last: int) -> range:
    return range(min(last + 1, kernel.shape[0]))


def _pad_frames(x: Array, taps: int) -> Array:
    side = (taps - 1) // 2
    return jnp.pad(x, ((0, 0), (side, side), (0, 0)))


def _depthwise_forward(x: Array, kernel: Array, last: int):
    return _depthwise_conv(x, kernel, last), (x, kernel)


def _depthwise_backward(last: int, residuals: tuple[Array, Array], grad: Array):
    x, kernel = residuals
    taps, frames = kernel.shape[0], x.shape[1]
    x_shifted, grad_shifted = _pad_frames(x, taps), _pad_frames(grad, taps)
    grad_x, grad_kernel = 0.0, []
    for j in range(taps):
        if j > last:
            grad_kernel.append(jnp.zeros_like(kernel[j]))
            continue
        back = taps - 1 - j
        grad_x += grad_shifted[:, back : back + frames] * kernel[j][None, None, :]
        product = x_shifted[:, j : j + frames] * at_least_float32(grad)
        grad_kernel.append(jnp.sum(product, axis=(0, 1)))
    return grad_x.astype(x.dtype), jnp.stack(grad_kernel).astype(kernel.dtype)


_depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


class DepthwiseConv(nn.Module):
    """`depthwise_conv` with a bias; kernel `[K, D]`."""

    taps: int

    @nn.compact
    def __call__(self, x: Frames, causal: bool = False) -> Frames:
        initialise = nn.initializers.normal(self.taps**-0.5)
        kernel = self.param("kernel", initialise, (self.taps, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        return depthwise_conv(x, kernel, causal) + bias.astype(x.dtype)[None, None, :]


class FeedForward(nn.Module):
    """Linear to `expansion` times the width, SiLU, linear back."""

    expansion: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Frames) -> Frames:
        hidden = Dense(self.expansion * x.shape[-1], dtype=self.dtype, name="up")(x)
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
        x = nn.glu(Dense(2 * dim, dtype=self.dtype, name="pointwise_in")(x))
        x = jnp.where(valid[..., None], x, 0.0)
        x = DepthwiseConv(self.taps, name="depthwise")(x, causal)
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

        def drop(branch: Array) -> Array:
            return nn.Dropout(self.dropout, deterministic=not train)(branch)

        feed_forward = partial(FeedForward, self.expansion, self.dtype)
        x = x + 0.5 * drop(feed_forward(name="ff1")(norm("ff1_norm")(x)))
        attention = Attention(
            self.heads, self.window, self.dtype, self.positions, self.attention, name="attention"
        )
        x = x + drop(attention(norm("attention_norm")(x), valid, causal))
        convolution = ConvModule(self.taps, self.dtype, name="conv")
        branch, stats = convolution(norm("conv_norm")(x), valid, causal, train, stats)
        x = x + drop(branch)
        x = x + 0.5 * drop(feed_forward(name="ff2")(norm("ff2_norm")(x)))
        return norm("norm")(x), stats
