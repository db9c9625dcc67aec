"""Parameter trees: path names, inner products, norms and cosines."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Tree = Any


def dot(a: Tree, b: Tree) -> Float[Array, ""]:
    """<a, b> in float32, summed leaf by leaf; nothing is concatenated."""
    return sum(
        (
            jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32))
            for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
        ),
        start=jnp.float32(0),
    )


def norm(a: Tree) -> Float[Array, ""]:
    """Euclidean norm over all leaves."""
    return jnp.sqrt(dot(a, a))


def cosine(a: Tree, b: Tree) -> Float[Array, ""]:
    """<a, b> / (|a| |b|), 0 where either vanishes: how far two objectives pull the shared
    parameters the same way."""
    scale = norm(a) * norm(b)
    return jnp.where(scale > 0, dot(a, b) / jnp.where(scale > 0, scale, 1), 0)


def path_name(path: tuple) -> str:
    """`encoder/blocks/attention/query/kernel`: what the regexes of groups and shardings see."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
