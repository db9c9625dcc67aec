"""Curves of a run over steps and over compute, from the rows of `metrics.jsonl`.

A series that a run did not log is simply absent, and so is a panel without a series.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bljust_jax.plots.style import COLOURS, DASHES, WIDTH, legible, title

Row = Mapping[str, Any]
Line = tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]  # x and y
Lines = dict[str, Line]


class Span(NamedTuple):
    """A stretch of `steps` training steps from `start` in the phase `name`."""

    name: str
    start: int
    steps: int


class Panel(NamedTuple):
    """One pair of axes over steps."""

    label: str
    lines: Lines
    log: bool = False
    zero: bool = False  # a line at 0
    nested: bool = False  # lines often coincide: later ones are drawn thinner, inside earlier ones


# Series


def series(rows: Sequence[Row], key: str) -> Line:
    """(steps `[N]`, values `[N]`) of one metric, float64; a NaN parts stretches between which it
    was not logged, such as the turns of alternating training."""
    points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float))]
    if not points:
        return np.zeros(0), np.zeros(0)
    steps, values = np.array(points, np.float64).T
    gaps = np.diff(steps)
    breaks = np.flatnonzero(gaps > 2.5 * np.median(gaps)) + 1 if len(gaps) else np.zeros(0, int)
    return np.insert(steps, breaks, steps[breaks]), np.insert(values, breaks, np.nan)


def matching(rows: Sequence[Row], pattern: str) -> Lines:
    """{first group of `pattern`: its series} of all metrics whose whole name matches, sorted."""
    keys = {key for row in rows for key in row}
    found = {m[1]: key for key in keys if (m := re.fullmatch(pattern, key))}
    return {name: series(rows, found[name]) for name in sorted(found)}


def over_compute(rows: Sequence[Row], key: str) -> Line:
    """(encoder TFLOP `[N]`, values `[N]`): compute is logged at other steps than scores are, so it
    is interpolated between them from 0 at step 0."""
    rows = [row for row in rows if "final" not in row]
    spent = [(0, 0.0)] + [
        (row["step"], row["compute/encoder_tflop"])
        for row in rows
        if "compute/encoder_tflop" in row
    ]
    points = [(row["step"], row[key]) for row in rows if key in row]
    if not points:
        return np.zeros(0), np.zeros(0)
    steps, values = np.array(points, np.float64).T
    return np.interp(steps, *np.array(spent, np.float64).T), values


def bands(phases: Sequence[Span], last: int) -> list[tuple[str, int, int]]:
    """(name, start, end) of the stretches to shade up to step `last`; neighbours too narrow to
    carry a name are put together, "a + b, 12 turns"."""
    cut = [(p.name, p.start, min(p.start + p.steps, last)) for p in phases if p.start < last]
    merged: list[tuple[str, int, int]] = []
    for narrow, group in itertools.groupby(cut, key=lambda band: band[2] - band[1] < last / 12):
        members = list(group)
        if narrow and len(members) > 1:
            names = " + ".join(dict.fromkeys(name for name, _, _ in members))
            label = f"{names}, {len(members)} turns"
            merged.append((label, members[0][1], members[-1][2]))
        else:
            merged += members
    return merged


# Curves


def _losses(rows: Sequence[Row], phases: Sequence[Span]) -> Figure | None:
    lines = matching(rows, r"train/(.+)/loss")
    panels = [Panel(f"{name} loss (nats)", {name: line}) for name, line in lines.items()]
    return _stack("Training losses", panels, rows, phases)


def _gradients(rows: Sequence[Row], phases: Sequence[Span]) -> Figure | None:
    panels = [
        Panel("norm", matching(rows, r"moo/norm/(.+)"), log=True),
        Panel("cosine", matching(rows, r"moo/cos/(.+)"), zero=True),
        Panel("weight in its level", matching(rows, r"moo/weight/(.+)")),
    ]
    return _stack("Gradients on the shared encoder", panels, rows, phases)


def _schedules(rows: Sequence[Row], phases: Sequence[Span]) -> Figure | None:
    penalties = matching(rows, r"penalty/(\d+)")
    panels = [
        Panel("penalty", {f"level {n}": line for n, line in penalties.items()}),
        Panel("learning rate", matching(rows, r"lr/(.+)"), nested=True),
    ]
    return _stack("Schedules", panels, rows, phases)


def _codebooks(rows: Sequence[Row], phases: Sequence[Span]) -> Figure | None:
    panels = [
        Panel("perplexity (codes)", matching(rows, r"codebook/(.+)/perplexity")),
        Panel("share of its maximum", matching(rows, r"codebook/(.+)/share")),
    ]
    return _stack("Codebooks", panels, rows, phases)


def _scores(rows: Sequence[Row], phases: Sequence[Span]) -> Figure | None:
    """Error rates and BLEU of dev and its parts: over compute at the left, over steps right."""
    kinds = {k: matching(rows, rf"(dev(?:/.+)?)/{k}") for k in ("wer", "cer", "bleu")}
    kinds = {kind: lines for kind, lines in kinds.items() if lines}
    if not kinds:
        return None
    figure = Figure((WIDTH, 0.9 + 2.6 * len(kinds)))
    grid = figure.subplots(len(kinds), 2, squeeze=False, sharey="row", sharex="col")
    for (left, right), (kind, lines) in zip(grid, kinds.items(), strict=True):
        _rates(left, kind, {name: over_compute(rows, f"{name}/{kind}") for name in lines})
        _rates(right, kind, {_valued(name, kind, line): line for name, line in lines.items()})
        _shade(right, phases, _last(rows), named=right is grid[0, 1])
        left.set_ylabel(_rate_label(f"dev/{kind}"))
        if len(lines) > 1:
            right.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    grid[-1, 0].set_xlabel("encoder compute (TFLOP)")
    grid[-1, 1].set_xlabel("step")
    title(figure, "Development set, greedy decoding")
    return figure


def compute_figure(runs: Mapping[str, Sequence[Row]], measure: str) -> Figure | None:
    """One measure over compute, one line a run of {name: rows}."""
    found = {name: over_compute(rows, measure) for name, rows in runs.items()}
    found = sorted((item for item in found.items() if len(item[1][0])), key=lambda i: -i[1][1][-1])
    if not found:
        return None
    kind = measure.split("/")[-1]
    figure = Figure((WIDTH, 4.8 + 0.13 * len(found)))
    axes = figure.subplots()
    _rates(axes, kind, {_valued(name, kind, line): line for name, line in found})
    axes.set_xlabel("encoder compute (TFLOP)")
    axes.set_ylabel(_rate_label(measure))
    figure.legend(loc="outside lower left", ncols=2)
    title(figure, f"{_rate_label(measure)} over compute; run and last value")
    return figure


CURVES = {
    "losses": (_losses, "Training losses, means over the steps between two log lines."),
    "scores": (_scores, "Development set over encoder compute and over steps, greedy decoding."),
    "gradients": (
        _gradients,
        "Gradients on the shared encoder: the norm of each objective's, the cosine between two "
        "(below 0 they conflict), and weights chosen inside a level.",
    ),
    "schedules": (
        _schedules,
        "Schedules: the weight of each lower level, and the learning rate of each group.",
    ),
    "codebooks": (
        _codebooks,
        "Codebook perplexity: how many codes are in use, and the share of those that could be.",
    ),
}


def _stack(
    heading: str, panels: list[Panel], rows: Sequence[Row], phases: Sequence[Span]
) -> Figure | None:
    """Panels under one another over the same steps, a name of one colour in all of them; None where
    none has a line."""
    panels = [panel for panel in panels if panel.lines]
    if not panels:
        return None
    figure = Figure((WIDTH, 1.0 + 2.3 * len(panels)))
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    for axes, panel in zip(grid, panels, strict=True):
        _lines(axes, panel.lines, names, panel.nested)
        _shade(axes, phases, _last(rows), named=axes is grid[0])
        axes.set_ylabel(legible(panel.label))
        if panel.zero:
            axes.axhline(0.0, color="black", linewidth=0.8)
        if panel.log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")
        if panel.label.split(" ")[0] not in panel.lines:
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    grid[-1].set_xlabel("step")
    figure.align_ylabels(grid)
    title(figure, heading)
    return figure


def _lines(axes: Axes, lines: Lines, names: Sequence[str] = (), nested: bool = False) -> None:
    """Lines in the colours of their places in `names` (default: their own order)."""
    order = list(names) or list(lines)
    for n, (name, (x, y)) in enumerate(lines.items()):
        place = order.index(name)
        axes.plot(
            *(x, y),
            label=legible(name),
            linewidth=1.8 + 2.4 * nested * (len(lines) - 1 - n),
            color=COLOURS[place % len(COLOURS)],
            linestyle=DASHES[place // len(COLOURS) % len(DASHES)],
            marker="." if len(x) <= 40 else None,
        )


def _rates(axes: Axes, kind: str, lines: Lines) -> None:
    """Error rates in per cent up to 100: what lies above is the start of training."""
    scale = 1.0 if kind == "bleu" else 100.0
    _lines(axes, {name: (x, scale * y) for name, (x, y) in lines.items()})
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    highest = max((float(np.nanmax(y)) for _, y in lines.values() if len(y)), default=0.0)
    top = min(max(scale * highest * 1.05, 1.0), 102.0)
    axes.set_ylim(0, top)
    for x, y in lines.values() if len(lines) == 1 else ():
        value = scale * y[-1]
        axes.annotate(
            *(f"{value:.1f}", (x[-1], min(value, top))),
            xytext=(-2, 6 if value < 0.9 * top else -16),
            textcoords="offset points",
            ha="right",
            fontweight="bold",
        )


def _rate_label(measure: str) -> str:
    *split, kind = measure.split("/")
    return f"{' '.join(split)} {kind.upper()}" + ("" if kind == "bleu" else " (%)")


def _valued(name: str, kind: str, line: Line) -> str:
    """A line's name and last value, for a legend."""
    return f"{name}  {line[1][-1]:.1f}" if kind == "bleu" else f"{name}  {line[1][-1]:.1%}"


def _shade(axes: Axes, phases: Sequence[Span], last: int, named: bool) -> None:
    axes.set_xlim(0, last)
    for n, (name, start, end) in enumerate(bands(phases, last)):
        if n % 2 == 0:
            axes.axvspan(start, end, color="#ececec", linewidth=0, zorder=0)
        if named:
            place = ((start + end) / 2, 1.0)
            axes.annotate(
                *(legible(name), place),
                xycoords=axes.get_xaxis_transform(),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=10,
                color="#444444",
            )


def _last(rows: Sequence[Row]) -> int:
    return max((row["step"] for row in rows), default=1) or 1
