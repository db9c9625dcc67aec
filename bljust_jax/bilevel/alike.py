"""One loop over objectives that are alike, so that their forward and backward pass compile once.

Objectives are alike if they differ in name and stream alone, such as recognition of nine languages.
The loop (`lax.scan`) runs over their stacked heads, batches and random keys. Losses, gradients,
statistics and keys are those of one pass after another, up to the rounding of another program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import index_in_dim
from jaxtyping import Array, Float

from bljust_jax.bilevel.shared_phases import PhaseTable
from bljust_jax.bilevel.types import Aux, Means, Objective, TrainState, Tree
from bljust_jax.common import trees

# (state, objective, {stream: rows}, {objective: key}) -> (a gradient tree per sample, Aux)
Take = Callable[[TrainState, Objective, Tree, Mapping[str, Any]], tuple[tuple[Tree, ...], Aux]]


class Taken(NamedTuple):
    """Gradients of one objective.

    samples: one tree, for MoDo two; None at leaves that have no gradient, and at shared leaves if
        these are summed
    norm: of the last sample on the shared leaves
    """

    samples: tuple[Tree, ...]
    norm: Float[Array, ""]
    aux: Aux


def group_alike(
    table: PhaseTable, owners: Tree, state: TrainState, batch: Tree
) -> list[tuple[Objective, ...]]:
    """The objectives of a program, in groups that are one loop each; most are alone.

    Grouped are objectives of one `kind`, on one level, active in the same phases, each the only
    owner of its head, with heads and batches of equal shapes. A level that is summed takes three:
    of two objectives the cosine is logged, which needs both gradients at once.
    """
    groups: dict[Any, list[Objective]] = {}
    for o in table.objectives:
        found = _likeness(table, owners, state, batch, o)
        groups.setdefault(o.name if found is None else found, []).append(o)
    made: list[tuple[Objective, ...]] = []
    for group in groups.values():
        level = table.levels[table.level_of(group[0].losses[0])]
        least = 2 if level in table.dynamic_levels else 3
        made += [tuple(group)] if len(group) >= least else [(o,) for o in group]
    return made


def _likeness(
    table: PhaseTable, owners: Tree, state: TrainState, batch: Tree, objective: Objective
) -> Any:
    """Equal for objectives that are alike; None for one that is alone."""
    losses = frozenset(objective.losses)
    if objective.kind is None or len(losses) != 1 or len(objective.streams) != 1:
        return None
    head, rows = state.params[objective.head], batch[objective.streams[0]]
    own = jax.tree.leaves(owners[objective.head], is_leaf=lambda x: isinstance(x, frozenset))
    if any(names != losses for names in own):
        return None
    leaves, structure = jax.tree.flatten((head, rows))
    shapes = tuple((x.shape, x.dtype) for x in leaves)
    active = tuple(bool(losses & phase.losses) for phase in table.recipe.phases)
    return objective.kind, table.level_of(objective.name), active, structure, shapes


def take_each(
    take: Take,
    group: tuple[Objective, ...],
    shared: Tree,
    state: TrainState,
    batch: Tree,
    keys: Mapping[str, Any],
    inner: tuple[float | int, ...] | None,
) -> tuple[dict[str, Taken], Tree]:
    """({objective: its gradients}, sum over the group of inner_i times the shared gradient).

    shared: True at leaves owned by every loss
    inner: None keeps all gradients apart, and the sum is None. With weights a group of several
        takes the memory of one tree, as only the sum is kept
    """
    if len(group) > 1:
        return _take_in_loop(take, group, shared, state, batch, keys, inner)
    (objective,) = group
    samples, aux = take(state, objective, batch, keys)
    moving = select(shared, samples[-1])
    taken = {objective.name: Taken(samples, trees.norm(moving), aux)}
    return taken, None if inner is None else _weighted(moving, inner[0])


def _take_in_loop(
    take: Take,
    group: tuple[Objective, ...],
    shared: Tree,
    state: TrainState,
    batch: Tree,
    keys: Mapping[str, Any],
    inner: tuple[float | int, ...] | None,
) -> tuple[dict[str, Taken], Tree]:
    """`take` is traced once, for the first objective, with the head, batch and key of each in place
    of its own."""
    first, heads = group[0], [o.head for o in group]
    common = {name: part for name, part in state.params.items() if name not in heads}
    mask = {name: shared[name] for name in common}
    zeros = select(mask, jax.tree.map(jnp.zeros_like, common))

    def body(total, item):
        head, rows, key, weight = item
        own_state = state._replace(params={**common, first.head: head})
        samples, aux = take(own_state, first, {first.streams[0]: rows}, {first.name: key})
        own = tuple(tree[first.head] for tree in samples)
        moving = tuple(select(mask, {name: tree[name] for name in common}) for tree in samples)
        norm = trees.norm(moving[-1])
        if inner is not None:
            total, moving = jax.tree.map(jnp.add, total, _weighted(*moving, weight)), None
        return total, (own, moving, norm, aux)

    items = (
        _stack([state.params[head] for head in heads]),
        _stack([batch[o.streams[0]] for o in group]),
        _stack([keys[o.name] for o in group]),
        jnp.asarray(inner or (1.0,) * len(group), jnp.float32),
    )
    total, outputs = jax.lax.scan(body, None if inner is None else zeros, items)
    nothing, taken = jax.tree.map(lambda _: None, shared), {}
    for i, o in enumerate(group):
        own, moving, norm, aux = jax.tree.map(
            lambda x, i=i: index_in_dim(x, i, keepdims=False), outputs
        )
        moving = moving or ({},) * len(own)
        pairs = zip(moving, own, strict=True)
        samples = tuple({**nothing, **tree, o.head: head} for tree, head in pairs)
        metrics = _rename(aux.metrics, first.name, o.name)
        taken[o.name] = Taken(samples, norm, aux._replace(metrics=metrics))
    return taken, None if inner is None else {**nothing, **total}


def _stack(parts: list[Tree]) -> Tree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)


def _rename(metrics: Means, old: str, new: str) -> Means:
    """The metrics of one objective under the name of another: old/x and train/old/x."""
    return {name.replace(f"{old}/", f"{new}/", 1): pair for name, pair in metrics.items()}


def select(mask: Tree, tree: Tree) -> Tree:
    """The leaves where the mask is True, None elsewhere."""
    return jax.tree.map(lambda m, x: x if m else None, mask, tree)


def _weighted(grads: Tree, weight: Any) -> Tree:
    """weight * grads; 0 for a weight of 0, even if a gradient is not finite."""
    if isinstance(weight, int | float):
        if weight == 1:
            return grads
        return jax.tree.map(lambda g: weight * g if weight else jnp.zeros_like(g), grads)
    return jax.tree.map(lambda g: jnp.where(weight == 0, 0, weight.astype(g.dtype) * g), grads)
