"""Fingerprint of facts as JSON, written piece by piece."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

CHUNK = 1 << 14  # elements that are written at a time


def digest_of(facts: Any) -> str:
    """The first 16 hexadecimal digits of the sha256 of `json.dumps(facts)`; iterators and columns
    of strings count as lists, and are never held as a whole."""
    digest = hashlib.sha256()
    for piece in _pieces(facts):
        digest.update(piece.encode())
    return digest.hexdigest()[:16]


def _pieces(facts: Any) -> Iterator[str]:
    """`json.dumps(facts)` in pieces."""
    if not isinstance(facts, Iterable) or isinstance(facts, str | dict):
        yield json.dumps(facts)
        return
    yield "["
    comma, rest = "", iter(facts)
    while chunk := list(itertools.islice(rest, CHUNK)):
        if any(isinstance(fact, Iterable) and not isinstance(fact, _PLAIN) for fact in chunk):
            for fact in chunk:
                yield comma
                yield from _pieces(fact)
                comma = ", "
        else:
            yield comma + json.dumps(chunk)[1:-1]
            comma = ", "
    yield "]"


_PLAIN = str | dict | tuple
