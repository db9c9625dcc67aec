"""Time several programs in interleaved rounds; ratios and tables of the times.

The speed of a shared machine varies: each round runs every program once, so that all vary alike,
and ratios are those of the minima.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Run = Callable[[], Any]
MIB = 2**20
MIN_SECONDS = 0.03  # of one timing


def interleave(
    runs: Mapping[str, Run],
    rounds: int,
    log: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, float]]:
    """{name: {"min_s", "median_s"}}, seconds per call, over `rounds` rounds of all runs.

    A run returns when its work is done (`jax.block_until_ready`). It is called twice before the
    first round, and in each round until `MIN_SECONDS` have passed. ValueError for rounds < 1.
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
        log(f"  warming up {name}")
        run()
        calls[name] = max(1, math.ceil(MIN_SECONDS / max(timed(run, 1), MIN_SECONDS / 1000)))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for n in range(rounds):
        for name, run in runs.items():
            seconds[name].append(timed(run, calls[name]))
        latest = ", ".join(f"{name} {s[-1]:.3g} s" for name, s in seconds.items())
        log(f"  round {n + 1} of {rounds}: {latest}")
    return {
        name: {"min_s": min(s), "median_s": statistics.median(s)} for name, s in seconds.items()
    }


def ratios(times: Mapping[str, Mapping[str, float]], one: list[str], other: list[str]) -> dict:
    """Summed time of the rows `one` over that of the rows `other`, for minima and medians."""
    return {
        key.removesuffix("_s"): sum(times[name][key] for name in one)
        / sum(times[name][key] for name in other)
        for key in ("min_s", "median_s")
    }


def table(rows: list[Mapping[str, Any]]) -> str:
    """Aligned text of rows {column: value}, with the columns of the first row."""
    columns = list(rows[0])
    cells = [columns, *([cell(row.get(c)) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]

    def line(texts: list[str]) -> str:
        first, *rest = zip(texts, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(t.rjust(w) for t, w in rest)])

    return "\n".join([line(cells[0]), *(line(texts) for texts in cells[1:])])


def cell(value: Any) -> str:
    """Three significant digits of a float; "-" for None."""
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
