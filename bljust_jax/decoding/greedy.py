"""Greedy CTC decoding: best path on the device, collapse to labels on the host."""

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
