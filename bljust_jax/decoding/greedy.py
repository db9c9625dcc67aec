"""Greedy CTC decoding: best path on the device, collapse to labels on the host or the device."""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

PADDING = -1


def best_path(logits: Float[Array, "b t k"], lengths: Int[Array, "b"]) -> Int[Array, "b t"]:
    """The most probable class of each valid frame, int32 `[B, T]`; -1 at padded frames.

    Ties go to the smaller id. `lengths` `[B]`: number of valid frames.
    """
    valid = jnp.arange(logits.shape[1])[None, :] < lengths[:, None]
    return jnp.where(valid, jnp.argmax(logits, axis=-1).astype(jnp.int32), PADDING)


def collapse(path: Int[np.ndarray, "t"] | Sequence[int], blank: int = 0) -> list[int]:
    """The labels of one row of `best_path`: merge equal neighbours, then drop blanks.

    This is the map B of Graves et al. (ICML 2006), section 3.1. Padding (-1) is dropped.
    """
    merged = (int(k) for k, _ in itertools.groupby(path))
    return [k for k in merged if k not in (blank, PADDING)]


def collapse_rows(
    path: Int[Array, "b t"], room: int, blank: int = 0
) -> tuple[Int[Array, "b u"], Int[Array, "b"]]:
    """`collapse` of each row of `best_path`, on the device: (labels int32 `[B, room]`, 0 after
    their end; their number `[B]`, above `room` where some were left off)."""
    before = jnp.pad(path, ((0, 0), (1, 0)), constant_values=PADDING)[:, :-1]
    kept = (path != before) & (path != blank) & (path != PADDING)
    place = jnp.where(kept, jnp.cumsum(kept, axis=1) - 1, room)
    rows = jnp.arange(path.shape[0])[:, None]
    labels = jnp.zeros((path.shape[0], room), jnp.int32).at[rows, place].set(path, mode="drop")
    return labels, jnp.sum(kept, axis=1, dtype=jnp.int32)
