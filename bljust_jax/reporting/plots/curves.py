"""Curves of losses, scores, gradients, schedules and codebooks over steps and compute.

Series that a run did not log are absent, and so are panels without a series.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bljust_jax.reporting.plots import panels, series
from bljust_jax.reporting.plots.panels import Panel, stack
from bljust_jax.reporting.plots.series import MEASURES, Line, Lines, Row, Span
from bljust_jax.reporting.plots.style import WIDTH, title

PAIRS = 6  # maximum number of cosines in one panel


def _losses(rows: Sequence[Row], phases: Sequence[Span]) -> Figure | None:
    """A panel per kind of loss, with that on dev and on the sample of training utterances; asr/ar
    and asr/en are of one kind."""
    kinds: dict[str, Lines] = {}
    for name, line in series.matching(rows, r"train/(.+)/loss").items():
        kinds.setdefault(name.split("/")[0], {})[name] = line
    for split in ("dev", "train_sample"):
        for name, line in series.matching(rows, rf"{split}/([^/]+)/loss").items():
            kinds.setdefault(name, {})[f"{split} {name}"] = line
    own = (
        Panel(f"{kind if len(lines) > 1 else next(iter(lines))} loss (nats)", lines)
        for kind, lines in kinds.items()
    )
    return stack("Training losses", rows, phases, *own)


def _gradients(rows: Sequence[Row], phases: Sequence[Span]) -> Figure | None:
    keys = {pair: layers[""] for pair, layers in series.cosine_keys(rows).items() if "" in layers}
    cosines = {pair: series.over_steps(rows, key) for pair, key in keys.items()}
    label = "cosine"
    if len(cosines) > PAIRS:
        label = f"cosine, {PAIRS} lowest of {len(cosines)}"
        lowest = sorted(cosines, key=lambda pair: series.late_mean(cosines[pair]))[:PAIRS]
        cosines = {pair: cosines[pair] for pair in sorted(lowest)}
    norms = Panel("norm", series.matching(rows, r"moo/norm/(.+)"), log=True)
    heading = "Gradients on the shared encoder"
    return stack(heading, rows, phases, norms, Panel(label, cosines, zero=True))


def _schedules(rows: Sequence[Row], phases: Sequence[Span]) -> Figure | None:
    penalties = series.matching(rows, r"penalty/(\d+)")
    weights = Panel("penalty", {f"level {n}": line for n, line in penalties.items()})
    rates = panels.merge_equal(series.matching(rows, r"lr/(.+)"))
    return stack("Schedules", rows, phases, weights, Panel("learning rate", rates, nested=True))


def _codebooks(rows: Sequence[Row], phases: Sequence[Span]) -> Figure | None:
    codes = Panel("perplexity (codes)", series.matching(rows, r"codebook/(.+)/perplexity"))
    share = Panel("share of its maximum", series.matching(rows, r"codebook/(.+)/share"))
    return stack("Codebooks", rows, phases, codes, share)


# Scores


def _scores(rows: Sequence[Row], phases: Sequence[Span]) -> Figure | None:
    """Scores of dev, a row per measure: over compute on the left, over steps on the right. A task
    has the colour of its loss; the mean of tasks is bold. A single task is shown with the sample of
    its training utterances."""
    kinds = {kind: list(series.matching(rows, rf"(dev(?:/.+)?)/{kind}")) for kind in MEASURES}
    kinds = {kind: names for kind, names in kinds.items() if names}
    if not kinds:
        return None
    for kind, names in kinds.items():
        if names == ["dev"] and series.matching(rows, rf"(train_sample)/{kind}"):
            names.append("train_sample")
    heights = [max(2.6, panels.ENTRY * len(names)) for names in kinds.values()]
    figure, grid = panels.column_of_panels(heights, columns=2)
    for (left, right), (kind, names) in zip(grid, kinds.items(), strict=True):
        _score_row(left, right, kind, names, rows)
        panels.shade(right, phases, series.last_step(rows), named=right is grid[0, 1])
    grid[-1, 0].set_xlabel("encoder compute (TFLOP)")
    grid[-1, 1].set_xlabel("step")
    title(figure, "Greedy decoding during training")
    return figure


def _score_row(left: Axes, right: Axes, kind: str, names: list[str], rows: Sequence[Row]) -> None:
    called = {f"dev/{name}": name for name in series.losses(rows)}
    tasks = [name for name in names if name in called]
    if len(tasks) == 1:
        names = [name for name in names if name != "dev"]  # the mean of one task is its score
    order = list(dict.fromkeys([*called, *names])) if tasks else names
    called = {name: called.get(name, "mean" if tasks else name) for name in names}
    labels = {n: _valued(called[n], kind, series.over_steps(rows, f"{n}/{kind}")) for n in names}
    bold = "dev" if tasks else ""
    for axes, line in ((left, series.over_compute), (right, series.over_steps)):
        _rates(axes, kind, {n: line(rows, f"{n}/{kind}") for n in names}, order, labels, bold)
    split = "" if "train_sample" in names else names[0] if len(names) == 1 else "dev"
    left.set_ylabel(_label(f"{split}/{kind}"))
    if len(names) > 1:
        panels.legend_beside(right)


def compute_figure(runs: Mapping[str, Sequence[Row]], measure: str) -> Figure | None:
    """A measure over compute, one line per run of {name: rows}."""
    found = {name: series.over_compute(rows, measure) for name, rows in runs.items()}
    found = sorted((item for item in found.items() if len(item[1][0])), key=lambda i: -i[1][1][-1])
    if not found:
        return None
    figure = Figure((WIDTH, 4.8 + 0.13 * len(found)))
    axes = figure.subplots()
    kind = measure.split("/")[-1]
    labels = {name: _valued(name, kind, line) for name, line in found}
    _rates(axes, kind, dict(found), labels=labels)
    axes.set_xlabel("encoder compute (TFLOP)")
    axes.set_ylabel(_label(measure))
    figure.legend(loc="outside lower left", ncols=2)
    title(figure, f"{_label(measure)} over compute; run and last value")
    return figure


def _rates(
    axes: Axes,
    kind: str,
    lines: Lines,
    order: Sequence[str] = (),
    labels: Mapping[str, str] = MappingProxyType({}),
    bold: str = "",
) -> None:
    """Draw scores, cut at 100: error rates above 100 % occur at the start of training."""
    scale = MEASURES[kind].scale
    shown = {name: (x, scale * y) for name, (x, y) in lines.items()}
    panels.draw_lines(axes, shown, order, labels=labels, bold=bold)
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


def _label(key: str) -> str:
    unit = MEASURES[key.split("/")[-1]].unit
    return series.score_name(key) + (f" ({unit})" if unit else "")


def _valued(name: str, kind: str, line: Line) -> str:
    """Name and last value of a line, for a legend."""
    measure = MEASURES[kind]
    return f"{name}  {measure.scale * line[1][-1]:.1f}{measure.unit}"


CURVES = {
    "losses": (
        _losses,
        "Training losses, means over the steps between two log lines. On dev and on training "
        "utterances recognition losses are those of averaged parameters, without augmentation.",
    ),
    "scores": (_scores, "Development set over encoder compute and over steps, greedy decoding."),
    "gradients": (
        _gradients,
        "Gradients on the shared encoder: norm per objective, and cosine between two objectives "
        "(below 0 they conflict).",
    ),
    "schedules": (
        _schedules,
        "Schedules: the weight of each lower level, and the learning rate of each group.",
    ),
    "codebooks": (
        _codebooks,
        "Codebook perplexity: effective number of codes in use, and its share of all codes.",
    ),
}
