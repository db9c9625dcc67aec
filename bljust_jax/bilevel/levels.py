"""Level combiner: one direction on the shared parameters from the gradients of all objectives.

The bilevel problem of BL-JUST (arXiv 2401.06980; journal version arXiv 2412.08548) over encoder
`theta` and heads `phi`, `psi` is

    min_{theta, phi} f(theta, phi)   subject to   theta in argmin_theta' min_psi g(theta', psi)

with f the supervised (upper) and g the self-supervised (lower) loss. The lower problem has no
upper variable, so its optimal value v is a constant, and the penalised form

    min_{theta, phi, psi}  f(theta, phi) + gamma_k (g(theta, psi) - v)

needs neither an inner solve nor second derivatives. With levels of several objectives (M2ASR,
Interspeech 2024; Objective Soups, arXiv 2508.09228) the direction on the shared parameters is

    direction = sum over levels l of  w_l * sum over the level's objectives i of  lam_i G_i

with w = (1, gamma_k, ...) and G_i the gradient of objective i. A static level has fixed lam and is
passed summed. For a dynamic level lam is computed at each step, on the simplex: the one that
worsens no objective (MGDA), or a step towards it (MoDo; see `Conflict`). The combiner is the first
transformation of an optax chain and does not depend on speech.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from bljust_jax.bilevel.multi_objective import (
    Conflict,
    Level,
    LevelState,
    SeparateGradients,
    combine_dynamic,
    initial_level_state,
    level_name,
)

Tree = Any
Scalar = Float[Array, ""] | float
DEFAULT = Conflict()


class Grads(NamedTuple):
    """Input of the combiner, in place of one gradient tree.

    owned: the structure of the parameters, with None at every shared leaf
    levels: for a static level a tree with None at every leaf that is not shared, the sum of the
        gradients of its objectives; for a dynamic level `SeparateGradients`
    """

    owned: Tree
    levels: tuple[Tree | SeparateGradients, ...]


class CombinerState(NamedTuple):
    """The state of each dynamic level, by `level_name`."""

    levels: dict[str, LevelState]


def combine_levels(
    conflict: Conflict = DEFAULT, dynamic: Sequence[Level] = ()
) -> optax.GradientTransformationExtraArgs:
    """direction = sum_l w_l * sum_i lam_i G_i on the shared leaves, `owned` elsewhere.

    `dynamic` lists the dynamic levels of all phases. The weights w are the extra argument
    `level_weights`, the step is `step` (an integer). A weight of 0 selects: the direction is then
    the sum of the other levels bit for bit, even if the level has NaNs. The state of a dynamic
    level keeps its last finite values; without dynamic levels there is no state. `update` raises
    ValueError for another number of weights than levels, and for an unknown dynamic level.
    """

    def init(params):
        levels = {
            level_name(names): initial_level_state(conflict, names, params) for names in dynamic
        }
        return CombinerState(levels) if levels else optax.EmptyState()

    def update(grads: Grads, state, params=None, *, level_weights, step=0, **extra):
        del params, extra
        if len(level_weights) != len(grads.levels):
            raise ValueError(f"{len(grads.levels)} levels but {len(level_weights)} weights")
        shared, new = None, {}
        for weight, level in zip(level_weights, grads.levels, strict=True):
            if isinstance(level, SeparateGradients):
                name = level_name(tuple(level.samples))
                if name not in map(level_name, dynamic):
                    raise ValueError(f"level {name} is not among the dynamic levels {dynamic}")
                level, new[name] = combine_dynamic(conflict, level, state.levels[name], step)
            shared = _add_weighted(shared, weight, level)
        state = state._replace(levels={**state.levels, **new}) if new else state
        return _join(grads.owned, shared), state

    return optax.GradientTransformationExtraArgs(init, update)


def _add_weighted(total: Tree | None, weight: Scalar, level: Tree) -> Tree:
    """total + weight * level; a weight of 0 leaves the total unchanged."""
    weight = jnp.asarray(weight, jnp.float32)
    if total is None:
        return jax.tree.map(lambda g: jnp.where(weight == 0, 0, weight.astype(g.dtype) * g), level)
    return jax.tree.map(
        lambda t, g: jnp.where(weight == 0, t, t + weight.astype(g.dtype) * g), total, level
    )


def _join(owned: Tree, shared: Tree) -> Tree:
    """One tree of the leaves of both."""
    return jax.tree.map(
        lambda o, s: s if o is None else o, owned, shared, is_leaf=lambda x: x is None
    )
