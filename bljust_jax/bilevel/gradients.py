"""Gradients of one step: each objective's on the shared encoder and on the heads.

`separate` differentiates one objective after another, `fused` the sum of their losses in one
backward pass. Both return `levels.Grads`: one tree per level over the shared leaves, and one tree
over the leaves that single losses own.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bljust_jax.bilevel.alike import group_alike, select, take_each
from bljust_jax.bilevel.levels import Grads
from bljust_jax.bilevel.multi_objective import Level, SeparateGradients, level_name
from bljust_jax.bilevel.schedules import active_steps
from bljust_jax.bilevel.shared_phases import Flag, InForce, PhaseTable, as_weight
from bljust_jax.bilevel.types import Aux, Extras, Means, Objective, TrainState, Tree
from bljust_jax.common import trees
from bljust_jax.parallel.rules import gathered


class StepFacts(NamedTuple):
    """Static facts of a program that both ways of taking gradients read."""

    table: PhaseTable
    shared: Tree  # True at leaves owned by every loss
    owners: Tree  # frozenset of loss names at each leaf
    accumulate: int = 1  # number of micro-batches that each gradient is summed over

    @property
    def head_scale(self) -> str:
        return self.table.recipe.head_scale


def separate(
    facts: StepFacts, now: InForce, state: TrainState, batch: Tree, rng: Callable
) -> tuple[Grads, tuple, Means, dict]:
    """(gradients, level weights, metrics, statistics), with one backward pass per objective.

    An objective that is not in force at this step is skipped, and its metrics have weight 0. On
    static levels the norm of each gradient is logged, and for two objectives their cosine. On
    dynamic levels gradients are kept apart until their weights are known: one tree per objective
    for MGDA, for MoDo two, each of half of the rows; heads are not affected by these weights.
    Objectives that are alike run in one loop (`alike.py`). ValueError if the losses of one
    objective are on different levels or weights.
    """
    table, dynamic = facts.table, facts.table.dynamic_levels
    metrics, stats = {}, {}
    owned = jax.tree.map(lambda x, s: None if s else jnp.zeros_like(x), state.params, facts.shared)
    sums: dict[Level, Tree] = {}
    apart: dict[str, tuple[Tree, ...]] = {}
    on_shared: dict[str, Tree | None] = {}
    done = jnp.float32(0)
    for group in group_alike(table, facts.owners, state, batch):
        losses = [table.losses & set(o.losses) for o in group]
        (level, *_), inner = zip(*(_level_and_weight(table, own) for own in losses), strict=True)
        active = now.is_active(losses[0])
        streams = {s: _depend_on(done, batch[s]) for o in group for s in o.streams}
        keys = {o.name: rng(o.name) for o in group}
        take = functools.partial(_samples, facts, active, dynamic.get(level) == "modo")
        added = None if level in dynamic else inner
        taken, total = take_each(take, group, facts.shared, state, streams, keys, added)
        for objective, own, lam in zip(group, losses, inner, strict=True):
            samples, done, aux = taken[objective.name]
            metrics |= aux.metrics
            stats |= aux.stats
            weight = now.weights[table.levels.index(level)] * lam
            owned = _add_owned(facts, owned, _mean(samples), own, weight)
            if level in dynamic:
                (loss,) = own
                apart[loss] = tuple(select(facts.shared, tree) for tree in samples)
                continue
            on_shared[objective.name] = samples[0] if len(group) == 1 else None
            metrics[f"moo/norm/{objective.name}"] = (as_weight(active) * done, as_weight(active))
        if level not in dynamic:
            sums[level] = total if level not in sums else jax.tree.map(jnp.add, sums[level], total)
    metrics |= _cosines(facts, now, on_shared)
    sums |= {level: SeparateGradients({name: apart[name] for name in level}) for level in dynamic}
    return Grads(owned, tuple(sums[level] for level in table.levels)), now.weights, metrics, stats


def _samples(
    facts: StepFacts,
    active: Flag,
    halves: bool,
    state: TrainState,
    objective: Objective,
    streams: Tree,
    keys: Mapping[str, Any],
) -> tuple[tuple[Tree, ...], Aux]:
    """(gradient of an objective or of the halves of its rows, metrics and statistics)."""
    losses = facts.table.losses & set(objective.losses)
    scale = dict.fromkeys(facts.table.losses, 1.0)  # weights are applied after the backward pass
    args = facts, state, (objective,), losses, scale, streams, keys
    if halves:
        return _gradients_of_halves(*args)
    grads, aux = _gradient_if(active, *args)
    return (grads,), aux


def _cosines(facts: StepFacts, now: InForce, grads: Mapping[str, Tree | None]) -> Means:
    """moo/cos/a|b on the shared leaves, in phases with exactly two objectives on summed levels;
    None for an objective that is in no such phase."""
    metrics = {}
    for a, b in itertools.combinations(grads, 2):
        if (pair := now.is_pair((a, b), among=grads)) is not False:
            cosine = trees.cosine(*(select(facts.shared, grads[name]) for name in (a, b)))
            metrics[f"moo/cos/{a}|{b}"] = (as_weight(pair) * cosine, as_weight(pair))
    return metrics


def fused(
    facts: StepFacts, now: InForce, state: TrainState, batch: Tree, rng: Callable
) -> tuple[Grads, tuple, Means, dict]:
    """(gradients, level weights, metrics, statistics), with one backward pass over all losses that
    are active in the same phases; one that is not in force at this step is skipped.

    Each loss reads shared hidden states through `scale_gradient`, so that the gradient of the
    shared leaves is the penalised direction. The same holds for a head that several of the losses
    own, whose logits they must read through it too. No norms or cosines of single objectives.
    ValueError for a phase with dynamic levels.
    """
    table = facts.table
    if dynamic := table.dynamic_levels:
        raise ValueError(
            f"gradients='fused' sums all losses, but phase {table.phases[0].name} keeps the "
            f"gradients of {', '.join(map(level_name, dynamic))} apart: use gradients='separate'"
        )
    scale = {n: now.weights[table.level_of(n)] * table.inner(n) for n in table.losses}
    total, metrics, stats = None, {}, {}
    for objectives in _by_activity(table):
        losses = table.losses & {n for o in objectives for n in o.losses}
        streams = {s: batch[s] for o in objectives for s in o.streams}
        if total is not None:
            done = trees.norm(select(facts.shared, total))
            streams = {s: _depend_on(done, rows) for s, rows in streams.items()}
        keys = {o.name: rng(o.name) for o in objectives}
        grads, aux = _gradient_if(
            now.is_active(losses), facts, state, objectives, losses, scale, streams, keys
        )
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        metrics, stats = metrics | aux.metrics, stats | aux.stats

    def own(grad, shared, owners):
        if shared:
            return None
        active = owners & table.losses
        if facts.head_scale == "plain" or len(active) != 1:
            return grad
        weight = scale[next(iter(active))]
        return jnp.where(weight == 0, 0, jnp.asarray(weight, grad.dtype) * grad)

    owned = jax.tree.map(own, total, facts.shared, facts.owners)
    direction = select(facts.shared, total)
    return Grads(owned, (direction,)), (jnp.float32(1),), metrics, stats


def _by_activity(table: PhaseTable) -> list[tuple[Objective, ...]]:
    """The objectives in groups that are active in the same phases."""
    groups: dict[tuple[bool, ...], list[Objective]] = {}
    for o in table.objectives:
        active = tuple(bool(p.losses & set(o.losses)) for p in table.phases)
        groups.setdefault(active, []).append(o)
    return [tuple(group) for group in groups.values()]


def _gradient_if(
    active: Flag, facts: StepFacts, state: TrainState, objectives: tuple[Objective, ...], *args: Any
) -> tuple[Tree, Aux]:
    """`_gradient` if `active`, else gradients and metrics of 0 and the statistics of the state,
    without any of its computation."""
    if active is True:
        return _gradient(facts, state, objectives, *args)
    losses, *operands = args

    # jitted, so that the shapes and the branch take one trace
    @jax.jit
    def take(state, *operands):
        return _gradient(facts, state, objectives, losses, *operands)

    grads, aux = jax.eval_shape(take, state, *operands)

    def skip(state, *operands):
        del operands
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, aux.metrics))
        arrays = state.stats | state.frozen
        return zeros[0], Aux(zeros[1], {name: arrays[name] for name in aux.stats})

    return jax.lax.cond(active, take, skip, state, *operands)


def _gradient(
    facts: StepFacts,
    state: TrainState,
    objectives: tuple[Objective, ...],
    active: frozenset[str],
    scale: Mapping[str, Any],
    streams: Tree,
    keys: Mapping[str, Any],
) -> tuple[Tree, Aux]:
    """(gradient of the sum of the active losses, metrics and statistics of the objectives).

    With micro-batches the sums of each loss are divided by its weight in the whole batch. These
    weights (numbers of frames, labels or utterances) come first, in a pass from which the compiler
    drops the encoder, as only they are read.
    """
    frozen = gathered(state.frozen, stacks=False)
    extras = Extras(state.step, frozen, state.stats, state.ema, scale)

    def mean_loss(params, part, weights):
        params = gathered(params, stacks=False)
        losses, metrics, stats = {}, {}, {}
        for objective in objectives:
            own = {stream: part[stream] for stream in objective.streams}
            step = active_steps(facts.table.recipe.phases, objective.losses, state.step)
            given = extras._replace(step=step)
            pairs, aux = objective.apply(params, given, own, keys[objective.name])
            losses |= {name: pair for name, pair in pairs.items() if name in active}
            metrics, stats = metrics | aux.metrics, stats | aux.stats
        metrics = {_loss_metric(name): pair for name, pair in losses.items()} | metrics
        weights = weights or {name: weight for name, (_, weight) in losses.items()}
        mean = sum(s / jnp.maximum(weights[n], 1) for n, (s, _) in losses.items())
        return mean, Aux(metrics, stats)

    take = jax.grad(mean_loss, has_aux=True)
    if facts.accumulate == 1:
        return take(state.params, streams, None)
    parts = {name: _split_rows(name, rows, facts.accumulate) for name, rows in streams.items()}

    def weights_of(part):
        _, aux = mean_loss(state.params, part, None)
        return {name: aux.metrics[_loss_metric(name)][1] for name in sorted(active)}

    weights = jax.tree.map(lambda w: jnp.sum(w, axis=0), jax.lax.map(weights_of, parts))

    def add(total, part):
        grads, aux = take(state.params, part, weights)
        return jax.tree.map(jnp.add, total, grads), aux

    grads, aux = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, state.params), parts)
    return grads, _merge(aux)


def _loss_metric(name: str) -> str:
    return f"train/{name}/loss"


def _gradients_of_halves(
    facts: StepFacts,
    state: TrainState,
    objectives: tuple[Objective, ...],
    active: frozenset[str],
    scale: Mapping[str, Any],
    streams: Tree,
    keys: Mapping[str, Any],
) -> tuple[tuple[Tree, Tree], Aux]:
    """(gradients of the even and of the odd rows, merged metrics and statistics).

    Each half has its own random key. The halves run one after the other in a loop (`lax.map`): one
    program of half the rows, with the compile time of a single gradient and half its activations.
    Both at once (`jax.vmap`) would turn the gradients of convolution kernels into grouped
    convolutions, and keep the activations of the whole batch. ValueError for an odd number of rows.
    """
    halves = {name: _split_rows(name, rows, 2) for name, rows in streams.items()}
    pairs = {name: jax.random.split(key) for name, key in keys.items()}
    both, aux = jax.lax.map(
        lambda half: _gradient(facts, state, objectives, active, scale, *half), (halves, pairs)
    )
    even, odd = (jax.tree.map(lambda g, n=n: g[n], both) for n in (0, 1))
    return (even, odd), _merge(aux)


def _mean(samples: tuple[Tree, ...]) -> Tree:
    """The mean of one or two trees."""
    if len(samples) == 1:
        return samples[0]
    return jax.tree.map(lambda a, b: (a + b) / 2, *samples)


def _merge(aux: Aux) -> Aux:
    """Metrics and statistics of several parts of a batch, stacked on axis 0, as of one batch: sums
    and weights are added, statistics averaged."""
    metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), aux.metrics)
    stats = jax.tree.map(lambda x: jnp.mean(x, axis=0).astype(x.dtype), aux.stats)
    return Aux(metrics, stats)


def _split_rows(stream: str, rows: Tree, parts: int) -> Tree:
    """x[B] -> [n, B // n]: row i goes to part i mod n. Neighbouring rows are on one device, so that
    a sharded batch is split without communication. ValueError unless n divides B."""

    def split(x):
        if x.shape[0] % parts:
            raise ValueError(
                f"stream {stream}: {x.shape[0]} rows cannot be split into {parts} parts, which "
                "MoDo (halves) and config.accumulate need"
            )
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    return jax.tree.map(split, rows)


def _depend_on(done: Float[Array, ""], batch: Tree) -> Tree:
    """The same integers with a data dependency on `done` (a norm, never negative), so that the
    activations of one objective are freed before those of the next. Without it XLA runs all forward
    passes first, and memory grows with the number of objectives."""
    return jax.tree.map(lambda x: x + (done < 0).astype(x.dtype), batch)


def _level_and_weight(table: PhaseTable, losses: frozenset[str]) -> tuple[Level, float | int]:
    """(level of an objective's active losses, their weight within it)."""
    dynamic = table.dynamic_levels
    places = {(table.level_of(n), table.inner(n)) for n in losses}
    if len(places) > 1:
        raise ValueError(
            f"losses {sorted(losses)} share a forward but not a level or weight: use "
            "gradients='fused'"
        )
    ((n, inner),) = places
    level = table.levels[n]
    if level not in dynamic:
        return level, inner
    if len(losses) > 1:
        raise ValueError(f"losses {sorted(losses)} share a forward: {dynamic[level]} parts them")
    return level, 1


def _add_owned(
    facts: StepFacts, owned: Tree, grads: Tree, losses: frozenset[str], weight: Any
) -> Tree:
    """Add an objective's gradient to the leaves that its losses own: unweighted for a sole owner
    (head_scale="plain"), else multiplied by the weight of its level."""

    def add(total, grad, owners):
        if total is None or not owners & losses:
            return total
        plain = facts.head_scale == "plain" and owners <= losses
        return total + (
            grad if plain else jnp.where(weight == 0, 0, jnp.asarray(weight, grad.dtype) * grad)
        )

    return jax.tree.map(add, owned, grads, facts.owners, is_leaf=lambda x: x is None)


@jax.custom_vjp
def scale_gradient(x: Array, scale: Any) -> Array:
    """Identity whose cotangent is multiplied by `scale`; at scale 0 it is 0 even if not finite."""
    return x


def _scale_forward(x, scale):
    return x, scale


def _scale_backward(scale, ct):
    scale = jnp.asarray(scale, ct.dtype)
    return jnp.where(scale == 0, 0, scale * ct), jnp.zeros_like(scale)


scale_gradient.defvjp(_scale_forward, _scale_backward)
