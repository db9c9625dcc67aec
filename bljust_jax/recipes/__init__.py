"""Recipes are found by file name: `config.recipe = "bljust"` is `recipes/bljust.py`, whose
`build(config, facts)` returns a `system.Recipe`. A new system is a new file here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bljust_jax.bilevel.types import Recipe
from bljust_jax.common import plugins


class Facts(NamedTuple):
    """What a recipe must know of the data: classes of each labelled stream's tokenizer, and steps
    in one pass of each stream's plan."""

    vocab_sizes: Mapping[str, int]
    steps_per_epoch: Mapping[str, int]


def load(name: str) -> Callable[[Any, Facts], Recipe]:
    return plugins.load(__name__, name, "build", "config.recipe")
