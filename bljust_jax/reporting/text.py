"""Markdown tables whose columns are aligned in a terminal; numbers as text."""

import unicodedata
from collections.abc import Sequence
from typing import Any

from bljust_jax.reporting.plots import MEASURES

MAX_COLUMNS = 180  # of a table that is not transposed


def narrow_table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A table, transposed if it is wider than `MAX_COLUMNS` and transposing makes it narrower."""
    plain = table(head, rows)
    if columns(plain[0]) <= MAX_COLUMNS:
        return plain
    first, *others = zip(head, *rows, strict=True)
    return min(plain, table(first, others), key=lambda lines: columns(lines[0]))


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table with aligned columns."""
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
    """Four significant digits of a float; anything else unchanged."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def rate(measure: str, value: float | None) -> str:
    """A score as text: WER and CER in per cent, BLEU and chrF from 0 to 100; "" for None."""
    if value is None:
        return ""
    unit = MEASURES[measure].unit
    return f"{MEASURES[measure].scale * value:.2f} {unit}" if unit else f"{value:.1f}"


def columns(text: str) -> int:
    """Width of a text in a terminal: 2 for wide characters, 0 for combining marks."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text)
