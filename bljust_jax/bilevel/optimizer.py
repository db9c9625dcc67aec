"""Optimizer: the combiner, then clipping, AdamW and learning rate for each parameter group.

    combiner (bilevel/levels.py)  ->  for each group: gate( clip -> Adam -> decoupled decay -> -lr )

Each group has its own clip: with a global one the self-supervised head would rescale the encoder.
Learning rates are passed as the extra argument `lr = {group: scalar}`, whether a group trains as
`active = {group: bool}`, a Python bool or an array; an idle group keeps parameters and moments bit
for bit. No state here counts steps for a schedule.
"""

import re
from collections.abc import Sequence
from typing import Any

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


def make_optimizer(
    combiner: optax.GradientTransformationExtraArgs,
    groups: Sequence[Group],
    *,
    b1: float = 0.9,
    b2: float = 0.98,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
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
            optax.clip_by_global_norm(group.clip),
            optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
            optax.add_decayed_weights(group.weight_decay, mask=decayed),
            _scale_by_lr(group.name),
        )
        return _gate(group.name, adamw)

    def labels(params):
        return jax.tree.map(lambda g: g.name, group_of_parameters(params, groups))

    return optax.chain(combiner, optax.partition({g.name: chain(g) for g in groups}, labels))


def _scale_by_lr(name: str) -> optax.GradientTransformationExtraArgs:
    def update(updates, state, params=None, *, lr, **extra):
        del params, extra
        return jax.tree.map(lambda u: -lr[name].astype(u.dtype) * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def _gate(name: str, inner: optax.GradientTransformationExtraArgs):
    """`inner` if the group is active, by a Python bool or one of the device. The update of an idle
    group is -0.0, which added to any float changes no bit of it (0.0 would change -0.0)."""

    def update(updates, state, params=None, *, active, **extra):
        def train(updates, state):
            return inner.update(updates, state, params, active=active, **extra)

        def idle(updates, state):
            return jax.tree.map(lambda u: jnp.full_like(u, -0.0), updates), state

        if isinstance(active[name], bool):
            return (train if active[name] else idle)(updates, state)
        return jax.lax.cond(active[name], train, idle, updates, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)
