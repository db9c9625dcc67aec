"""What a function keeps between its forward and its backward pass, as jax prints it."""

import contextlib
import io
import re
from typing import NamedTuple

from jax.ad_checkpoint import print_saved_residuals


class Residual(NamedTuple):
    """An array that is kept: its type ("bf16[2,3]") and, if `remat.keep` named it, its name."""

    type: str
    name: str


def residuals(function, *args) -> list[Residual]:
    """The residuals of `function(*args)`, without its arguments and constants."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print_saved_residuals(function, *args)
    found = []
    for line in text.getvalue().splitlines():
        kind, _, source = line.partition(" ")
        if "from the argument" in source or "from a constant" in source or "literal" in source:
            continue
        name = re.match(r"named '(\w+)'", source)
        found.append(Residual(kind, name[1] if name else source))
    return found
