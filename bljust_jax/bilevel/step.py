"""Training step: gradients, their combination over levels, optimizer update, EMA parameters.

    direction(shared)    = sum over levels l of  w_l * that level's combined gradients  (levels.py)
    direction(own head)  = that objective's plain gradient

A step is pure: (state, batch) -> (state, metrics). Schedules are functions of `state.step`; a step
with a direction that is not finite changes only the step counter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool

from bljust_jax.bilevel import gradients
from bljust_jax.bilevel.levels import Grads
from bljust_jax.bilevel.multi_objective import level_metrics, update_metrics
from bljust_jax.bilevel.optimizer import Optimizer, sum_of_squares
from bljust_jax.bilevel.rng import Seed, stream_key
from bljust_jax.bilevel.schedules import active_steps
from bljust_jax.bilevel.shared_phases import Flag, InForce, PhaseTable
from bljust_jax.bilevel.types import Means, Phase, Recipe, TrainState, Tree


def init_state(recipe: Recipe, optimizer: Optimizer, seed: Seed) -> TrainState:
    """The state at step 0: randomly initialised parameters, the EMA equal to them."""
    # strong types: a weakly typed leaf would compile the first step twice
    params, frozen, stats = jax.tree.map(
        lambda x: jnp.asarray(x, x.dtype), recipe.init(stream_key(seed, "init", 0))
    )
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.int32(0), params, optimizer.init(params), ema, frozen, stats)


def jit_init_state(recipe: Recipe, optimizer: Optimizer) -> Any:
    """`init_state` as one jitted function of the seed.

    XLA:CPU takes half a second to optimize each random draw, one per parameter; at optimization
    level 1 a tenth of that.
    """
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(lambda seed: init_state(recipe, optimizer, seed), compiler_options=options)


def compute_init_state(recipe: Recipe, optimizer: Optimizer, seed: int) -> TrainState:
    """`init_state` in one program."""
    return jit_init_state(recipe, optimizer)(np.int32(seed))


def make_train_step(
    recipe: Recipe,
    phases: tuple[Phase, ...],
    optimizer: Optimizer,
    groups: Tree,
    seed: Seed,
    accumulate: int = 1,
) -> Callable[[TrainState, Tree], tuple[TrainState, Means]]:
    """step(state, batch) -> (state, metrics) of the phases that share a program
    (`shared_phases.group_phases`) or of one, to be jitted with the state donated.

    groups: the `Group` of each parameter (`optimizer.group_of_parameters`)
    accumulate: number of micro-batches that gradients are summed over: the same step in less memory

    `state.step` decides which of the phases is in force. The batch has every stream that one of
    them reads; a stream that the phase in force does not read changes no result. Objectives that
    are in none of the phases are not in the program; those without a loss in the phase in force are
    skipped, and their metrics have weight 0.
    """
    table = PhaseTable(recipe, phases)
    owners = jax.tree.map(lambda g: g.owners, groups)
    shared = jax.tree.map(
        lambda o: o >= recipe.losses, owners, is_leaf=lambda x: isinstance(x, frozenset)
    )
    facts = gradients.StepFacts(table, shared, owners, accumulate)
    take_gradients = {"separate": gradients.separate, "fused": gradients.fused}[recipe.gradients]

    def train_step(state: TrainState, batch: Tree) -> tuple[TrainState, Means]:
        now = table.at(state.step)
        teachers = move_teachers(recipe, now, state)
        taught = state._replace(frozen={**state.frozen, **teachers}) if teachers else state
        grads, level_weights, metrics, new_stats = take_gradients(
            facts, now, taught, batch, lambda name: stream_key(seed, name, state.step)
        )
        moved = {name: new_stats.pop(name) for name in [*new_stats] if name in state.frozen}
        teachers |= moved
        new, combiner_state, updates, ok = apply_gradients(
            optimizer, groups, now, state, grads, level_weights, new_stats, teachers
        )
        metrics |= level_metrics(combiner_state, tuple(table.dynamic_levels)) | now.metrics
        metrics |= update_metrics(grads.levels, updates)
        metrics["train/skipped"] = (1.0 - ok, 1.0)
        return new, metrics

    return train_step


def move_teachers(recipe: Recipe, now: InForce, state: TrainState) -> dict[str, Tree]:
    """The teachers of the losses that are active at this step, as its targets need them."""
    moved = {}
    for name, teacher in recipe.teachers.items():
        active = now.is_active(frozenset({teacher.loss}))
        if active is False or teacher.decay is None:
            continue
        k = active_steps(recipe.phases, (teacher.loss,), state.step)
        decay = jnp.where(k == 0, 0, jnp.asarray(teacher.decay(k), jnp.float32))

        def move(t, p, decay=decay, active=active):
            return jnp.where(active, decay * t + (1 - decay) * p, t)

        moved[name] = jax.tree.map(move, state.frozen[name], state.params[teacher.part])
    return moved


def apply_gradients(
    optimizer: Optimizer,
    groups: Tree,
    now: InForce,
    state: TrainState,
    grads: Grads,
    level_weights: tuple,
    new_stats: Tree,
    teachers: Tree,
) -> tuple[TrainState, Any, Tree, Bool[Array, ""]]:
    """(next state, state of the combiner, updates, whether the direction is finite): what a step
    does after its gradients. If it is not, only the step counter changes.

    The direction is checked before the update, so that one pass over each leaf reads gradient,
    moments, parameter and average, and writes either their new values or the old ones. A check of
    the updates would need a pass of its own.

    groups: the `Group` of each parameter
    teachers: those of `move_teachers`
    """
    extra = {"level_weights": level_weights, "step": state.step}
    direction, combiner_state = optimizer.combiner.update(
        grads, state.opt_state[0], state.params, **extra
    )
    decay = jnp.minimum(now.ema_decay, (1 + state.step) / (10 + state.step))
    ok = is_direction_finite(direction, groups, now.trains)
    updates, moments = optimizer.rule.update(
        *(direction, state.opt_state[1], state.params), **extra, lr=now.lr, active=now.trains
    )
    params = optax.apply_updates(state.params, updates)
    ema = jax.tree.map(
        lambda e, p: decay.astype(e.dtype) * e + (1 - decay).astype(e.dtype) * p,
        state.ema,
        params,
    )
    new = TrainState(
        state.step,
        params,
        (combiner_state, moments),
        ema,
        {**state.frozen, **teachers},
        state.stats | new_stats,
    )
    kept = jax.tree.map(lambda n, old: n if n is old else jnp.where(ok, n, old), new, state)
    return kept._replace(step=state.step + 1), combiner_state, updates, ok


def is_direction_finite(
    direction: Tree, groups: Tree, trains: Mapping[str, Flag]
) -> Bool[Array, ""]:
    """Whether the sum of squares of each group that trains is finite, in the dtype of its leaves.

    Clipping needs the same sums, so that the check costs nothing. False also for a float32
    direction longer than 1.8e19.
    """
    leaves: dict[str, list] = {}
    for x, group in zip(*map(jax.tree.leaves, (direction, groups)), strict=True):
        leaves.setdefault(group.name, []).append(x)
    ok = jnp.bool_(True)
    for name, own in leaves.items():
        if trains[name] is not False:
            ok &= jnp.isfinite(sum_of_squares(own)) | jnp.logical_not(trains[name])
    return ok
