"""Parameter trees: path names of leaves, inner products, norms, cosines and digests."""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Tree = Any


def path_name(path: tuple) -> str:
    """`encoder/blocks/attention/query/kernel`: the spelling that the regular expressions of groups,
    shardings and exports match."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """(path name, leaf) of each leaf; `is_leaf` as in `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return [(path_name(path), leaf) for path, leaf in leaves]


def map_named(function: Callable[[str, Any], Any], tree: Tree) -> Tree:
    """A tree of `function(path name, leaf)`."""
    return jax.tree_util.tree_map_with_path(lambda path, x: function(path_name(path), x), tree)


def keyed_leaves(tree: Tree) -> list[tuple[str, Any]]:
    """(`['encoder'].blocks[0]`, leaf) of each leaf: the spelling in digests and in the fingerprints
    that checkpoints store, which therefore cannot change."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def digest(tree: Tree) -> str:
    """16 hexadecimal digits of the SHA-256 over keys, types, shapes and bytes of all leaves: equal
    digests mean equal bits."""
    sha = hashlib.sha256()
    for key, leaf in keyed_leaves(tree):
        array = np.asarray(jax.device_get(leaf))
        sha.update(f"{key} {array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]


def dot(a: Tree, b: Tree) -> Float[Array, ""]:
    """<a, b> in float32, summed leaf by leaf without concatenation."""
    pairs = zip(*map(jax.tree.leaves, (a, b)), strict=True)
    products = (jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32)) for x, y in pairs)
    return sum(products, start=jnp.float32(0))


def norm(a: Tree) -> Float[Array, ""]:
    """Euclidean norm over all leaves."""
    return jnp.sqrt(dot(a, a))


def cosine(a: Tree, b: Tree) -> Float[Array, ""]:
    """<a, b> / (|a| |b|), 0 if either norm is 0: for gradients of two objectives, how well their
    directions on the shared parameters agree."""
    scale = norm(a) * norm(b)
    return jnp.where(scale > 0, dot(a, b) / jnp.where(scale > 0, scale, 1), 0)
