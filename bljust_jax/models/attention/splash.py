"""Splash attention on TPUs: no scores in memory, no bias; windows and causality skip blocks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jaxtyping import Array, Float

from bljust_jax.common.errors import UserError
from bljust_jax.common.shapes import Mask
from bljust_jax.models import platform
from bljust_jax.models.attention.task import Task
from bljust_jax.parallel.batch_map import SHARED, over_batch

DETERMINISTIC = True  # a sequential grid adds in one order
LANES = 128
BLOCK = 512  # frames per block, at most


def available() -> bool:
    """Whether programs are for TPUs."""
    return platform.platform() == "tpu"


def limit(task: Task) -> str:
    """Why the kernel cannot compute the task; "" if it can."""
    if task.biased:
        return "has no bias, which positions='relative' needs"
    if task.dtype == jnp.float64:
        return "has no float64"
    if jax.sharding.get_abstract_mesh().shape.get(SHARED, 1) > 1:
        return "does not split heads over config.mesh.tensor"
    return ""


def attend(
    query: Float[Array, "b t h s"],
    key: Float[Array, "b t h s"],
    value: Float[Array, "b t h s"],
    bias: None,
    valid: Mask,
    task: Task,
    interpret: bool = False,
) -> Float[Array, "b t h s"]:
    """`attention.attend` by jax's splash attention kernel, on each device's share of the batch.

    Frames are padded to a multiple of 128. Lengths are segments: real frames attend real ones, and
    padded frames, whose output is meaningless, padded ones. interpret: run without a TPU, slowly.
    Raises UserError for programs of another platform, unless `interpret`.
    """
    del bias
    if not (interpret or available()):
        raise UserError("config.model.attention='splash' needs a TPU")
    run = functools.partial(_attend, task=task, interpret=interpret)
    return over_batch(run, (0, 0, 0, 0), 0)(query, key, value, valid.astype(jnp.int32))


def _attend(
    query: Array, key: Array, value: Array, segment: Array, *, task: Task, interpret: bool
) -> Array:
    frames, heads = query.shape[1:3]
    padded = -(-frames // LANES) * LANES

    def by_head(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, padded - frames), (0, 0), (0, 0)))
        return x.transpose(0, 2, 1, 3)

    segment = jnp.pad(segment, ((0, 0), (0, padded - frames)))
    kernel = _kernel(padded, heads, task, interpret)
    ids = splash_attention.SegmentIds(q=segment, kv=segment)
    out = jax.vmap(kernel)(by_head(query), by_head(key), by_head(value), ids)
    return out.transpose(0, 2, 1, 3)[:, :frames]


def _kernel(frames: int, heads: int, task: Task, interpret: bool) -> Any:
    """The kernel for `frames` queries and keys, and its backward kernels."""
    shape, reach = (frames, frames), task.reach or None
    if task.causal and not reach:
        mask: Any = splash_attention.CausalMask(shape)
    elif reach:
        ahead = 0 if task.causal else reach
        mask = splash_attention.LocalMask(shape, (reach, ahead), 0)
    else:
        mask = splash_attention.FullMask(shape)
    block = next(n for n in range(min(frames, BLOCK), 0, -LANES) if frames % n == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes = splash_attention.BlockSizes(**{f"block_{name}": block for name in names})
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention_context",  # of `remat.NAMES`
        interpret=interpret,
    )
