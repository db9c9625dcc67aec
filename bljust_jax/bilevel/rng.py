"""Random keys as functions of (seed, stream name, step, utterance id); no key is stored."""

from __future__ import annotations

import zlib
from typing import Any

import jax
from jaxtyping import Array, Key, UInt32

Tree = Any


def stream_key(seed: int, name: str, step: Any) -> Key[Array, ""]:
    """The key of one named stream of randomness at one step; two streams never meet by accident,
    and nothing is stored."""
    return jax.random.fold_in(
        jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())), step
    )


def row_keys(rng: Key[Array, ""], ids: UInt32[Array, "b"]) -> Key[Array, "b"]:
    """One key an utterance, a function of its id: draws survive permutation, micro-batches and
    another number of hosts."""
    return jax.vmap(lambda i: jax.random.fold_in(rng, i))(ids)
