"""Plug-ins loaded by file name: a module of a package that has a given function.

A new recipe, encoder, self-supervised loss or corpus reader is one new file in its package.
"""

import importlib
import pkgutil
from typing import Any

from bljust_jax.common.errors import UserError, nearest


def names(package: str) -> list[str]:
    """The modules of a package, sorted; imports none of them."""
    return sorted(m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__))


def load(package: str, name: str, function: str, field: str) -> Any:
    """`function` of the module PACKAGE.NAME, as `build` of bljust_jax.recipes.bljust. UserError
    naming the config field if no module has it, with the nearest name and all that there are."""
    known = names(package)
    found = getattr(_module(package, name), function, None) if name in known else None
    if found is None:
        known = [module for module in known if hasattr(_module(package, module), function)]
        raise UserError(f"{field}={name!r}: there is no {name!r}{nearest(name, known)}")
    return found


def find(package: str, name: str, function: str) -> Any | None:
    """`function` of the module PACKAGE.NAME, None if it has none."""
    return getattr(_module(package, name), function, None)


def _module(package: str, name: str) -> Any:
    return importlib.import_module(f"{package}.{name}")
