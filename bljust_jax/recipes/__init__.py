"""Training systems, loaded by file name, and how objectives on one encoder become a `Recipe`.

`config.recipe = "bljust"` calls `build(config, facts)` of `recipes/bljust.py`. One new file adds a
system.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from bljust_jax.bilevel.types import Group, Recipe, Tree
from bljust_jax.common import plugins
from bljust_jax.models.encoders import Encoder
from bljust_jax.objectives import is_pretrained


class Facts(NamedTuple):
    """Properties of the data that a recipe depends on: vocabulary size of each labelled stream's
    tokenizer, and steps per pass of each stream's plan."""

    vocab_sizes: Mapping[str, int]
    steps_per_epoch: Mapping[str, int]


def load(name: str) -> Callable[[Any, Facts], Recipe]:
    """`build` of `recipes/<name>.py`. Raises UserError if there is no such recipe."""
    return plugins.load(__name__, name, "build", "config.recipe")


def assemble(
    config: Any, encoder: Encoder, objectives: tuple[Any, ...], *, heads: tuple[Any, ...], **fields
) -> Recipe:
    """The `Recipe` of `objectives` on one encoder; `fields` are its other fields.

    heads: the objectives whose `init` gives the heads and frozen arrays, in the order of the random
        keys that they receive after the encoder

    A head that comes from another run has the learning rate of the encoder: `config.lr.heads` is
    for new ones.
    """
    pretrained = [head for head in head_owners(heads) if is_pretrained(config, head)]
    fields["phases"] = tuple(
        dataclasses.replace(p, lr={**p.lr, **dict.fromkeys(pretrained, p.lr["encoder"])})
        for p in fields["phases"]
    )

    def init(rng: Any) -> tuple[Tree, Tree, Tree]:
        encoder_rng, *keys = jax.random.split(rng, 1 + len(heads))
        own, stats = encoder.init(encoder_rng)
        params, frozen = {"encoder": own}, {}
        for objective, key in zip(heads, keys, strict=True):
            head, arrays = objective.init(key)
            params, frozen = params | head, frozen | arrays
        return params, frozen, stats

    def cost(losses: frozenset[str], seconds: float) -> float:
        (objective,) = (o for o in objectives if losses & set(o.losses))
        return objective.cost(losses, seconds)

    return Recipe(
        objectives=objectives,
        groups=make_groups(config, head_owners(heads)),
        init=init,
        log_mel=encoder.log_mel,
        frames=encoder.frames,
        statistics=encoder.statistics,
        cost=cost,
        head_scale=config.head_scale,
        ema_decay=config.ema_decay,
        **fields,
    )


def head_owners(objectives: tuple[Any, ...]) -> dict[str, frozenset[str]]:
    """{key of a head: the losses that train it}."""
    return {head: losses for o in objectives for head, losses in o.head_owners.items()}


def make_groups(config: Any, owners: Mapping[str, frozenset[str]]) -> tuple[Group, ...]:
    """The encoder, owned by every loss; each head, by its own losses; and each part of the encoder
    that `config.freeze` names, by none."""
    losses = frozenset().union(*owners.values())
    clip, decay = config.optim.clip, config.optim.weight_decay
    frozen = {name: rf"{re.escape(name)}(/|$)" for name in config.freeze}
    moving = "".join(f"(?!{part})" for part in frozen.values())
    groups = {"encoder": (f"^encoder/{moving}", losses)}
    groups |= {f"frozen {n}": (f"^encoder/{part}", frozenset()) for n, part in frozen.items()}
    groups |= {name: (rf"^{name}/", own) for name, own in owners.items()}
    return tuple(Group(name, pattern, own, clip, decay) for name, (pattern, own) in groups.items())
