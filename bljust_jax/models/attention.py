"""Self-attention with relative positions (Transformer-XL), full or in a window at linear cost."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bljust_jax.common.shapes import Frames, Mask
from bljust_jax.models.layers import Dense
from bljust_jax.models.norms import at_least_float32

MASKED_SCORE = -1e30


def relative_positions(first: int, last: int, dim: int) -> Float[np.ndarray, "r d"]:
    """Sinusoids of the distances first, first - 1, ..., last from query to key, one row each.

    The row of distance r holds sin(r w) and cos(r w), w = 10000^(-2i/D), in float64 (Dai et al.,
    Transformer-XL, ACL 2019, appendix B).
    """
    distance = np.arange(first, last - 1, -1, dtype=np.float64)
    angle = distance[:, None] * 10000.0 ** (-np.arange(0, dim, 2) / dim)[None, :]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)


def skew(scores: Float[Array, "*n q r"], first: int, keys: int) -> Float[Array, "*n q k"]:
    """Scores by distance to scores by key: out[i, j] = scores[i, first + j - i], first <= Q.

    Implemented as a reshape: in rows shorter by one, a diagonal becomes a column. Entries whose
    column lies outside `scores` are undefined and must be masked.
    """
    *lead, queries, columns = scores.shape
    if columns <= keys:
        scores = jnp.pad(scores, [(0, 0)] * (len(lead) + 1) + [(0, keys + 1 - columns)])
        columns = keys + 1
    flat = scores.reshape(*lead, queries * columns)[..., first : first + queries * (columns - 1)]
    return flat.reshape(*lead, queries, columns - 1)[..., :keys]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def masked_softmax(
    scores: Float[Array, "*#n q k"], mask: Bool[Array, "*#n #q k"], dtype: Any
) -> Float[Array, "*n q k"]:
    """softmax over the keys where `mask` is True, in float32 or wider, rounded to `dtype`.

    The derivative uses the rounded weights w, w (dw - sum w dw), so that the backward pass stores
    no Q x K array of another type. A query without a key is finite.
    """
    wide = jnp.where(mask, at_least_float32(scores), MASKED_SCORE)
    return jax.nn.softmax(wide).astype(dtype)


def _softmax_forward(scores, mask, dtype):
    weights = masked_softmax(scores, mask, dtype)
    return weights, (weights, mask, jnp.zeros((), scores.dtype))


def _softmax_backward(_, residuals, cotangent):
    weights, mask, like = residuals
    wide = at_least_float32(weights)
    slope = wide * at_least_float32(cotangent)
    slope -= wide * slope.sum(-1, keepdims=True)
    return jnp.where(mask, slope, 0.0).astype(like.dtype), None


masked_softmax.defvjp(_softmax_forward, _softmax_backward)


def full_attention(
    content_query: Float[Array, "b t h s"],
    position_query: Float[Array, "b t h s"],
    key: Float[Array, "b t h s"],
    value: Float[Array, "b t h s"],
    position: Float[Array, "r h s"],
    mask: Bool[Array, "b #t t"],
) -> Float[Array, "b t h s"]:
    """softmax_j(content_query_i . key_j + position_query_i . position_{i-j}) value_j.

    `position` has the distances T - 1 and down, one more than needed; `mask` `[B, 1 or T, T]`
    is True where a key may be attended. A query without a key is finite. Memory grows with T^2.
    """
    frames = key.shape[1]
    scores = jnp.einsum("bqhs,bkhs->bhqk", content_query, key)
    by_distance = jnp.einsum("bqhs,rhs->bhqr", position_query, position)
    scores = scores + skew(by_distance, frames - 1, frames)
    weights = masked_softmax(scores, mask[:, None], value.dtype)
    return jnp.einsum("bhqk,bkhs->bqhs", weights, value)


def local_attention(
    content_query: Float[Array, "b t h s"],
    position_query: Float[Array, "b t h s"],
    key: Float[Array, "b t h s"],
    value: Float[Array, "b t h s"],
    position: Float[Array, "r h s"],
    valid: Mask,
    reach: int,
) -> Float[Array, "b t h s"]:
    """`full_attention` under the band mask -ahead <= i - j <= reach, in memory that grows with T.

    `position` has the distances reach, ..., -ahead, ahead = reach or 0; `valid` is True on real
    frames. Queries are cut into blocks of `reach` frames; their keys lie in the same block, the
    previous and, if ahead > 0, the next one (blocks as in Beltagy et al., Longformer, 2020).
    """
    batch, frames, heads, size = key.shape
    count, distances = -(-frames // reach), position.shape[0]
    after = int(distances > reach + 1)

    def blocks(x: Array, before: int = 0, after: int = 0) -> Array:
        pad = (before * reach, (count + after) * reach - frames)
        x = jnp.pad(x, [(0, 0), pad] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(batch, -1, reach, *x.shape[2:])

    def around(x: Array) -> Array:
        x = blocks(x, 1, after)
        return jnp.concatenate([x[:, n : n + count] for n in range(2 + after)], axis=2)

    keys = (2 + after) * reach
    column = np.arange(keys)[None, :] - np.arange(reach)[:, None]  # of the distance i - j
    band = jnp.asarray((column >= 0) & (column < distances))
    mask = band[None, None] & around(valid)[:, :, None, :]
    scores = jnp.einsum("bnqhs,bnkhs->bnhqk", blocks(content_query), around(key))
    by_distance = jnp.einsum("bnqhs,rhs->bnhqr", blocks(position_query), position)
    scores = scores + skew(by_distance, 0, keys)
    weights = masked_softmax(scores, mask[:, :, None], value.dtype)
    out = jnp.einsum("bnhqk,bnkhs->bnqhs", weights, around(value))
    return out.reshape(batch, count * reach, heads, size)[:, :frames]


class RelativeAttention(nn.Module):
    """Multi-head self-attention with relative positions:

        score[i, j] = ((q_i + u) . k_j + (q_i + v) . W r_{i-j}) / sqrt(D / H)

    with a softmax over the valid keys j; causal: those with j <= i; with a window: those with
    |i - j| <= window // 2. Only the output map has a bias: biases of the projections would cancel
    in the softmax or duplicate u, v and it. The window adds no parameter. Source: Transformer-XL,
    section 3.3.
    """

    heads: int
    window: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Frames, valid: Mask, causal: bool = False) -> Frames:
        """`valid` is True on real frames; an utterance without any is finite."""
        frames, dim = x.shape[1:]
        size, reach = dim // self.heads, self.window // 2
        local = (
            reach > 0 and frames > 3 * reach
        )  # else blocks would need more scores than full attention

        def project(name: str, x: Array) -> Array:
            dense = Dense(dim, use_bias=False, dtype=self.dtype, name=name)
            return dense(x).reshape(*x.shape[:-1], self.heads, size)

        def distances(first: int, last: int) -> Array:
            return project("position", jnp.asarray(relative_positions(first, last, dim)))

        query, key, value = project("query", x), project("key", x), project("value", x)

        def biased_query(name: str) -> Array:
            bias = self.param(name, nn.initializers.zeros_init(), (self.heads, size))
            return (query + bias.astype(self.dtype)[None, None]) * size**-0.5

        queries = biased_query("content_bias"), biased_query("position_bias")
        if local:
            position = distances(reach, 0 if causal else -reach)
            context = local_attention(*queries, key, value, position, valid, reach)
        else:
            position = distances(frames - 1, -1 if causal else -frames)
            mask = valid[:, None, :] & _band(frames, reach, causal)[None]
            context = full_attention(*queries, key, value, position, mask)
        return Dense(dim, dtype=self.dtype, name="out")(context.reshape(x.shape))


def _band(frames: int, reach: int, causal: bool) -> Bool[Array, "#t t"]:
    """True where causality and window allow query i to attend key j (reach 0: no window)."""
    if not (reach or causal):
        return jnp.ones((1, frames), bool)
    distance = jnp.arange(frames)[:, None] - jnp.arange(frames)[None, :]
    reach = reach or frames
    return (distance <= reach) & (distance >= (0 if causal else -reach))
