"""Write the page of a comparison, its table and its pictures, beside its rows."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from bljust_jax.common.files import write_text
from bljust_jax.comparison import table
from bljust_jax.comparison.grid import Grid, Run
from bljust_jax.comparison.table import Row, Setting, Summary
from bljust_jax.reporting.plots import save_grid

HEAD = 4  # lines of a page before its first setting
CAPTION = "Green: better than the reference; red: worse; grey: no answer yet (95 % interval)."


def write(
    grid: Grid, runs: Sequence[Run], rows: Mapping[str, Row], results: pathlib.Path
) -> list[str]:
    """Write NAME.md and its pictures NAME-*.png into the folder of the file of rows; returns the
    lines of the page. UserError as of `table.summarise`."""
    found = table.summarise(grid, runs, rows)
    lines = table.lines(grid, found, len(runs))
    pictures = draw(grid, found, len(runs), results)
    first, rest = (
        [line for name in pictures if ("-differences" in name) == early for line in _shown(name)]
        for early in (True, False)
    )
    caption = [CAPTION, ""] if first else []
    whole = [*lines[:HEAD], *first, *caption, *lines[HEAD:], *rest]
    write_text(results.with_suffix(".md"), "\n".join(whole))
    return lines


def _shown(name: str) -> tuple[str, str]:
    return f"![{name}]({name})", ""


def draw(
    grid: Grid, found: Mapping[Setting, Sequence[Summary]], total: int, results: pathlib.Path
) -> list[str]:
    """Draw the pictures that there are data for; returns their file names."""
    done = sum(len(s.rows) for own in found.values() for s in own)
    rest = "" if done == total else f" ({done} of {total} runs: unfinished)"
    made = []
    for n, (setting, own) in enumerate(found.items()):
        about = f"{grid.name}: {table.title(grid, setting)}{rest}"
        differences = {
            name: {s.method: s.differences[name] for s in own if name in s.differences}
            for name in grid.references
        }
        wers = {s.method: list(s.wers.values()) for s in own}
        suffix = f"-{n + 1}" if len(found) > 1 else ""
        made.append((f"differences{suffix}", "forest", (differences, about)))
        made.append((f"runs{suffix}", "per_run", (wers, about)))
    for tflop in grid.tflops:
        own = {
            float(s.amount): v
            for s, v in found.items()
            if s.tflop == tflop and _is_number(s.amount)
        }
        axis = grid.amount.removeprefix("data.").replace("_", " ")
        about = f"{grid.name}: WER over labels, {tflop:g} TFLOP per run{rest}"
        made.append((f"labels-{tflop:g}", "over", (_series(own), axis, about)))
    for amount in grid.amounts:
        own = {float(s.tflop): v for s, v in found.items() if s.amount == amount}
        about = f"{grid.name}: WER over compute, {axis} {amount}{rest}"
        made.append((f"compute-{amount}", "over", (_series(own), "TFLOP per run", about)))
    names = []
    for name, kind, given in made:
        path = results.with_name(f"{results.stem}-{name}.png")
        if save_grid(path, kind, *given):
            names.append(path.name)
    return names


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and value > 0


def _series(
    found: Mapping[float, Sequence[Summary]],
) -> dict[str, dict[float, list[float]]]:
    """{method: {x: WERs}}."""
    made: dict[str, dict[float, list[float]]] = {}
    for x, own in found.items():
        for summary in own:
            made.setdefault(summary.method, {})[x] = list(summary.wers.values())
    return made
