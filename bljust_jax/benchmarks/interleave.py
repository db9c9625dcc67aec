"""Timing in interleaved rounds, and what is made of the times.

A shared machine slows down and speeds up: each round runs every contender once, so that all see the
same weather, and ratios are those of the minima.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Run = Callable[[], Any]
MIB = 2**20
LEAST = 0.03  # seconds that a timing takes at least


def interleave(
    runs: Mapping[str, Run],
    rounds: int,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, float]]:
    """{name: {"min_s", "median_s"}}, seconds a call, of `rounds` rounds of all runs.

    A run returns when its work is done (`jax.block_until_ready`). It is called twice before the
    first round, and in a round as often as makes `LEAST` seconds. ValueError without a round.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} must be at least 1")

    def timed(run: Run, calls: int) -> float:
        began = clock()
        for _ in range(calls):
            run()
        return (clock() - began) / calls

    calls = {}
    for name, run in runs.items():
        say(f"  warming up {name}")
        run()
        calls[name] = max(1, math.ceil(LEAST / max(timed(run, 1), LEAST / 1000)))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for n in range(rounds):
        for name, run in runs.items():
            seconds[name].append(timed(run, calls[name]))
        latest = ", ".join(f"{name} {s[-1]:.3g} s" for name, s in seconds.items())
        say(f"  round {n + 1} of {rounds}: {latest}")
    return {name: summary(s) for name, s in seconds.items()}


def summary(seconds: list[float]) -> dict[str, float]:
    return {"min_s": min(seconds), "median_s": statistics.median(seconds)}


def ratios(times: Mapping[str, Mapping[str, float]], one: list[str], other: list[str]) -> dict:
    """Time of `one` (a sum of rows) over that of `other`, of the minima and of the medians."""
    return {
        key.removesuffix("_s"): sum(times[name][key] for name in one)
        / sum(times[name][key] for name in other)
        for key in ("min_s", "median_s")
    }


def table(rows: list[Mapping[str, Any]]) -> str:
    """Rows of {column: value} as aligned text; the columns are those of the first row."""
    columns = list(rows[0])
    cells = [columns, *([cell(row.get(c)) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]

    def line(texts: list[str]) -> str:
        first, *rest = zip(texts, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(t.rjust(w) for t, w in rest)])

    return "\n".join([line(cells[0]), *(line(texts) for texts in cells[1:])])


def cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
