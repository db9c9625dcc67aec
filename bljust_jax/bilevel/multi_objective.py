"""MGDA and MoDo: weights of the objectives of one level, from Gram matrices of their gradients."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bljust_jax.bilevel import simplex
from bljust_jax.common.trees import named_leaves

Tree = Any
Level = tuple[str, ...]  # the names of its objectives
# {part of the parameters: Gram matrices of its layers [layers, n, n], or of the whole part [n, n]}
Grams = dict[str, Float[Array, "*layers n n"]]


# Number of gradients per objective that a method needs, each of an independent sample.
SAMPLES = {"mgda": 1, "modo": 2}
METHODS = tuple(SAMPLES)
NORMALISE = ("none", "norm")


class SeparateGradients(NamedTuple):
    """Gradients of the objectives of a dynamic level, {objective: (tree of one sample, ...)}: one
    sample for MGDA, two independent ones for MoDo."""

    samples: Mapping[str, tuple[Tree, ...]]


@dataclass(frozen=True)
class Conflict:
    """How the weights lam of a dynamic level of N objectives are computed, K_ij = <G_i, G_j>.

    method: "mgda", lam = argmin over the simplex of lam^T K lam (Desideri 2012): the direction d
        has <d, G_i> >= |d|^2 for each i. "modo" (Chen et al. 2023, arXiv 2305.20057), with G1 and
        G2 of two independent samples, so that E[G1 G2^T] = K, and lam of the step before:
            lam <- projection on the simplex of  lam - step (G1 G2^T lam + rho (lam - 1/N))
        and d the mean of both samples' combinations with the new lam
    rate: of MoDo. The iteration contracts for step < 2 / (lambda_max(K) + rho). With `relative`
        step = rate / (bound(K) + rho), stable for rate < 2: bound(K) = max_i sum_j |K_ij|
        (Gershgorin), the larger one of G1 G2^T and of the mean gradients, is at least
        lambda_max(K), and equal to it for orthogonal gradients and for parallel ones of one norm.
        Otherwise step = rate, as published
    rho: strength of MoDo's pull towards equal weights
    normalise: "norm" computes lam for G_i / |G_i| and replaces G_i by g G_i / |G_i|, g the mean of
        the norms: no objective dominates by its norm, and the level keeps its norm among the others
    equal_until: lam stays 1/N before this step
    threshold: None, or K is summed only over layers whose mean pairwise cosine is below it (over
        all layers if there is none). The direction uses the same lam on all layers
    every: number of steps between two selections of these layers
    stacked: regular expression of leaves with a leading axis of layers, `<part>/<i>`; other leaves
        are one layer each. A part is named by the first two components of its path
    shared: regular expression of the leaves that all objectives share

    An objective whose gradient is 0, such as that of a batch too short for it, is absent: d is the
    combination of the others, their lam scaled to sum 1. The shortest combination of a set with 0
    is 0, and the shared parameters would rest. MGDA gives it lam_i = 0, MoDo keeps its lam_i.

    "A small step along -d worsens no objective", <d, G_i> >= 0, holds for the direction that leaves
    the combiner and not for the update: AdamW divides each element by its own scale, adds the
    momentum of earlier steps and decays weights. `moo/update_dot/<objective>` logs <update, G_i>,
    above 0 where the step worsens objective i to first order.

    Raises ValueError for settings out of range.
    """

    method: str = "modo"
    rate: float | int = 0.1
    relative: bool = False
    rho: float | int = 0.0
    normalise: str = "none"
    equal_until: int = 0
    threshold: float | int | None = None
    every: int = 1
    stacked: str = r"^encoder/blocks/"
    shared: str = r"^encoder/"

    def __post_init__(self):
        if self.method not in METHODS or self.normalise not in NORMALISE:
            raise ValueError(
                f"method={self.method!r}, normalise={self.normalise!r}: expected one of {METHODS} "
                f"and one of {NORMALISE}"
            )
        if self.rate < 0 or self.rho < 0 or self.every < 1:
            raise ValueError(
                f"rate={self.rate} and rho={self.rho} must be at least 0, every={self.every} 1"
            )
        if self.relative and self.rate >= 2:
            raise ValueError(f"rate={self.rate} must be under 2 with relative: it is not stable")


class LevelState(NamedTuple):
    """State of one dynamic level: lam of the last step; the layers that K is summed over; Gram
    matrices of the (mean) gradients of the last step."""

    lam: Float[Array, "n"]
    selected: dict[str, Bool[Array, "*layers"]]
    grams: Grams


def level_name(names: Sequence[str]) -> str:
    """asr/en+asr/zh."""
    return "+".join(names)


def initial_level_state(conflict: Conflict, names: Level, params: Tree) -> LevelState:
    """Equal weights, all layers, Gram matrices of 0."""
    layers: dict[str, tuple[int, ...]] = {}
    for path, leaf in named_leaves(params):
        if re.search(conflict.shared, path):
            part, axes = _part(conflict.stacked, path)
            if layers.setdefault(part, leaf.shape[:axes]) != leaf.shape[:axes]:
                raise ValueError(f"parameter {path} has not as many layers as others of {part}")
    n = len(names)
    return LevelState(
        lam=jnp.full(n, 1 / n, jnp.float32),
        selected={part: jnp.ones(shape, bool) for part, shape in layers.items()},
        grams={part: jnp.zeros((*shape, n, n), jnp.float32) for part, shape in layers.items()},
    )


def combine_dynamic(
    conflict: Conflict, level: SeparateGradients, old: LevelState, step: Any
) -> tuple[Tree, LevelState]:
    """(sum_i lam_i G_i with G_i the mean over its samples, new state of the level)."""
    n, count = len(level.samples), SAMPLES[conflict.method]
    if any(len(trees) != count for trees in level.samples.values()):
        raise ValueError(f"{conflict.method} takes {count} gradient(s) of each objective")
    trees = [tree for samples in level.samples.values() for tree in samples]
    grams = jax.tree.map(
        lambda k: k.reshape(*k.shape[:-2], n, count, n, count), gram(trees, conflict.stacked)
    )
    # <G_i, G_j> of the first with the last sample: with one sample K, with two G1 G2^T
    crossed = jax.tree.map(lambda k: k[..., :, 0, :, -1], grams)
    of_means = jax.tree.map(lambda k: jnp.mean(k, (-3, -1)), grams)
    selected = _select(conflict, of_means, old.selected, step)
    crossed, chosen, whole = _total(crossed, selected), _total(of_means, selected), _total(of_means)
    present = jnp.diag(whole) > 0
    lam, scale = _solve(conflict, old.lam, crossed, chosen, present)
    lam = jnp.where(step < conflict.equal_until, 1 / n, lam)
    shares = [x / count for x in _share(lam, present) * scale for _ in range(count)]

    def mean(*leaves):
        return sum(share.astype(g.dtype) * g for share, g in zip(shares, leaves, strict=True))

    new = LevelState(lam, selected, of_means)
    finite = jnp.all(jnp.isfinite(lam)) & jnp.all(jnp.isfinite(whole))
    kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    return jax.tree.map(mean, *trees), kept


def _share(lam: Float[Array, "n"], present: Bool[Array, "n"]) -> Float[Array, "n"]:
    """lam of the present objectives scaled to sum 1, 0 for the others; equal if they have none."""
    lam = jnp.where(present, lam, 0)
    lam = jnp.where(jnp.sum(lam) == 0, present.astype(lam.dtype), lam)
    return lam / jnp.maximum(jnp.sum(lam), jnp.finfo(lam.dtype).tiny)


def _solve(
    conflict: Conflict,
    lam: Float[Array, "n"],
    crossed: Float[Array, "n n"],
    of_means: Float[Array, "n n"],
    present: Bool[Array, "n"],
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """(lam, normalisation factor of each gradient)."""
    scale = jnp.ones_like(lam)
    if conflict.normalise == "norm":
        norms = jnp.sqrt(jnp.diag(of_means))
        unit = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 1)
        crossed, of_means = (unit[:, None] * k * unit[None, :] for k in (crossed, of_means))
        scale = jnp.sum(norms) / jnp.maximum(jnp.sum(norms > 0), 1) * unit
    if conflict.method == "mgda":
        return simplex.min_norm(crossed, present), scale
    share = _share(lam, present)
    equal = _share(jnp.ones_like(lam), present)
    slope = jnp.sum(crossed * share[None, :], axis=1) + conflict.rho * (share - equal)
    step = conflict.rate
    if conflict.relative:
        largest = jnp.maximum(row_sum_bound(crossed), row_sum_bound(of_means)) + conflict.rho
        step = conflict.rate / jnp.where(largest > 0, largest, 1)
    moved = simplex.project(jnp.where(present, share - step * slope, -jnp.inf))
    free = 1 - jnp.sum(jnp.where(present, 0, lam))
    moved = jnp.where(present, free * moved, lam)
    return jnp.where(jnp.any(present), moved, lam), scale


def row_sum_bound(k: Float[Array, "n n"]) -> Float[Array, ""]:
    """max_i sum_j |K_ij|, at least the largest absolute eigenvalue of K (Gershgorin)."""
    return jnp.max(jnp.sum(jnp.abs(k), axis=1))


def _select(conflict: Conflict, grams: Grams, old: dict, step: Any) -> dict:
    """Mask of the layers in conflict, whose mean pairwise cosine is below the threshold (all if
    there is none); selected anew if `step` is a multiple of `every`."""
    if conflict.threshold is None:
        return old

    def under(k):
        first, second = np.triu_indices(k.shape[-1], 1)
        return jnp.mean(cosines(k)[..., first, second], -1) < conflict.threshold

    chosen = jax.tree.map(under, grams)
    none = ~jnp.any(jnp.stack([jnp.any(c) for c in jax.tree.leaves(chosen)]))
    now = step % conflict.every == 0
    return jax.tree.map(lambda c, o: jnp.where(now, c | none, o), chosen, old)


def gram(trees: Sequence[Tree], stacked: str) -> Grams:
    """<t_i, t_j> of n trees for each layer (`Conflict.stacked`), in float32 at highest precision.

    Summed leaf by leaf without concatenation: of a sharded leaf each device multiplies its own
    shard, and n x n numbers per layer are summed over devices.
    """
    total: Grams = {}
    for leaves in zip(*map(named_leaves, trees), strict=True):
        part, axes = _part(stacked, leaves[0][0])
        # layers are the leading axis: the batch axis of the product
        x = jnp.stack([leaf.astype(jnp.float32) for _, leaf in leaves], axis=axes)
        over, batch = tuple(range(axes + 1, x.ndim)), tuple(range(axes))
        k = jax.lax.dot_general(
            *(x, x, ((over, over), (batch, batch))),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        total[part] = total[part] + k if part in total else k
    return total


def cosines(k: Float[Array, "*layers n n"]) -> Float[Array, "*layers n n"]:
    """K_ij / sqrt(K_ii K_jj), 0 if either norm is 0."""
    norms = jnp.sqrt(jnp.diagonal(k, axis1=-2, axis2=-1))
    scale = norms[..., :, None] * norms[..., None, :]
    return jnp.where(scale > 0, k / jnp.where(scale > 0, scale, 1), 0)


def _total(grams: Grams, selected: dict | None = None) -> Float[Array, "n n"]:
    """The sum over the selected layers, by default all layers."""
    parts = [
        k if selected is None else jnp.where(selected[part][..., None, None], k, 0)
        for part, k in grams.items()
    ]
    return sum(jnp.sum(k.reshape(-1, *k.shape[-2:]), axis=0) for k in parts)


def _part(stacked: str, path: str) -> tuple[str, int]:
    """(part of a leaf, number of its leading layer axes: 1 or 0)."""
    return "/".join(path.split("/")[:2]), int(bool(re.search(stacked, path)))


def level_metrics(state: Any, levels: Sequence[Level]) -> dict[str, tuple[Array, float]]:
    """Metrics of dynamic levels from the state of the combiner: weight and norm of each objective,
    cosine of each pair, over all shared parameters and per layer.

    {"moo/weight/a", "moo/norm/a", "moo/cos/a|b", "moo/cos/a|b/<layer>": (value, 1)}
    """
    values = {}
    for names in levels:
        level = state.levels[level_name(names)]
        whole = _total(level.grams)
        pairs = list(zip(*np.triu_indices(len(names), 1), strict=True))
        views = {"": cosines(whole)}
        for part, k in level.grams.items():
            by_layer = cosines(k)
            if k.ndim == 2:
                views[f"/{part}"] = by_layer
            else:
                views |= {f"/{part}/{i}": by_layer[i] for i in range(k.shape[0])}
        for i, name in enumerate(names):
            values[f"moo/weight/{name}"] = level.lam[i]
            values[f"moo/norm/{name}"] = jnp.sqrt(whole[i, i])
        for layer, c in views.items():
            values |= {f"moo/cos/{names[i]}|{names[j]}{layer}": c[i, j] for i, j in pairs}
    return {name: (value, 1.0) for name, value in values.items()}


def update_metrics(levels: Sequence[Any], updates: Tree) -> dict[str, tuple[Array, float]]:
    """{"moo/update_dot/a": (<update, G_a>, 1)} of the objectives of dynamic levels.

    levels: of `levels.Grads`; updates: what the optimizer adds to the parameters. The value is the
    change of loss a, in its own unit, that the step makes on the shared parameters to first order:
    above 0 it worsens the objective, which AdamW may do whatever the combiner's direction is.
    """
    values = {}
    for level in levels:
        if not isinstance(level, SeparateGradients):
            continue
        samples = [tree for trees in level.samples.values() for tree in trees]
        dots = _dots(samples, _where_present(samples[0], updates))
        each = jnp.mean(dots.reshape(len(level.samples), -1), axis=1)
        for i, name in enumerate(level.samples):
            values[f"moo/update_dot/{name}"] = (each[i], 1.0)
    return values


def _dots(trees: Sequence[Tree], other: Tree) -> Float[Array, "n"]:
    """<t_i, other> of n trees in float32: one sum per leaf, whatever their number, since each sum
    is a kernel to compile."""

    def of_leaf(y, *leaves):
        x = jnp.stack(leaves).astype(jnp.float32)
        return jnp.sum(x * y.astype(jnp.float32)[None], axis=tuple(range(1, x.ndim)))

    return sum(jax.tree.leaves(jax.tree.map(of_leaf, other, *trees)))


def _where_present(grad: Tree, updates: Tree) -> Tree:
    """The updates of the leaves that a gradient has."""
    absent = {"is_leaf": lambda x: x is None}
    return jax.tree.map(lambda g, u: None if g is None else u, grad, updates, **absent)
