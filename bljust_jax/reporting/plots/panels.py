"""Panels of lines over steps with shaded phases, legends and equal colours in all panels."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bljust_jax.reporting.plots.series import Lines, Row, Span, bands, last_step
from bljust_jax.reporting.plots.style import COLOURS, DASHES, WIDTH, legible, title

ENTRY = 0.24  # height of a line of a legend, inches


class Panel(NamedTuple):
    """One pair of axes over steps."""

    label: str
    lines: Lines
    log: bool = False
    zero: bool = False  # a line at 0
    nested: bool = False  # draw later lines thinner, because lines often coincide


def stack(
    heading: str, rows: Sequence[Row], phases: Sequence[Span], *panels: Panel
) -> Figure | None:
    """A column of panels over the same steps, each name in one colour; None if no panel has a
    line."""
    drawn = [panel for panel in panels if panel.lines]
    if not drawn:
        return None
    figure, grid = column_of_panels([max(2.3, ENTRY * len(panel.lines)) for panel in drawn])
    names = list(dict.fromkeys(name for panel in drawn for name in panel.lines))
    for axes, panel in zip(grid[:, 0], drawn, strict=True):
        draw_lines(axes, panel.lines, names, panel.nested)
        shade(axes, phases, last_step(rows), named=axes is grid[0, 0])
        axes.set_ylabel(legible(panel.label))
        if panel.zero:
            axes.axhline(0.0, color="black", linewidth=0.8)
        if panel.log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")
        if len(panel.lines) > 1 or panel.label.split(" ")[0] not in panel.lines:
            legend_beside(axes)
    grid[-1, 0].set_xlabel("step")
    figure.align_ylabels(grid)
    title(figure, heading)
    return figure


def column_of_panels(heights: Sequence[float], columns: int = 1) -> tuple[Figure, np.ndarray]:
    """(figure, axes [rows, columns]) with rows of these heights in inches; axes of a row share
    their scale, those of a column their steps."""
    figure = Figure((WIDTH, 1.0 + sum(heights)))
    shared = {"sharex": "col", "sharey": "row", "height_ratios": heights}
    return figure, figure.subplots(len(heights), columns, squeeze=False, **shared)


def draw_lines(
    axes: Axes,
    lines: Lines,
    names: Sequence[str] = (),
    nested: bool = False,
    labels: Mapping[str, str] = MappingProxyType({}),
    bold: str = "",
) -> None:
    """Draw lines in the colours of their positions in `names` (default: their own order); `labels`
    replace names in the legend; the line `bold` is thick, grey and behind the others."""
    order = list(names) or list(lines)
    for n, (name, (x, y)) in enumerate(lines.items()):
        place = 0 if name == bold else order.index(name)
        (line,) = axes.plot(
            *(x, y),
            label=legible(labels.get(name, name)),
            linewidth=1.8 + 2.4 * nested * min(len(lines) - 1 - n, 3),
            color=COLOURS[place % len(COLOURS)],
            linestyle=DASHES[place // len(COLOURS) % len(DASHES)],
            marker="." if len(x) <= 40 else None,
        )
        if name == bold:
            line.set(color="#555555", linewidth=4.0, zorder=1.9)


def legend_beside(axes: Axes, reverse: bool = False) -> None:
    """Put a legend on the right of the axes; `reverse` for stacked areas."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=reverse)


def shade(axes: Axes, phases: Sequence[Span], last: int, named: bool) -> None:
    """Shade every other phase up to step `last`; if `named`, write names above the axes."""
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


def merge_equal(lines: Lines, few: int = 4) -> Lines:
    """Merge equal lines if there are more than `few`: "a, b" or "a and 4 more"."""
    if len(lines) <= few:
        return lines
    groups: list[tuple[list[str], Lines]] = []
    for name, line in lines.items():
        for names, first in groups:
            if all(np.array_equal(p, q, equal_nan=True) for p, q in zip(first, line, strict=True)):
                names.append(name)
                break
        else:
            groups.append(([name], line))
    return {
        ", ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} more": line
        for names, line in groups
    }
