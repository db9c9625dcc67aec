"""Tables that are Markdown and line up in a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table whose columns line up in a terminal."""
    cells = [tuple(str(c).replace("|", "/") for c in row) for row in [head, *rows]]
    widths = [max(columns(row[n]) for row in cells) for n in range(len(head))]
    lines = [
        "| "
        + " | ".join(c + " " * (w - columns(c)) for c, w in zip(row, widths, strict=True))
        + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return lines


def number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def rate(measure: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if measure == "bleu" else f"{100 * value:.2f} %"


def columns(text: str) -> int:
    """Columns that a text takes in a terminal: 2 for wide characters, 0 for combining marks."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text)
