"""Several objectives, one direction: penalised levels over the shared parameters.

The bilevel problem of BL-JUST (arXiv 2401.06980; journal version arXiv 2412.08548) over encoder
`theta` and heads `phi`, `psi` is

    min_{theta, phi} f(theta, phi)   subject to   theta in argmin_theta' min_psi g(theta', psi)

with f the supervised (upper) and g the self-supervised (lower) loss. The lower problem holds no
upper variable, so its optimal value v is a constant, and the penalised form

    min_{theta, phi, psi}  f(theta, phi) + gamma_k (g(theta, psi) - v)

needs neither an inner solve nor second derivatives. Its direction on the shared parameters is

    direction = sum over levels l of  w_l * (sum of the gradients of that level's objectives)

with w = (1, gamma_k, ...), which is all that this module computes, as the first link of an optax
chain. It knows nothing of speech.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Tree = Any
Scalar = Float[Array, ""] | float


class Grads(NamedTuple):
    """What the combiner receives in place of one gradient tree.

    `owned` has the structure of the parameters with None at every shared leaf; `levels[n]` has None
    at every leaf that is not shared and holds the summed gradient of level n's objectives
    elsewhere.
    """

    owned: Tree
    levels: tuple[Tree, ...]


def penalty_schedule(start: float, slope: float, cap: float) -> Callable[[Any], Array]:
    """gamma_k = min(cap, start + slope * k), with k the steps (or epochs, if the caller divides)
    spent in phases of one name."""
    if cap < start or slope < 0:
        raise ValueError(
            f"a penalty rises from start to cap: start={start}, slope={slope}, cap={cap}"
        )
    return lambda k: jnp.minimum(jnp.float32(cap), jnp.float32(start) + jnp.float32(slope) * k)


def combine_levels() -> optax.GradientTransformationExtraArgs:
    """direction = sum_l w_l * levels[l] on the shared leaves, `owned` elsewhere.

    The weights arrive as the extra argument `level_weights`. A weight of 0 selects: the direction
    is then the other levels' sum bit for bit, whatever the level holds, NaN included.
    """

    def init(params):
        del params
        return optax.EmptyState()

    def update(grads: Grads, state, params=None, *, level_weights, **extra):
        del params, extra
        if len(level_weights) != len(grads.levels):
            raise ValueError(f"{len(grads.levels)} levels but {len(level_weights)} weights")
        shared = None
        for weight, level in zip(level_weights, grads.levels, strict=True):
            shared = _add_weighted(shared, weight, level)
        return _join(grads.owned, shared), state

    return optax.GradientTransformationExtraArgs(init, update)


def _add_weighted(total: Tree | None, weight: Scalar, level: Tree) -> Tree:
    """total + weight * level, where weight 0 leaves the total untouched."""
    weight = jnp.asarray(weight, jnp.float32)
    if total is None:
        return jax.tree.map(lambda g: jnp.where(weight == 0, 0, weight.astype(g.dtype) * g), level)
    return jax.tree.map(
        lambda t, g: jnp.where(weight == 0, t, t + weight.astype(g.dtype) * g), total, level
    )


def _join(owned: Tree, shared: Tree) -> Tree:
    return jax.tree.map(
        lambda o, s: s if o is None else o, owned, shared, is_leaf=lambda x: x is None
    )


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
