"""The one exception that stands for a mistake of the user's: `main` prints it as a single line and
exits with 2."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one line that names the file, the line or the field, and the
    cure."""


def nearest(name: str, known: Iterable[str]) -> str:
    """How the message on an unknown name ends: the nearest of the known, if one is, and all."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f", did you mean {near[0]!r}?" if near else "."
    return f"{hint} There are: {', '.join(known)}"
