"""Optimizer: the combiner, then clipping, AdamW and learning rate for each parameter group.

    combiner (bilevel/levels.py)  ->  for each group: gate( clip -> Adam -> decoupled decay -> -lr )

Each group has its own clip: with a global one the self-supervised head would rescale the encoder.
Learning rates are passed as the extra argument `lr = {group: scalar}`, whether a group trains as
`active = {group: bool}`, a Python bool or an array; an idle group keeps parameters and moments bit
for bit. No state here counts steps for a schedule.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bljust_jax.bilevel.types import Group
from bljust_jax.common import trees

Tree = Any
DECAYED = re.compile(r"(kernel|embedding)$")


def group_of_parameters(params: Tree, groups: Sequence[Group]) -> Tree:
    """The `Group` of each parameter. ValueError unless each path matches exactly one pattern and
    each pattern matches a path."""

    def group_of(name, _):
        hits = [g for g in groups if re.search(g.pattern, name)]
        if len(hits) != 1:
            raise ValueError(
                f"parameter {name} matches groups {[g.name for g in hits]}: expected one"
            )
        return hits[0]

    assigned = trees.map_named(group_of, params)
    used = {g.name for g in jax.tree.leaves(assigned)}
    for group in groups:
        if group.name not in used:
            raise ValueError(f"group {group.name}: no parameter matches {group.pattern}")
    return assigned


class Optimizer(NamedTuple):
    """`optax.chain(combiner, rule)` in two parts, so that a step can check the direction between
    them: the combiner takes `levels.Grads` to one direction, the rule takes it to the update.
    """

    combiner: optax.GradientTransformationExtraArgs
    rule: optax.GradientTransformationExtraArgs

    def init(self, params: Tree) -> tuple[Any, Any]:
        """(state of the combiner, state of the rule)."""
        return self.combiner.init(params), self.rule.init(params)

    def update(
        self, grads: Any, state: tuple[Any, Any], params: Tree, **extra: Any
    ) -> tuple[Tree, tuple[Any, Any]]:
        """(update of the parameters, new state)."""
        direction, combined = self.combiner.update(grads, state[0], params, **extra)
        updates, moved = self.rule.update(direction, state[1], params, **extra)
        return updates, (combined, moved)


def make_optimizer(
    combiner: optax.GradientTransformationExtraArgs,
    groups: Sequence[Group],
    *,
    b1: float = 0.9,
    b2: float = 0.98,
    eps: float = 1e-8,
) -> Optimizer:
    """The whole chain: `update(grads, state, params, *, level_weights, lr, active)` with `grads` a
    `levels.Grads`.

    AdamW (Loshchilov and Hutter 2019): decoupled weight decay, on parameters whose path matches
    `DECAYED`.
    """

    def decayed(params):
        return trees.map_named(lambda name, _: bool(DECAYED.search(name)), params)

    def chain(group: Group) -> optax.GradientTransformationExtraArgs:
        if not group.owners:  # never active, so without moments
            return _gate(group.name, optax.with_extra_args_support(optax.identity()))
        adamw = optax.chain(
            _clip(group.clip),
            optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
            optax.add_decayed_weights(group.weight_decay, mask=decayed),
            _scale_by_lr(group.name),
        )
        return _gate(group.name, adamw)

    def labels(params):
        return jax.tree.map(lambda g: g.name, group_of_parameters(params, groups))

    return Optimizer(combiner, optax.partition({g.name: chain(g) for g in groups}, labels))


def sum_of_squares(tree: Tree) -> Any:
    """Sum over the elements of all leaves, in their dtype."""
    return sum(jnp.sum(x * x) for x in jax.tree.leaves(tree))


def _clip(largest: float | int) -> optax.GradientTransformation:
    """The whole tree times min(1, largest / norm); not finite if the norm is not."""

    def update(updates, state, params=None):
        del params
        norm = jnp.sqrt(sum_of_squares(updates))
        scale = jnp.where(norm < largest, 1, largest / norm)
        return jax.tree.map(lambda u: scale.astype(u.dtype) * u, updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _scale_by_lr(name: str) -> optax.GradientTransformationExtraArgs:
    def update(updates, state, params=None, *, lr, **extra):
        del params, extra
        return jax.tree.map(lambda u: -lr[name].astype(u.dtype) * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def _gate(name: str, inner: optax.GradientTransformationExtraArgs):
    """`inner` if the group is active, by a Python bool or one of the device. The update of an idle
    group is -0.0, which added to any float changes no bit of it (0.0 would change -0.0)."""

    def update(updates, state, params=None, *, active, **extra):
        flag = active[name]
        if flag is False:
            return jax.tree.map(lambda u: jnp.full_like(u, -0.0), updates), state
        updates, new = inner.update(updates, state, params, active=active, **extra)
        if flag is True:
            return updates, new
        return (
            jax.tree.map(lambda u: jnp.where(flag, u, -0.0), updates),
            jax.tree.map(lambda n, old: jnp.where(flag, n, old), new, state),
        )

    return optax.GradientTransformationExtraArgs(inner.init, update)
