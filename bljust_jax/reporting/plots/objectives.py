"""Heat maps and areas of several objectives: weights per level, cosines of gradients per layer."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from bljust_jax.reporting.plots import panels, series
from bljust_jax.reporting.plots.series import Row, Span
from bljust_jax.reporting.plots.style import CONFLICT, WIDTH, area_colours, legible, title

CELL = 0.26  # minimum height of a row of a heat map, inches
LETTER = 0.085  # width of a character of a label, inches
BAR = 0.18  # width of the colour bar, inches
STRIPES = 120  # maximum number of intervals in a heat map over time
ALL = "all"  # the column of all shared parameters


# Weights


def _weights(rows: Sequence[Row], phases: Sequence[Span]) -> Figure | None:
    """A panel per level with several objectives: their weights, stacked."""
    logged = list(series.matching(rows, r"moo/weight/(.+)"))
    drawn = []
    for label, level, members in _levels(_with(rows, "moo/weight/"), phases, logged):
        keys = [f"moo/weight/{name}" for name in level]
        complete = [row for row in members if all(key in row for key in keys)]
        if len(level) > 1 and complete:
            drawn.append((label, level, [series.over_steps(complete, key) for key in keys]))
    if not drawn:
        return None
    figure, grid = panels.column_of_panels(
        [max(2.3, panels.ENTRY * len(level)) for _, level, _ in drawn]
    )
    column = grid[:, 0]
    order = list(dict.fromkeys([*series.losses(rows), *logged]))
    colours = dict(zip(order, area_colours(len(order)), strict=True))
    for axes, (label, level, lines) in zip(column, drawn, strict=True):
        values = np.stack([y for _, y in lines])
        axes.stackplot(
            *(lines[0][0], values),
            labels=[legible(f"{name}  {y[-1]:.2f}") for name, y in zip(level, values, strict=True)],
            colors=[colours[name] for name in level],
            edgecolor="white",
            linewidth=0.6,
        )
        axes.set_ylim(0.0, float(np.nanmax(values.sum(axis=0))))
        axes.set_ylabel(f"weight, {label}")
        panels.shade(axes, phases, series.last_step(rows), named=axes is column[0])
        panels.legend_beside(axes, reverse=True)
    column[-1].set_xlabel("step")
    figure.align_ylabels(grid)
    title(figure, "Weights inside each level; names and last values")
    return figure


def _with(rows: Sequence[Row], prefix: str) -> list[Row]:
    return [row for row in rows if any(key.startswith(prefix) for key in row)]


def _levels(
    rows: Sequence[Row], phases: Sequence[Span], names: Sequence[str]
) -> list[tuple[str, tuple[str, ...], list[Row]]]:
    """(name, objectives, rows) of each level of the phases; without phases, one level of all."""
    if not any(phase.levels for phase in phases):
        return [("inside a level", tuple(names), list(rows))]
    return [
        (
            label,
            tuple(name for name in level if name in names),
            series.in_level(rows, phases, level),
        )
        for label, level in series.distinct_levels(phases)
    ]


# Cosines


class Heat(NamedTuple):
    """Cosines by row and column, NaN where none was logged."""

    matrix: Float[np.ndarray, "r c"]
    rows: list[str]
    columns: list[Any]


def by_layer(rows: Sequence[Row]) -> Heat | None:
    """Pairs x layers, means over the last third of the logged values; the last column, "", is over
    all shared parameters. None if no layer has a cosine."""
    keys = {pair: found for pair, found in series.cosine_keys(rows).items() if set(found) != {""}}
    layers = series.in_network_order({layer for found in keys.values() for layer in found} - {""})
    if not layers:
        return None
    columns = [*layers, *([""] if any("" in found for found in keys.values()) else [])]
    means = [
        [series.late_mean(series.over_steps(rows, f.get(c, ""))) for c in columns]
        for f in keys.values()
    ]
    return Heat(np.array(means), list(keys), columns)


def objectives_of(pair: str) -> set[str]:
    """The losses of "a|b"; losses of one forward pass are joined by a plus."""
    return {name for side in pair.split("|") for name in side.split("+")}


def over_time(rows: Sequence[Row], level: Sequence[str]) -> Heat | None:
    """Layers x intervals of steps, means over the pairs of `level` and the log lines of the
    interval; `columns` are the C + 1 bounds of the C intervals. An interval is one log line, or as
    many as give at most `STRIPES` intervals. None if no layer has a cosine."""
    inside = [
        found
        for pair, found in series.cosine_keys(rows).items()
        if objectives_of(pair) <= set(level)
    ]
    layers = series.in_network_order({layer for found in inside for layer in found} - {""})
    keys = [[found[layer] for found in inside if layer in found] for layer in layers]
    logged = [row for row in rows if any(key in row for own in keys for key in own)]
    if not logged:
        return None
    gap = series.usual_gap([row["step"] for row in logged])
    first, last = logged[0]["step"] - gap, logged[-1]["step"]
    width = gap * math.ceil((last - first) / gap / STRIPES)
    number = math.ceil((last - first) / width)
    total, count = np.zeros((2, len(layers), number))
    for row in logged:
        stripe = math.ceil((row["step"] - first) / width) - 1
        for n, own in enumerate(keys):
            values = [row[key] for key in own if key in row]
            total[n, stripe] += sum(values)
            count[n, stripe] += len(values)
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return Heat(mean, layers, [first + n * width for n in range(number + 1)])


def _cosines(rows: Sequence[Row], phases: Sequence[Span]) -> Figure | None:
    """Pairs x layers."""
    heat = by_layer(rows)
    if heat is None:
        return None
    names = [legible(pair.replace("|", " | ")) for pair in heat.rows]
    height = min(max(CELL, 2.4 / len(names)), 0.5) * len(names)
    figure = Figure((WIDTH, 1.6 + height))
    axes = figure.subplots()
    width = (WIDTH - 1.4 - LETTER * max(map(len, names))) / len(heat.columns)  # inches a column
    image = _draw(axes, heat.matrix, _limit([heat.matrix]))
    axes.set_yticks(range(len(names)), names, fontsize=10)
    short, parent = short_names(heat.columns)
    crowded = width < 2.5 * LETTER
    axes.set_xticks(range(len(short)), short, fontsize=min(11.0, 58 * width) if crowded else 11.0)
    for label in axes.get_xticklabels():
        too_long = LETTER * len(label.get_text()) > width
        label.set_rotation(90 if crowded or too_long else 0)
    axes.set_xlabel(f"layer (numbers: {parent})" if parent else "layer")
    if "" in heat.columns:
        axes.axvline(len(short) - 1.5, color="white", linewidth=5)
    _write_values(axes, heat.matrix, image, width)
    _colour_bar(figure, image, [axes], height, "cosine")
    title(figure, "Cosines of two gradients in each layer; red: they conflict")
    return figure


def _layers(rows: Sequence[Row], phases: Sequence[Span]) -> Figure | None:
    """Layers x steps, a panel per level."""
    names = sorted({name for pair in series.cosine_keys(rows) for name in objectives_of(pair)})
    levels = _levels(_with(rows, "moo/cos/"), phases, names)
    found = [(label, over_time(members, level)) for label, level, members in levels]
    found = [(label, heat) for label, heat in found if heat]
    if not found:
        return None
    heights = [max(1.6, 0.2 * len(heat.rows)) for _, heat in found]
    figure, grid = panels.column_of_panels(heights)
    column = grid[:, 0]
    limit = _limit([heat.matrix for _, heat in found])
    for axes, (label, heat) in zip(column, found, strict=True):
        extent = (heat.columns[0], heat.columns[-1], -0.5, len(heat.rows) - 0.5)
        image = _draw(axes, heat.matrix[::-1], limit, extent)
        axes.set_yticks(range(len(heat.rows)), short_names(heat.rows)[0], fontsize=9)
        axes.set_ylabel(f"layer, {label}")
        panels.shade(axes, phases, series.last_step(rows), named=axes is column[0])
    column[-1].set_xlabel("step")
    _colour_bar(figure, image, list(column), sum(heights), "mean cosine of the pairs")
    title(figure, "Mean cosine of the gradients in each layer; red: they conflict")
    return figure


def _colour_bar(
    figure: Figure, image: AxesImage, axes: list[Axes], height: float, label: str
) -> None:
    """On the right of `axes`, `BAR` inches wide; `height` in inches."""
    ticks = MaxNLocator(5, symmetric=True)
    figure.colorbar(image, ax=axes, label=label, pad=0.01, aspect=height / BAR, ticks=ticks)


def _limit(matrices: Sequence[np.ndarray]) -> float:
    """The largest magnitude, at least 0.1: the ends of the colour scale."""
    return max(0.1, *(float(np.nanmax(np.abs(m), initial=0.0)) for m in matrices))


def _draw(axes: Axes, matrix: np.ndarray, limit: float, extent: tuple | None = None) -> AxesImage:
    axes.grid(False)
    return axes.imshow(
        matrix, aspect="auto", cmap=CONFLICT, vmin=-limit, vmax=limit, extent=extent,
        interpolation="nearest", zorder=1,
    )  # fmt: skip


def _write_values(axes: Axes, matrix: np.ndarray, image: AxesImage, width: float) -> None:
    """The values in cells of `width` inches, where they fit."""
    size = min(10.0, 72 * width / 3.2)  # points: four characters, each 0.65 of them wide
    for (row, column), value in np.ndenumerate(matrix):
        if size >= 6.0 and np.isfinite(value):
            text = f"{round(value, 2) + 0.0:.2f}".replace("0.", ".", 1).replace("-", "\u2212")
            dark = abs(value) > 0.6 * image.norm.vmax
            colour = "white" if dark else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


def short_names(layers: Sequence[str]) -> tuple[list[str], str]:
    """(last parts of the names of layers, with "all" for ""; the common parent of numbered layers,
    "" if they differ)."""
    parents = {name.rpartition("/")[0] for name in layers if name.rpartition("/")[2].isdigit()}
    if len(parents) > 1:
        return [name or ALL for name in layers], ""
    return [name.rpartition("/")[2] or ALL for name in layers], next(iter(parents), "")


OBJECTIVES = {
    "weights": (
        _weights,
        "Weights of the objectives in the common direction of their level; level 0 is the upper "
        "one.",
    ),
    "cosines": (
        _cosines,
        "Cosine of the gradients of two objectives per layer of the shared parameters, mean over "
        'the last third of the log lines that have it; "all": over all layers together. Below 0 '
        "they conflict.",
    ),
    "layers": (
        _layers,
        "The same over steps: mean per layer over the pairs of a level.",
    ),
}
