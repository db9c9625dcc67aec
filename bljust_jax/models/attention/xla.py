"""Attention in plain XLA: all pairs of frames, or a window in blocks at linear cost."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from bljust_jax.common.shapes import Mask
from bljust_jax.models import platform, remat
from bljust_jax.models.attention.relative import skew
from bljust_jax.models.attention.task import Task
from bljust_jax.models.norms import at_least_float32

MASKED_SCORE = -1e30
DETERMINISTIC = True  # the same bits whenever a program runs


def available() -> bool:
    """True: on all platforms."""
    return True


def limit(task: Task) -> str:
    """An empty text: all tasks are supported."""
    del task
    return ""


@jax.custom_vjp
def masked_attention(
    query: Float[Array, "n q h s"],
    key: Float[Array, "n k h s"],
    value: Float[Array, "n k h s"],
    bias: Float[Array, "n h q k"] | None,
    mask: Bool[Array, "#n #q k"],
) -> Float[Array, "n q h s"]:
    """softmax_j(query_i . key_j + bias_ij) value_j over the keys j with mask[i, j].

    All arrays have one dtype; the softmax is float32 or wider, its weights w are rounded to that
    dtype. A query without a key has output 0 and no gradient. The VJP keeps w and the output o
    besides its inputs, and neither scores nor mask: the slope of a score is w (do . v - do . o).
    """
    return _forward(query, key, value, bias, mask)[0]


def _forward(query, key, value, bias, mask):
    scores = jnp.einsum("bqhs,bkhs->bhqk", query, key)
    scores = at_least_float32(scores if bias is None else scores + bias)
    # In a scan over layers, jax computes what does not depend on the layer before the loop: the
    # mask and both constants, each as large as the scores, which every layer would read. The
    # barrier makes them depend on it.
    constants = jnp.asarray(MASKED_SCORE, scores.dtype), jnp.zeros((), scores.dtype)
    mask, low, zero, _ = lax.optimization_barrier((mask, *constants, query[:1, :1, :1, :1]))
    mask = mask[:, None]
    weights = softmax(jnp.where(mask, scores, low))
    weights = jnp.where(mask, weights, zero).astype(value.dtype)
    weights = remat.keep(weights, "attention_weights")
    out = remat.keep(jnp.einsum("bhqk,bkhs->bqhs", weights, value), "attention_context")
    biased = None if bias is None else ()
    return out, (query, key, value, weights, out, biased)


def softmax(scores: Float[Array, "*n k"]) -> Float[Array, "*n k"]:
    """exp(s_j) / sum_k exp(s_k) of rows with a key. For TPUs exp(s_j - log sum_k exp(s_k)): a
    second exp, but no array of exp in memory, which XLA:TPU would write in float32 between both
    passes."""
    if platform.platform() == "tpu":
        return jnp.exp(scores - jax.nn.logsumexp(scores, axis=-1, keepdims=True))
    return jax.nn.softmax(scores)


def _backward(residuals, grad):
    query, key, value, weights, out, biased = residuals
    slope = at_least_float32(jnp.einsum("bqhs,bkhs->bhqk", grad, value))
    mean = jnp.sum(at_least_float32(grad) * at_least_float32(out), axis=-1)
    slope -= mean.transpose(0, 2, 1)[..., None]
    slope = (at_least_float32(weights) * slope).astype(query.dtype)
    return (
        jnp.einsum("bhqk,bkhs->bqhs", slope, key),
        jnp.einsum("bhqk,bqhs->bkhs", slope, query),
        jnp.einsum("bhqk,bqhs->bkhs", weights, grad),
        None if biased is None else slope,
        None,
    )


masked_attention.defvjp(_forward, _backward)


def attend(
    query: Float[Array, "b t h s"],
    key: Float[Array, "b t h s"],
    value: Float[Array, "b t h s"],
    bias: Float[Array, "b h t t"] | None,
    valid: Mask,
    task: Task,
) -> Float[Array, "b t h s"]:
    """`masked_attention` over the valid keys that causality and reach of `task` allow; in blocks
    where there is no bias and they need fewer scores."""
    if bias is None and is_local(query.shape[1], task.reach):
        return local_attention(query, key, value, None, None, valid, task)
    mask = valid[:, None, :] & band(query.shape[1], task)[None]
    return masked_attention(query, key, value, bias, mask)


def band(frames: int, task: Task) -> Bool[Array, "#t t"]:
    """True where causality and reach allow query i to attend key j."""
    if not (task.reach or task.causal):
        return jnp.ones((1, frames), bool)
    distance = jnp.arange(frames)[:, None] - jnp.arange(frames)[None, :]
    reach = task.reach or frames
    return (distance <= reach) & (distance >= (0 if task.causal else -reach))


def is_local(frames: int, reach: int) -> bool:
    """Whether blocks of a window need fewer scores than all pairs of frames."""
    return reach > 0 and frames > 3 * reach


def local_attention(
    query: Float[Array, "b t h s"],
    key: Float[Array, "b t h s"],
    value: Float[Array, "b t h s"],
    position_query: Float[Array, "b t h s"] | None,
    position: Float[Array, "r h s"] | None,
    valid: Mask,
    task: Task,
) -> Float[Array, "b t h s"]:
    """`attend` within the reach of `task`, in memory that grows with T.

    The bias is position_query_i . position_{i-j}; `position` has the distances reach, ..., -ahead,
    ahead = reach or 0 if causal; without a bias both are None. Queries are cut into blocks of
    `reach` frames; their keys lie in the same block, the previous and, if ahead > 0, the next one
    (blocks as in Beltagy et al., Longformer, 2020).
    """
    batch, frames, heads, size = key.shape
    reach, after = task.reach, int(not task.causal)
    count = -(-frames // reach)

    def blocks(x: Array, before: int = 0, after: int = 0) -> Array:
        pad = (before * reach, (count + after) * reach - frames)
        x = jnp.pad(x, [(0, 0), pad] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(batch, -1, reach, *x.shape[2:])

    def around(x: Array) -> Array:
        x = blocks(x, 1, after)
        x = jnp.concatenate([x[:, n : n + count] for n in range(2 + after)], axis=2)
        return x.reshape(batch * count, -1, *x.shape[3:])

    def queries(x: Array) -> Array:
        return blocks(x).reshape(batch * count, reach, heads, size)

    keys = (2 + after) * reach
    distances = reach + 1 + after * reach
    column = np.arange(keys)[None, :] - np.arange(reach)[:, None]  # of the distance i - j
    mask = jnp.asarray((column >= 0) & (column < distances))[None] & around(valid)[:, None, :]
    bias = None
    if position is not None:
        by_distance = jnp.einsum("nqhs,rhs->nhqr", queries(position_query), position)
        bias = skew(by_distance, 0, keys)
    out = masked_attention(queries(query), around(key), around(value), bias, mask)
    return out.reshape(batch, count * reach, heads, size)[:, :frames]
