"""Phases that share one compiled program, and which of them is in force at a step.

A program computes every objective of its phases once, whatever their number. The phase in force is
a function of the step; level weights and learning rates are computed for each phase and selected,
and an objective without a loss in that phase is skipped (`lax.cond` in `gradients.py`).
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bljust_jax.bilevel.multi_objective import Level
from bljust_jax.bilevel.schedules import position
from bljust_jax.bilevel.types import Means, Objective, Phase, Recipe

Flag = bool | Bool[Array, ""]


def group_phases(recipe: Recipe) -> tuple[tuple[Phase, ...], ...]:
    """The phases of a recipe, one per name, in groups that share a program.

    Two phases share one if an objective has losses in both, directly or through a third phase: its
    forward and backward pass are then compiled once. Phases without a common objective stay apart,
    as sharing would only delay the first step. Excluded are phases with dynamic levels, and those
    where an objective has other losses, or a loss another weight within its level.
    """
    groups: list[tuple[Phase, ...]] = []
    for phase in {phase.name: phase for phase in recipe.phases}.values():
        merged = (phase,)
        for group in list(groups):
            if _overlap(recipe, merged, group) and _compatible(recipe, merged + group):
                groups.remove(group)
                merged = group + merged
        groups.append(merged)
    order = list(dict.fromkeys(phase.name for phase in recipe.phases))
    in_order = [sorted(group, key=lambda p: order.index(p.name)) for group in groups]
    return tuple(tuple(g) for g in sorted(in_order, key=lambda g: order.index(g[0].name)))


def _overlap(recipe: Recipe, one: Sequence[Phase], other: Sequence[Phase]) -> bool:
    """Whether an objective has losses in phases of both."""
    active = [{o.name for phase in group for o in recipe.active(phase)} for group in (one, other)]
    return bool(active[0] & active[1])


def _compatible(recipe: Recipe, phases: Sequence[Phase]) -> bool:
    """Whether one program can serve the phases."""
    if any(phase.dynamic_levels for phase in phases):
        return False
    for objective in recipe.objectives:
        active = {phase.losses & set(objective.losses) for phase in phases} - {frozenset()}
        if len(active) > 1:
            return False
    weights = {(n, phase.inner.get(n, 1)) for phase in phases for n in phase.losses}
    return len(weights) == len({name for name, _ in weights})


@dataclasses.dataclass(frozen=True)
class PhaseTable:
    """Phases of one program, as `group_phases` groups them or one alone."""

    recipe: Recipe
    phases: tuple[Phase, ...]

    @property
    def losses(self) -> frozenset[str]:
        """Losses that are active in any phase."""
        return frozenset().union(*(phase.losses for phase in self.phases))

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Objectives that are active in any phase."""
        return tuple(o for o in self.recipe.objectives if self.losses & set(o.losses))

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the parameter groups that train in any phase, sorted."""
        names = (self.recipe.active_groups(phase) for phase in self.phases)
        return tuple(sorted(frozenset().union(*names)))

    @property
    def dynamic_levels(self) -> dict[Level, str]:
        """{level: method}; only a phase alone has dynamic levels."""
        return self.phases[0].dynamic_levels if len(self.phases) == 1 else {}

    @functools.cached_property
    def levels(self) -> tuple[Level, ...]:
        """Losses in sets that are on one level in every phase; for one phase its levels."""
        found: dict[tuple[int | None, ...], list[str]] = {}
        for phase in sorted(self.phases, key=lambda p: -len(p.losses)):
            for loss in (loss for level in phase.levels for loss in level):
                members = found.setdefault(self._places(loss), [])
                members += [loss] if loss not in members else []
        return tuple(tuple(members) for members in found.values())

    def _places(self, loss: str) -> tuple[int | None, ...]:
        """Level of a loss in each phase, None where it is not active."""
        return tuple(p.level_of(loss) if loss in p.losses else None for p in self.phases)

    def level_of(self, loss: str) -> int:
        """Index in `levels`."""
        return next(n for n, level in enumerate(self.levels) if loss in level)

    def inner(self, loss: str) -> float | int:
        """Weight of a loss within its level."""
        return next(p.inner.get(loss, 1) for p in self.phases if loss in p.losses)

    def at(self, step: Any) -> "InForce":
        """The phase in force at a step, traced unless the table has one phase."""
        if len(self.phases) == 1:
            return InForce(self, step, 0)
        names = [phase.name for phase in self.phases]
        lengths = [phase.steps for phase in self.recipe.phases]
        starts = np.cumsum([0, *lengths[:-1]], dtype=np.int32)
        index = [names.index(p.name) if p.name in names else 0 for p in self.recipe.phases]
        segment = jnp.sum(step >= starts) - 1
        return InForce(self, step, jnp.asarray(index, jnp.int32)[segment])


class InForce:
    """The phase of a `PhaseTable` that is in force at a step.

    weights: weight of each of `PhaseTable.levels`, 0 for a level without losses in this phase
    penalties: {n: (weight of the phase's n-th level, whether it has one)}, n > 0
    lr: {group: learning rate}, 0 for a group that does not train in this phase
    ema_decay: largest decay of the averaged parameters
    """

    def __init__(self, table: PhaseTable, step: Any, index: int | Int[Array, ""]):
        self._table, self._index = table, index
        steps = [position(table.recipe.phases, p.name, step) for p in table.phases]
        own = [
            [jnp.asarray(w, jnp.float32) for w in phase.weights(k)]
            for phase, k in zip(table.phases, steps, strict=True)
        ]

        def weight(loss: str) -> Float[Array, ""]:
            pairs = zip(table.phases, own, strict=True)
            return self._select([w[p.level_of(loss)] if loss in p.losses else 0 for p, w in pairs])

        def penalty(n: int) -> tuple[Float[Array, ""], Flag]:
            value = self._select([w[n] if n < len(w) else 0 for w in own])
            return value, self._flag([n < len(w) for w in own])

        def rate(group: str) -> Float[Array, ""]:
            pairs = zip(table.phases, steps, strict=True)
            active = table.recipe.active_groups
            return self._select([p.lr[group](k) if group in active(p) else 0 for p, k in pairs])

        self.weights = tuple(weight(level[0]) for level in table.levels)
        self.penalties = {n: penalty(n) for n in range(1, max(map(len, own)))}
        self.lr = {group: rate(group) for group in table.groups}
        self.ema_decay = self._select([table.recipe.ema_decay_in(p) for p in table.phases])

    def _select(self, values: Sequence[Any]) -> Float[Array, ""]:
        """The value of the phase in force, float32."""
        values = [jnp.asarray(value, jnp.float32) for value in values]
        return values[0] if len(values) == 1 else jnp.stack(values)[self._index]

    def _flag(self, flags: Sequence[bool]) -> Flag:
        """A Python bool if the flag is the same in all phases."""
        return flags[0] if len(set(flags)) == 1 else jnp.asarray(flags)[self._index]

    def is_active(self, losses: frozenset[str]) -> Flag:
        """Whether one of the losses is active."""
        return self._flag([bool(losses & p.losses) for p in self._table.phases])

    def is_pair(self, pair: Sequence[str], among: Iterable[str]) -> Flag:
        """Whether exactly these two of the objectives `among` are active."""
        active = ({o.name for o in self._table.recipe.active(p)} for p in self._table.phases)
        return self._flag([set(pair) == names & set(among) for names in active])

    @property
    def metrics(self) -> Means:
        """penalty/n and lr/group, of weight 0 in phases without them."""
        values = {f"penalty/{n}": pair for n, pair in self.penalties.items()}
        values |= {f"lr/{group}": (rate, self.trains[group]) for group, rate in self.lr.items()}
        return {name: (value, as_weight(flag)) for name, (value, flag) in values.items()}

    @property
    def trains(self) -> Mapping[str, Flag]:
        """{group: whether its parameters train}."""
        owners = {g.name: g.owners for g in self._table.recipe.groups}
        return {name: self.is_active(losses) for name, losses in owners.items()}


def as_weight(flag: Flag) -> float | Float[Array, ""]:
    """1 or 0: the weight of a metric, whose mean is logged only if it has weight."""
    return float(flag) if isinstance(flag, bool) else flag.astype(jnp.float32)
