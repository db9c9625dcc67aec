"""Consecutive rows of metrics.jsonl in which a value is below a threshold, counted by name."""

from typing import Literal

Change = Literal["", "low", "recovered"]


class LowRows:
    """Counter of the consecutive rows in which the value of each name is below `least`."""

    def __init__(self, least: float, rows: int):
        self._least, self._rows = least, rows
        self._low: dict[str, int] = {}

    def count(self, name: str, value: float) -> Change:
        """Count one row: "low" at the `rows`-th consecutive value below `least`, "recovered" at the
        first value that ends such a sequence, "" otherwise."""
        before = self._low.get(name, 0)
        self._low[name] = before + 1 if value < self._least else 0
        if self._low[name] == self._rows:
            return "low"
        return "recovered" if before >= self._rows and not self._low[name] else ""
