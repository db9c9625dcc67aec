"""Random keys: functions of (seed, stream name, step, utterance id), never stored."""

from __future__ import annotations

import zlib
from typing import Any

import jax
from jaxtyping import Array, Int, Key, UInt32

Tree = Any
Seed = int | Int[Any, ""]  # 0 to 2^31 - 1


def stream_key(seed: Seed, name: str, step: Any) -> Key[Array, ""]:
    """The key of one named random stream at one step; streams are independent."""
    return jax.random.fold_in(
        jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())), step
    )


def row_keys(rng: Key[Array, ""], ids: UInt32[Array, "b"]) -> Key[Array, "b"]:
    """One key per utterance, a function of its id: draws do not depend on the order of rows,
    micro-batches or the number of hosts."""
    return jax.vmap(lambda i: jax.random.fold_in(rng, i))(ids)
