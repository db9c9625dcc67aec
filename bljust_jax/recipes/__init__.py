"""Recipes are found by file name: `config.recipe = "bljust"` is `recipes/bljust.py`, whose
`build(config, facts)` returns a `system.Recipe`. A new system is a new file here."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bljust_jax.bilevel.types import Recipe
from bljust_jax.common.errors import UserError


class Facts(NamedTuple):
    """What a recipe must know of the data: classes of each labelled stream's tokenizer, and steps
    in one pass of each stream's plan."""

    vocab_sizes: Mapping[str, int]
    steps_per_epoch: Mapping[str, int]


def load(name: str) -> Callable[[Any, Facts], Recipe]:
    known = sorted(m.name for m in pkgutil.iter_modules(__path__))
    if name not in known:
        raise UserError(f"config.recipe: no recipe {name!r}; there are {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{name}").build
