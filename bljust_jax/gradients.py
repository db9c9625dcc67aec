"""The gradients of one step: which losses are taken on which batches, and who sees what of them.

`separate` differentiates one objective after another, `fused` the sum of their losses in one
backward pass. Both give the directions of `bilevel.Grads`: a tree a level over the shared leaves,
and one over the leaves that have owners.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bljust_jax import bilevel
from bljust_jax.system import Extras, Means, Phase, Recipe, TrainState, Tree


def _keep(mask: Tree, tree: Tree) -> Tree:
    """The leaves where the mask holds, None elsewhere."""
    return jax.tree.map(lambda m, x: x if m else None, mask, tree)


def _after(batch: Tree, done: Float[Array, ""]) -> Tree:
    """The same integers, made to depend on `done` (a norm, never negative), so that one objective's
    activations are freed before the next one's are made. Without it XLA runs all forward passes
    first and memory grows with the number of objectives."""
    return jax.tree.map(lambda x: x + (done < 0).astype(x.dtype), batch)


def _take_losses(losses: dict, wanted: frozenset[str]) -> tuple[Any, dict]:
    means = {n: s / jnp.maximum(w, 1) for n, (s, w) in losses.items() if n in wanted}
    return sum(means.values()), {f"train/{n}/loss": losses[n] for n in means}


class PhaseFacts(NamedTuple):
    """The static facts of a phase that both ways of taking gradients read."""

    recipe: Recipe
    phase: Phase
    shared: Tree  # True at leaves owned by every loss
    owners: Tree  # frozenset of loss names at each leaf


def separate(
    this: PhaseFacts, state: TrainState, batch: Tree, rng: Callable, weights: tuple
) -> tuple[bilevel.Grads, tuple, Means, dict]:
    """One gradient an objective, one after another; norms and the cosine come for free."""
    scale = dict.fromkeys(this.phase.losses, 1.0)
    extras = Extras(state.step, state.frozen, state.stats, state.ema, scale)
    metrics, stats = {}, {}
    owned = jax.tree.map(lambda x, s: None if s else jnp.zeros_like(x), state.params, this.shared)
    levels: list[Tree] = [None] * len(this.phase.levels)
    on_shared: dict[str, Tree] = {}
    done = jnp.float32(0)
    for objective in this.recipe.active(this.phase):
        streams = {s: _after(batch[s], done) for s in objective.streams}
        wanted = this.phase.losses & set(objective.losses)
        if len({this.phase.level_of(n) for n in wanted}) > 1:
            raise ValueError(
                f"losses {sorted(wanted)} share a forward but not a level: use gradients='fused'"
            )

        def loss_fn(params, objective=objective, streams=streams, wanted=wanted):
            losses, aux = objective.apply(params, extras, streams, rng(objective.name))
            loss, report = _take_losses(losses, wanted)
            return loss, (report, aux)

        grads, (report, aux) = jax.grad(loss_fn, has_aux=True)(state.params)
        metrics |= report | aux.metrics
        stats |= aux.stats
        mine = _keep(this.shared, grads)
        level = this.phase.level_of(next(iter(wanted)))
        levels[level] = (
            mine if levels[level] is None else jax.tree.map(jnp.add, levels[level], mine)
        )
        owned = _add_owned(this, owned, grads, wanted, weights[level])
        done = bilevel.norm(mine)
        on_shared[objective.name] = mine
        metrics[f"moo/norm/{objective.name}"] = (done, 1.0)
    if len(on_shared) == 2:
        a, b = on_shared
        metrics[f"moo/cos/{a}|{b}"] = (bilevel.cosine(on_shared[a], on_shared[b]), 1.0)
    return bilevel.Grads(owned, tuple(levels)), weights, metrics, stats


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
) -> tuple[bilevel.Grads, tuple, Means, dict]:
    """One backward pass over the sum of all losses: each reads shared hidden states through
    `scale_gradient`, so the shared leaves already hold the penalised direction. So does a head that
    several of the losses own, whose logits they must read through it too. No norm or cosine an
    objective."""
    phase = this.phase
    scale = {name: weights[phase.level_of(name)] for name in phase.losses}
    extras = Extras(state.step, state.frozen, state.stats, state.ema, scale)

    def loss_fn(params):
        total, metrics, stats = jnp.float32(0), {}, {}
        for objective in this.recipe.active(phase):
            streams = {s: batch[s] for s in objective.streams}
            losses, aux = objective.apply(params, extras, streams, rng(objective.name))
            loss, report = _take_losses(losses, phase.losses)
            total, metrics, stats = total + loss, metrics | report | aux.metrics, stats | aux.stats
        return total, (metrics, stats)

    grads, (metrics, stats) = jax.grad(loss_fn, has_aux=True)(state.params)

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
    return bilevel.Grads(owned, (direction,)), (jnp.float32(1),), metrics, stats
