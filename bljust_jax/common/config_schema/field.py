"""The row of a config field: its type, its range or choices, and a line of help."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Range(NamedTuple):
    """A condition on a value; `words` complete "must be ..."."""

    words: str
    holds: Callable[[Any], bool]


class Field(NamedTuple):
    """One field of a config.

    kind: bool, int, float, str or tuple; help: one line; allowed: the range, or the choices of the
    value (of each entry of a tuple), by recipe where a mapping; None allows every value of `kind`.
    default: of a field of a loss that `config.ssl` can name (`losses.py`); configs set all others.
    """

    kind: type
    help: str
    allowed: Range | Sequence[str | int] | Mapping[str, Sequence[str]] | None = None
    default: Any = None


KINDS = {
    **{bool: "true or false", int: "a whole number", float: "a number", str: "a text"},
    **{tuple: "values parted by commas, all of one type"},
}


def is_kind(value: Any, kind: type) -> bool:
    """Whether `value` has the type; whole numbers are numbers, and lists (of JSON) are tuples."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, {float: (int, float), tuple: (tuple, list)}.get(kind, kind))
