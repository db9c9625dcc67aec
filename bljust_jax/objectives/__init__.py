"""Objectives, a file each. The self-supervised ones are found by file name: `config.ssl = "cpc"` is
`objectives/cpc.py`, whose `bind` gives a `system.SelfSupervised`. A new loss is a new file here."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from bljust_jax.bilevel.types import SelfSupervised
from bljust_jax.common.errors import UserError


def load(name: str) -> Callable[..., SelfSupervised]:
    """`bind` of `objectives/<name>.py`. UserError where there is none."""
    modules = sorted(m.name for m in pkgutil.iter_modules(__path__))
    if name in modules:
        bind = getattr(importlib.import_module(f"{__name__}.{name}"), "bind", None)
        if bind is not None:
            return bind
    known = [m for m in modules if hasattr(importlib.import_module(f"{__name__}.{m}"), "bind")]
    raise UserError(f"config.ssl: no self-supervised loss {name!r}; there are {', '.join(known)}")
