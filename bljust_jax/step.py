"""One training step: which losses are taken on which batches, and which parameters see which
gradient.

    direction(shared)    = sum over levels l of  w_l * sum of that level's gradients  (bilevel.py)
    direction(own head)  = that objective's plain gradient

A step is pure: (state, batch) -> (state, metrics). Randomness is a function of (seed, objective
name, step); schedules are functions of `state.step`; a step that is not finite changes nothing but
the step counter.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from bljust_jax import bilevel

Tree = Any
Means = dict[
    str, tuple[Any, Any]
]  # name -> (sum, weight); the mean is taken once, over a whole window


class TrainState(NamedTuple):
    """All that a checkpoint holds. `frozen` (codebooks, a fixed extractor) and `stats` (feature
    statistics) are no one's gradient."""

    step: Any
    params: Tree
    opt_state: Tree
    ema: Tree
    frozen: Tree
    stats: Tree


class Extras(NamedTuple):
    """What an objective may read besides parameters and batch. `scale[name]` multiplies the
    gradient that loss `name` sends into shared hidden states (1 unless the step takes one backward
    pass over all losses)."""

    step: Any
    frozen: Tree
    stats: Tree
    ema: Tree
    scale: Mapping[str, Any]


class Aux(NamedTuple):
    metrics: Means
    stats: dict


@dataclass(frozen=True)
class Objective:
    """`apply(params, extras, batch, rng) -> ({loss name: (loss_sum, weight)}, Aux)`, pure; a loss
    is sum / max(weight, 1), float32."""

    losses: tuple[str, ...]
    streams: tuple[str, ...]
    apply: Callable[..., tuple[dict[str, tuple[Any, Any]], Aux]]

    @property
    def name(self) -> str:
        return "+".join(self.losses)


@dataclass(frozen=True)
class Group:
    """Parameters whose path matches `pattern`, owned by the losses named in `owners`; owned by
    every loss of a recipe = shared."""

    name: str
    pattern: str
    owners: frozenset[str]
    clip: float
    weight_decay: float


@dataclass(frozen=True)
class Phase:
    """A stretch of training. `levels` lists the active losses, upper level first; `weights(k)`
    gives the absolute level weights and
    `lr[group](k)` the learning rates, k = steps spent so far in phases of this name. Phases of one
    name differ in length alone."""

    name: str
    steps: int
    levels: tuple[tuple[str, ...], ...]
    weights: Callable[[Any], tuple[Any, ...]]
    lr: Mapping[str, Callable[[Any], Any]]
    moments: str = "keep"

    @property
    def losses(self) -> frozenset[str]:
        return frozenset(name for level in self.levels for name in level)

    def level_of(self, loss: str) -> int:
        return next(n for n, level in enumerate(self.levels) if loss in level)


@dataclass(frozen=True)
class Recipe:
    """A whole system as data: objectives over one set of parameters, how they are combined, and
    when."""

    objectives: tuple[Objective, ...]
    groups: tuple[Group, ...]
    phases: tuple[Phase, ...]
    init: Callable[[Any], tuple[Tree, Tree, Tree]]  # rng -> (params, frozen, stats)
    combiner: optax.GradientTransformationExtraArgs
    # (params, stats, batch) -> {"path" [B, T], "blank_share" (sum, weight)}, for evaluation
    predict: Callable[..., Any]
    # batches of audio -> the stats that are measured before the first step
    statistics: Callable[[Any], Tree]
    # (loss name, padded seconds of one row) -> forward FLOPs that it spends in the encoder
    cost: Callable[[str, float], float]
    # "separate": a gradient an objective; "fused": one backward pass over the sum of the losses
    gradients: str = "separate"
    # "plain": a head takes its own gradient; "penalised": times its level's weight, the exact
    # gradient of the penalised objective
    head_scale: str = "plain"
    ema_decay: float = 0.999

    @property
    def losses(self) -> frozenset[str]:
        return frozenset(name for objective in self.objectives for name in objective.losses)

    @property
    def phase_table(self) -> list[tuple[str, int, str]]:
        """(name, steps in all, levels) of each phase, in the order of first appearance."""
        steps: dict[str, int] = {}
        for phase in self.phases:
            steps[phase.name] = steps.get(phase.name, 0) + phase.steps
        levels = {p.name: " > ".join("+".join(level) for level in p.levels) for p in self.phases}
        return [(name, n, levels[name]) for name, n in steps.items()]

    def active(self, phase: Phase) -> tuple[Objective, ...]:
        return tuple(o for o in self.objectives if phase.losses & set(o.losses))

    def active_groups(self, phase: Phase) -> frozenset[str]:
        return frozenset(g.name for g in self.groups if g.owners & phase.losses)


# Randomness


def stream_key(seed: int, name: str, step: Any) -> Key[Array, ""]:
    """The key of one named stream of randomness at one step; two streams never meet by accident,
    and nothing is stored."""
    return jax.random.fold_in(
        jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())), step
    )


def row_keys(rng: Key[Array, ""], ids: UInt32[Array, "b"]) -> Key[Array, "b"]:
    """One key an utterance, a function of its id: draws survive permutation, micro-batches and
    another number of hosts."""
    return jax.vmap(lambda i: jax.random.fold_in(rng, i))(ids)


# Gradients


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


def _keep(mask: Tree, tree: Tree) -> Tree:
    """The leaves where the mask holds, None elsewhere."""
    return jax.tree.map(lambda m, x: x if m else None, mask, tree)


def _after(batch: Tree, done: Float[Array, ""]) -> Tree:
    """The same integers, made to depend on `done` (a norm, never negative), so that one objective's
    activations are freed before the next one's are made. Without it XLA runs all forward passes
    first and memory grows with the number of objectives."""
    return jax.tree.map(lambda x: x + (done < 0).astype(x.dtype), batch)


def position(phases: tuple[Phase, ...], name: str, step: Any) -> Int[Array, ""]:
    """Steps spent before `step` in phases called `name`: the clock of every schedule."""
    starts = np.cumsum([0] + [p.steps for p in phases[:-1]])
    spans = [(s, p.steps) for s, p in zip(starts, phases, strict=True) if p.name == name]
    starts, lengths = (np.array(column, np.int32) for column in zip(*spans, strict=True))
    return jnp.sum(jnp.clip(step - starts, 0, lengths), dtype=jnp.int32)


def _take_losses(losses: dict, wanted: frozenset[str]) -> tuple[Any, dict]:
    means = {n: s / jnp.maximum(w, 1) for n, (s, w) in losses.items() if n in wanted}
    return sum(means.values()), {f"train/{n}/loss": losses[n] for n in means}


class _Step(NamedTuple):
    """The static facts that both ways of taking gradients share."""

    recipe: Recipe
    phase: Phase
    shared: Tree  # True at leaves owned by every loss
    owners: Tree  # frozenset of loss names at each leaf


def _separate(
    this: _Step, state: TrainState, batch: Tree, rng: Callable, weights: tuple
) -> tuple[bilevel.Grads, tuple, Means, dict]:
    """One gradient an objective, one after another; norms and the cosine come for free."""
    extras = Extras(
        state.step, state.frozen, state.stats, state.ema, dict.fromkeys(this.recipe.losses, 1.0)
    )
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


def _add_owned(this: _Step, owned: Tree, grads: Tree, losses: frozenset[str], weight: Any) -> Tree:
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


def _fused(
    this: _Step, state: TrainState, batch: Tree, rng: Callable, weights: tuple
) -> tuple[bilevel.Grads, tuple, Means, dict]:
    """One backward pass over the sum of all losses: each reads shared hidden states through
    `scale_gradient`, so the shared leaves already hold the penalised direction. No norm or cosine
    an objective."""
    phase = this.phase
    scale = {
        n: weights[phase.level_of(n)] if n in phase.losses else 0.0 for n in this.recipe.losses
    }
    extras = Extras(state.step, state.frozen, state.stats, state.ema, scale)

    def loss_fn(params):
        total, metrics, stats = jnp.float32(0), {}, {}
        for objective in this.recipe.active(this.phase):
            streams = {s: batch[s] for s in objective.streams}
            losses, aux = objective.apply(params, extras, streams, rng(objective.name))
            loss, report = _take_losses(losses, this.phase.losses)
            total, metrics, stats = total + loss, metrics | report | aux.metrics, stats | aux.stats
        return total, (metrics, stats)

    grads, (metrics, stats) = jax.grad(loss_fn, has_aux=True)(state.params)

    def own(grad, shared, owners):
        if shared:
            return None
        if len(owners & this.phase.losses) > 1:
            raise ValueError(
                f"parameters owned by {sorted(owners)} need a gradient an objective: "
                "use gradients='separate'"
            )
        active = owners & this.phase.losses
        if this.recipe.head_scale == "plain" or not active:
            return grad
        weight = scale[next(iter(active))]
        return jnp.where(weight == 0, 0, jnp.asarray(weight, grad.dtype) * grad)

    owned = jax.tree.map(own, grads, this.shared, this.owners)
    direction = _keep(this.shared, grads)
    return bilevel.Grads(owned, (direction,)), (jnp.float32(1),), metrics, stats


# The step


def is_finite(tree: Tree) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def init_state(
    recipe: Recipe, optimizer: optax.GradientTransformationExtraArgs, seed: int
) -> TrainState:
    # strong types: a weakly typed leaf would compile the first step twice
    params, frozen, stats = jax.tree.map(
        lambda x: jnp.asarray(x, x.dtype), recipe.init(stream_key(seed, "init", 0))
    )
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.int32(0), params, optimizer.init(params), ema, frozen, stats)


def make_train_step(
    recipe: Recipe,
    phase: Phase,
    optimizer: optax.GradientTransformationExtraArgs,
    groups: Tree,
    seed: int,
) -> Callable[[TrainState, Tree], tuple[TrainState, Means]]:
    """The step of one phase.

    `groups`: a tree like the parameters with the `Group` of each leaf (`optim.assign`). A phase
    without an objective gives a program without it. Returns `step(state, batch) -> (state,
    metrics)`, to be jitted with the state donated.
    """
    owners = jax.tree.map(lambda g: g.owners, groups)
    shared = jax.tree.map(
        lambda o: o >= recipe.losses, owners, is_leaf=lambda x: isinstance(x, frozenset)
    )
    this = _Step(recipe, phase, shared, owners)
    gradients = {"separate": _separate, "fused": _fused}[recipe.gradients]
    active = recipe.active_groups(phase)

    def train_step(state: TrainState, batch: Tree) -> tuple[TrainState, Means]:
        k = position(recipe.phases, phase.name, state.step)
        weights = tuple(jnp.asarray(w, jnp.float32) for w in phase.weights(k))
        lr = {g: jnp.asarray(phase.lr[g](k), jnp.float32) for g in sorted(active)}
        grads, level_weights, metrics, new_stats = gradients(
            this, state, batch, lambda name: stream_key(seed, name, state.step), weights
        )
        updates, opt_state = optimizer.update(
            grads,
            state.opt_state,
            state.params,
            level_weights=level_weights,
            lr=lr,
            active=active,
        )
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(recipe.ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(
            lambda e, p: decay.astype(e.dtype) * e + (1 - decay).astype(e.dtype) * p,
            state.ema,
            params,
        )
        ok = is_finite(updates)
        new = (params, opt_state, ema, state.stats | new_stats)
        old = (state.params, state.opt_state, state.ema, state.stats)
        # a conditional, not a `where` on every leaf: XLA compiles it in two thirds of the time
        params, opt_state, ema, stats = jax.lax.cond(ok, lambda: new, lambda: old)
        metrics |= {f"penalty/{n}": (w, 1.0) for n, w in enumerate(weights) if n > 0}
        metrics |= {f"lr/{g}": (value, 1.0) for g, value in lr.items()}
        metrics["train/skipped"] = (1.0 - ok, 1.0)
        return TrainState(state.step + 1, params, opt_state, ema, state.frozen, stats), metrics

    return train_step
