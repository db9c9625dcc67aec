"""Training step: gradients, their combination over levels, optimizer update, EMA parameters.

    direction(shared)    = sum over levels l of  w_l * that level's combined gradients  (levels.py)
    direction(own head)  = that objective's plain gradient

A step is pure: (state, batch) -> (state, metrics). Schedules are functions of `state.step`; a step
with non-finite updates changes only the step counter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool

from bljust_jax.bilevel import gradients
from bljust_jax.bilevel.levels import Grads
from bljust_jax.bilevel.multi_objective import level_metrics, update_metrics
from bljust_jax.bilevel.rng import Seed, stream_key
from bljust_jax.bilevel.schedules import active_steps
from bljust_jax.bilevel.shared_phases import InForce, PhaseTable
from bljust_jax.bilevel.types import Means, Phase, Recipe, TrainState, Tree


def is_finite(tree: Tree) -> Bool[Array, ""]:
    """Whether all elements of all leaves are finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def init_state(
    recipe: Recipe, optimizer: optax.GradientTransformationExtraArgs, seed: Seed
) -> TrainState:
    """The state at step 0: randomly initialised parameters, the EMA equal to them."""
    # strong types: a weakly typed leaf would compile the first step twice
    params, frozen, stats = jax.tree.map(
        lambda x: jnp.asarray(x, x.dtype), recipe.init(stream_key(seed, "init", 0))
    )
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.int32(0), params, optimizer.init(params), ema, frozen, stats)


def jit_init_state(recipe: Recipe, optimizer: optax.GradientTransformationExtraArgs) -> Any:
    """`init_state` as one jitted function of the seed.

    XLA:CPU takes half a second to optimize each random draw, one per parameter; at optimization
    level 1 a tenth of that.
    """
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(lambda seed: init_state(recipe, optimizer, seed), compiler_options=options)


def compute_init_state(
    recipe: Recipe, optimizer: optax.GradientTransformationExtraArgs, seed: int
) -> TrainState:
    """`init_state` in one program."""
    return jit_init_state(recipe, optimizer)(np.int32(seed))


def make_train_step(
    recipe: Recipe,
    phases: tuple[Phase, ...],
    optimizer: optax.GradientTransformationExtraArgs,
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
            optimizer, now, state, grads, level_weights, new_stats, teachers
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
    optimizer: optax.GradientTransformationExtraArgs,
    now: InForce,
    state: TrainState,
    grads: Grads,
    level_weights: tuple,
    new_stats: Tree,
    teachers: Tree,
) -> tuple[TrainState, Any, Tree, Bool[Array, ""]]:
    """(next state, state of the combiner, updates, whether all updates are finite): what a step
    does after its gradients. If they are not, only the step counter changes.

    teachers: those of `move_teachers`"""
    updates, opt_state = optimizer.update(
        grads,
        state.opt_state,
        state.params,
        level_weights=level_weights,
        step=state.step,
        lr=now.lr,
        active=now.trains,
    )
    combiner_state, *_ = opt_state
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(now.ema_decay, (1 + state.step) / (10 + state.step))
    ema = jax.tree.map(
        lambda e, p: decay.astype(e.dtype) * e + (1 - decay).astype(e.dtype) * p,
        state.ema,
        params,
    )
    ok = is_finite(updates)
    new = (params, opt_state, ema, state.stats | new_stats, teachers)
    before = {name: state.frozen[name] for name in teachers}
    old = (state.params, state.opt_state, state.ema, state.stats, before)
    # a conditional rather than a `where` on every leaf takes a third less time to compile
    params, opt_state, ema, stats, teachers = jax.lax.cond(ok, lambda: new, lambda: old)
    frozen = {**state.frozen, **teachers} if teachers else state.frozen
    kept = TrainState(state.step + 1, params, opt_state, ema, frozen, stats)
    return kept, combiner_state, updates, ok
