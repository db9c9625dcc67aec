"""`UserError`: wrong input, which the commands print as one line with exit code 2; `Preempted`."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Wrong input. The message is one line that names the file and line, or the field, and the
    cure."""


class Preempted(BaseException):
    """A signal, which the message names, ended the run; the same command goes on. Like
    KeyboardInterrupt it is no `Exception`, so that it is not handled as an error of a file."""


def nearest(name: str, known: Iterable[str]) -> str:
    """End of the message on an unknown name: the nearest known name, if any, and all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f", did you mean {near[0]!r}?" if near else "."
    return f"{hint} There are: {', '.join(known)}"


def one_line(error: Exception) -> str:
    """The message of an error with its line breaks and repeated spaces replaced by one space."""
    return " ".join(str(error).split())
