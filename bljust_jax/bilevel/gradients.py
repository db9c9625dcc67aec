"""The gradients of one step: which losses are taken on which batches, and who sees what of them.

`separate` differentiates one objective after another, `fused` the sum of their losses in one
backward pass. Both give the directions of `bilevel.Grads`: a tree a level over the shared leaves,
and one over the leaves that have owners.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bljust_jax.bilevel.levels import Grads
from bljust_jax.bilevel.multi_objective import Apart, Level, level_name
from bljust_jax.bilevel.types import Aux, Extras, Means, Objective, Phase, Recipe, TrainState, Tree
from bljust_jax.common import trees
from bljust_jax.parallel.rules import gathered


def _keep(mask: Tree, tree: Tree) -> Tree:
    """The leaves where the mask holds, None elsewhere."""
    return jax.tree.map(lambda m, x: x if m else None, mask, tree)


def _after(batch: Tree, done: Float[Array, ""]) -> Tree:
    """The same integers, made to depend on `done` (a norm, never negative), so that one objective's
    activations are freed before the next one's are made. Without it XLA runs all forward passes
    first and memory grows with the number of objectives."""
    return jax.tree.map(lambda x: x + (done < 0).astype(x.dtype), batch)


class PhaseFacts(NamedTuple):
    """The static facts of a phase that both ways of taking gradients read."""

    recipe: Recipe
    phase: Phase
    shared: Tree  # True at leaves owned by every loss
    owners: Tree  # frozenset of loss names at each leaf
    accumulate: int = 1  # micro-batches that each gradient is summed over


def separate(
    this: PhaseFacts, state: TrainState, batch: Tree, rng: Callable, weights: tuple
) -> tuple[Grads, tuple, Means, dict]:
    """One gradient an objective, one after another. On static levels norms come for free, and with
    two objectives their cosine. On dynamic levels gradients stay apart, and live until their
    weights are known: one tree an objective for MGDA, for MoDo two, each of half of the batch's
    rows; heads do not see these weights. ValueError where the losses of one objective would have
    to part."""
    phase, dynamic = this.phase, this.phase.dynamic_levels
    metrics, stats = {}, {}
    owned = jax.tree.map(lambda x, s: None if s else jnp.zeros_like(x), state.params, this.shared)
    sums: dict[Level, Tree] = {}
    apart: dict[str, tuple[Tree, ...]] = {}
    on_shared: dict[str, Tree] = {}
    done = jnp.float32(0)
    for objective in this.recipe.active(phase):
        wanted = phase.losses & set(objective.losses)
        level, inner = _place(phase, dynamic, wanted)
        streams = {s: _after(batch[s], done) for s in objective.streams}
        take = functools.partial(_gradient, this, state, (objective,), wanted, _plain(phase))
        sample = _halves if dynamic.get(level) == "modo" else _whole
        grads, samples, aux = sample(take, streams, {objective.name: rng(objective.name)})
        metrics |= aux.metrics
        stats |= aux.stats
        weight = weights[phase.levels.index(level)] * inner
        owned = _add_owned(this, owned, grads, wanted, weight)
        samples = tuple(_keep(this.shared, tree) for tree in samples)
        done = trees.norm(samples[-1])
        if level in dynamic:
            (loss,) = wanted
            apart[loss] = samples
            continue
        (on_shared[objective.name],) = samples
        sums[level] = _add_inner(sums.get(level), inner, *samples)
        metrics[f"moo/norm/{objective.name}"] = (done, 1.0)
    if len(on_shared) == 2:
        a, b = on_shared
        metrics[f"moo/cos/{a}|{b}"] = (trees.cosine(on_shared[a], on_shared[b]), 1.0)
    sums |= {level: Apart({name: apart[name] for name in level}) for level in dynamic}
    levels = tuple(sums[level] for level in phase.levels)
    return Grads(owned, levels), weights, metrics, stats


def _place(
    phase: Phase, dynamic: Mapping[Level, str], losses: frozenset[str]
) -> tuple[Level, float | int]:
    """(the level of an objective's active losses, their weight inside it)."""
    places = {(phase.level_of(n), phase.inner.get(n, 1)) for n in losses}
    if len(places) > 1:
        raise ValueError(
            f"losses {sorted(losses)} share a forward but not a level or weight: use "
            "gradients='fused'"
        )
    ((n, inner),) = places
    level = phase.levels[n]
    if level not in dynamic:
        return level, inner
    if len(losses) > 1:
        raise ValueError(f"losses {sorted(losses)} share a forward: {dynamic[level]} parts them")
    return level, 1


def _add_inner(total: Tree | None, inner: float | int, grads: Tree) -> Tree:
    """total + inner * grads, where an inner weight of 0 leaves the total untouched."""
    if inner != 1:
        grads = jax.tree.map(lambda g: jnp.zeros_like(g) if inner == 0 else inner * g, grads)
    return grads if total is None else jax.tree.map(jnp.add, total, grads)


def _plain(phase: Phase) -> dict[str, Any]:
    """`Extras.scale` of gradients that are weighed after they are taken."""
    return dict.fromkeys(phase.losses, 1.0)


def _gradient(
    this: PhaseFacts,
    state: TrainState,
    objectives: tuple[Objective, ...],
    wanted: frozenset[str],
    scale: Mapping[str, Any],
    streams: Tree,
    keys: Mapping[str, Any],
) -> tuple[Tree, Aux]:
    """(the gradient of the sum of the wanted losses, what the objectives report, losses included).

    Over micro-batches the sums of each loss are divided by its weight in the whole batch. Weights
    (frames, labels, utterances) are found first, which costs no encoder: nothing of it is read.
    """
    frozen = gathered(state.frozen, stacks=False)
    extras = Extras(state.step, frozen, state.stats, state.ema, scale)

    def listen(params, part):
        params = gathered(params, stacks=False)
        losses, metrics, stats = {}, {}, {}
        for objective in objectives:
            own = {stream: part[stream] for stream in objective.streams}
            found, aux = objective.apply(params, extras, own, keys[objective.name])
            losses |= {name: pair for name, pair in found.items() if name in wanted}
            metrics, stats = metrics | aux.metrics, stats | aux.stats
        metrics = {f"train/{name}/loss": pair for name, pair in losses.items()} | metrics
        return losses, Aux(metrics, stats)

    def mean(params, part, weights):
        losses, aux = listen(params, part)
        weights = weights or {name: weight for name, (_, weight) in losses.items()}
        return sum(s / jnp.maximum(weights[n], 1) for n, (s, _) in losses.items()), aux

    take = jax.grad(mean, has_aux=True)
    if this.accumulate == 1:
        return take(state.params, streams, None)
    parts = {name: _split(name, rows, this.accumulate) for name, rows in streams.items()}
    weights = jax.lax.map(
        lambda part: {n: w for n, (_, w) in listen(state.params, part)[0].items()}, parts
    )
    weights = jax.tree.map(lambda w: jnp.sum(w, axis=0), weights)

    def add(total, part):
        grads, aux = take(state.params, part, weights)
        return jax.tree.map(jnp.add, total, grads), aux

    grads, aux = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, state.params), parts)
    return grads, _one(aux)


def _one(aux: Aux) -> Aux:
    """What several parts of a batch report, stacked on axis 0: sums and weights add, moments are
    averaged."""
    metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), aux.metrics)
    stats = jax.tree.map(lambda x: jnp.mean(x, axis=0).astype(x.dtype), aux.stats)
    return Aux(metrics, stats)


def _whole(take: Callable, streams: Tree, keys: Mapping) -> tuple[Tree, tuple[Tree, ...], Aux]:
    """(the gradient of a batch, its one sample, what it reports)."""
    grads, aux = take(streams, keys)
    return grads, (grads,), aux


def _halves(take: Callable, streams: Tree, keys: Mapping) -> tuple[Tree, tuple[Tree, ...], Aux]:
    """(the mean gradient, those of the even and of the odd rows, the sum of what they report).

    Each half has a key of its own. One half after the other in a loop (`lax.map`): one program of
    half the rows, hence the compile time of a single gradient and half its activations. Both at
    once (`jax.vmap`) turn the kernels' gradients of convolutions into grouped convolutions, and
    keep the activations of the whole batch.
    ValueError for an odd number of rows.
    """
    halves = {name: _split(name, rows, 2) for name, rows in streams.items()}
    pairs = {name: jax.random.split(key) for name, key in keys.items()}
    both, aux = jax.lax.map(lambda at: take(*at), (halves, pairs))
    samples = tuple(jax.tree.map(lambda g, s=s: g[s], both) for s in (0, 1))
    return jax.tree.map(lambda a, b: (a + b) / 2, *samples), samples, _one(aux)


def _split(stream: str, rows: Tree, parts: int) -> Tree:
    """x[B] -> [n, B // n]: row i goes to part i mod n. Neighbouring rows are on one device, so that
    a sharded batch is split where it lies."""

    def one(x):
        if x.shape[0] % parts:
            raise ValueError(
                f"stream {stream}: {x.shape[0]} rows cannot be split into {parts} parts, as MoDo "
                "(halves) and config.accumulate want them"
            )
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    return jax.tree.map(one, rows)


def _add_owned(
    this: PhaseFacts, owned: Tree, grads: Tree, losses: frozenset[str], weight: Any
) -> Tree:
    """Add an objective's gradient to the leaves that its losses own: plain for a sole owner,
    weighted by its level among several."""

    def add(total, grad, owners):
        if total is None or not owners & losses:
            return total
        plain = this.recipe.head_scale == "plain" and owners <= losses
        return total + (
            grad if plain else jnp.where(weight == 0, 0, jnp.asarray(weight, grad.dtype) * grad)
        )

    return jax.tree.map(add, owned, grads, this.owners, is_leaf=lambda x: x is None)


def fused(
    this: PhaseFacts, state: TrainState, batch: Tree, rng: Callable, weights: tuple
) -> tuple[Grads, tuple, Means, dict]:
    """One backward pass over the sum of all losses: each reads shared hidden states through
    `scale_gradient`, so the shared leaves already hold the penalised direction. So does a head that
    several of the losses own, whose logits they must read through it too. No norm or cosine an
    objective."""
    phase = this.phase
    if dynamic := phase.dynamic_levels:
        raise ValueError(
            f"gradients='fused' sums all losses, but phase {phase.name} keeps the gradients of "
            f"{', '.join(map(level_name, dynamic))} apart: use gradients='separate'"
        )
    scale = {n: weights[phase.level_of(n)] * phase.inner.get(n, 1) for n in phase.losses}
    objectives = this.recipe.active(phase)
    streams = {s: batch[s] for objective in objectives for s in objective.streams}
    keys = {objective.name: rng(objective.name) for objective in objectives}
    grads, aux = _gradient(this, state, objectives, phase.losses, scale, streams, keys)

    def own(grad, shared, owners):
        if shared:
            return None
        active = owners & phase.losses
        if this.recipe.head_scale == "plain" or len(active) != 1:
            return grad
        weight = scale[next(iter(active))]
        return jnp.where(weight == 0, 0, jnp.asarray(weight, grad.dtype) * grad)

    owned = jax.tree.map(own, grads, this.shared, this.owners)
    direction = _keep(this.shared, grads)
    return Grads(owned, (direction,)), (jnp.float32(1),), aux.metrics, aux.stats


@jax.custom_vjp
def scale_gradient(x: Array, scale: Any) -> Array:
    """x forwards; the cotangent times `scale` backwards, selected (not multiplied) at scale 0."""
    return x


def _scale_forward(x, scale):
    return x, scale


def _scale_backward(scale, ct):
    scale = jnp.asarray(scale, ct.dtype)
    return jnp.where(scale == 0, 0, scale * ct), jnp.zeros_like(scale)


scale_gradient.defvjp(_scale_forward, _scale_backward)
