"""What encoders of stacked blocks share: initial parameters from one draw, dropout keys."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key


def draw(rng: Key[Array, ""], shapes: dict[str, Any]) -> dict[str, Any]:
    """Float32 arrays of the given shapes: leaves "kernel" normal with variance 1 / fan-in, "scale"
    1, others 0.

    A kernel's fan-in is the product of its axes but the last; leaves under "blocks" are stacked on
    axis 0, which does not count. One draw serves all: an initialiser a parameter would compile for
    many times as long.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
        shapes, is_leaf=lambda node: isinstance(node, tuple)
    )
    sizes = [math.prod(shape) if path[-1].key == "kernel" else 0 for path, shape in leaves]
    ends = list(itertools.accumulate(sizes))

    def fill(rng: Key[Array, ""]) -> list[Array]:
        normal = jax.random.normal(rng, (ends[-1],), jnp.float32)
        arrays = []
        for (path, shape), size, end in zip(leaves, sizes, ends, strict=True):
            if size:
                own = shape[1:] if path[0].key == "blocks" else shape
                kernel = normal[end - size : end].reshape(shape)
                arrays.append(kernel * math.prod(own[:-1]) ** -0.5)
            else:
                arrays.append(jnp.full(shape, float(path[-1].key == "scale"), jnp.float32))
        return arrays

    return jax.tree.unflatten(treedef, jax.jit(fill)(rng))


def dropout_keys(rng: Key[Array, ""], count: int) -> Key[Array, "n"]:
    """`count` fast (rbg) keys."""
    bits = jax.random.bits(rng, (4,), jnp.uint32)
    return jax.random.split(jax.random.wrap_key_data(bits, impl="rbg"), count)
