"""Leaf modules of the Conformer: feed-forward, relative-position attention, convolution, block.

Parameters are float32; `dtype` is the dtype of the products. Norms and the softmax run in float32.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

MASKED_SCORE = -1e30


def at_least_float32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x in float32; float64 stays."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def depthwise_conv(
    x: Float[Array, "b t d"], kernel: Float[Array, "k d"], causal: bool = False
) -> Float[Array, "b t d"]:
    """y[b, t, d] = sum_j kernel[j, d] x[b, t + j - c, d], c = (k - 1) / 2, x = 0 outside.

    A sum of shifted products with its own VJP: no grouped convolution, which inside `lax.scan` is
    tens of times slower on XLA:CPU. Sums are float32, the result has x's dtype.

    Args:
      kernel: an odd number of taps `[K, D]`.
      causal: leaves out the taps j > c, which see the future; their gradient is 0.
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
    def __call__(self, x: Float[Array, "b t d"], causal: bool = False) -> Float[Array, "b t d"]:
        initialise = nn.initializers.normal(self.taps**-0.5)
        kernel = self.param("kernel", initialise, (self.taps, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        return depthwise_conv(x, kernel, causal) + bias.astype(x.dtype)[None, None, :]


def relative_positions(frames: int, dim: int, causal: bool = False) -> Float[np.ndarray, "r d"]:
    """Sinusoids of the distances T-1, ..., -T (causal: T-1, ..., -1), rows of `[2T or T+1, D]`.

    Row m holds sin(r w) and cos(r w) of the distance r = T - 1 - m from query to key, with
    w = 10000^(-2i/D) (Dai et al., Transformer-XL, ACL 2019, appendix B).
    """
    distance = np.arange(frames - 1, -2 if causal else -frames - 1, -1, dtype=np.float64)
    angle = distance[:, None] * 10000.0 ** (-np.arange(0, dim, 2) / dim)[None, :]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)


def relative_shift(scores: Float[Array, "b h t r"]) -> Float[Array, "b h t t"]:
    """Scores by distance to scores by key: out[i, j] = scores[i, T - 1 - i + j].

    A reshape: in rows shorter by one the wanted diagonal becomes a column. With the T + 1 columns
    of the causal form entries of the future (j > i) are meaningless and must be masked.
    """
    batch, heads, frames, columns = scores.shape
    flat = scores.reshape(batch, heads, frames * columns)[:, :, frames - 1 :]
    flat = flat[:, :, : frames * (columns - 1)]
    return flat.reshape(batch, heads, frames, columns - 1)[..., :frames]


class RelativeAttention(nn.Module):
    """Multi-head self-attention with relative positions:

        score[i, j] = ((q_i + u) . k_j + (q_i + v) . W r_{i-j}) / sqrt(D / H)

    with a softmax over the keys that `mask` allows. Only the output map has a bias: those of the
    projections would cancel in the softmax or repeat u, v and it. Source: Transformer-XL, 3.3.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], mask: Bool[Array, "b q t"], causal: bool = False
    ) -> Float[Array, "b t d"]:
        """`mask` `[B, 1 or T, T]`: True where a key may be attended; a row without is finite."""
        frames, dim = x.shape[1:]
        size = dim // self.heads

        def project(name: str, x: Array) -> Array:
            dense = nn.Dense(dim, use_bias=False, dtype=self.dtype, name=name)
            return dense(x).reshape(*x.shape[:-1], self.heads, size)

        query, key, value = project("query", x), project("key", x), project("value", x)
        distances = jnp.asarray(relative_positions(frames, dim, causal))
        position = project("position", distances)
        scale = size**-0.5

        def biased_query(name: str) -> Array:
            bias = self.param(name, nn.initializers.zeros_init(), (self.heads, size))
            return (query + bias.astype(self.dtype)[None, None]) * scale

        scores = jnp.einsum("bqhd,bkhd->bhqk", biased_query("content_bias"), key)
        by_distance = jnp.einsum("bqhd,rhd->bhqr", biased_query("position_bias"), position)
        scores = at_least_float32(scores + relative_shift(by_distance))
        scores = jnp.where(mask[:, None], scores, MASKED_SCORE)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        context = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
        return nn.Dense(dim, dtype=self.dtype, name="out")(context)


class FeedForward(nn.Module):
    """Linear to `expansion` times the width, SiLU, linear back."""

    expansion: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        hidden = nn.Dense(self.expansion * x.shape[-1], dtype=self.dtype, name="up")(x)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="down")(nn.silu(hidden))


class ConvModule(nn.Module):
    """Pointwise to twice the width, GLU, depthwise convolution, LayerNorm, SiLU, pointwise.

    LayerNorm stands for the paper's BatchNorm: no batch statistics, no dependence on padding.
    """

    taps: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], valid: Bool[Array, "b t"], causal: bool = False
    ) -> Float[Array, "b t d"]:
        dim = x.shape[-1]
        x = nn.glu(nn.Dense(2 * dim, dtype=self.dtype, name="pointwise_in")(x))
        x = jnp.where(valid[..., None], x, 0.0)
        x = DepthwiseConv(self.taps, name="depthwise")(x, causal)
        x = nn.silu(nn.LayerNorm(dtype=self.dtype, name="norm")(x))
        return nn.Dense(dim, dtype=self.dtype, name="pointwise_out")(x)


class ConformerBlock(nn.Module):
    """x + FF/2, + attention, + convolution, + FF/2, LayerNorm; each branch normed before it.

    Dropout, with rng "dropout", acts on each branch before it is added. Source: Gulati et al.,
    Conformer, Interspeech 2020, equation 1.
    """

    heads: int
    taps: int
    expansion: int = 4
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        valid: Bool[Array, "b t"],
        causal: bool = False,
        train: bool = False,
    ) -> Float[Array, "b t d"]:
        frames = x.shape[1]
        mask = valid[:, None, :]
        if causal:
            mask = mask & jnp.tri(frames, dtype=bool)[None]

        def norm(name: str) -> nn.Module:
            return nn.LayerNorm(dtype=self.dtype, name=name)

        def drop(branch: Array) -> Array:
            return nn.Dropout(self.dropout, deterministic=not train)(branch)

        feed_forward = partial(FeedForward, self.expansion, self.dtype)
        x = x + 0.5 * drop(feed_forward(name="ff1")(norm("ff1_norm")(x)))
        attention = RelativeAttention(self.heads, self.dtype, name="attention")
        x = x + drop(attention(norm("attention_norm")(x), mask, causal))
        convolution = ConvModule(self.taps, self.dtype, name="conv")
        x = x + drop(convolution(norm("conv_norm")(x), valid, causal))
        x = x + 0.5 * drop(feed_forward(name="ff2")(norm("ff2_norm")(x)))
        return norm("norm")(x)
