"""Pictures of a comparison of methods: forest plot of differences, WER over compute and labels."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from bljust_jax.reporting.bootstrap import Interval
from bljust_jax.reporting.plots.style import COLOURS, DASHES, GREEN, RED, WIDTH, legible, title

GREY = "#555555"
MARKERS = "osD^vPX"


def forest(
    differences: Mapping[str, Mapping[str, Interval]], about: str, unfinished: str = ""
) -> Figure | None:
    """Forest plot: one panel per reference of {reference: {method: interval}}, one row per method,
    the best at the top; green is better than the reference, red worse, grey no answer. None without
    an interval."""
    panels = {name: own for name, own in differences.items() if own}
    if not panels:
        return None
    most = max(map(len, panels.values()))
    figure = Figure(figsize=(WIDTH, 1.6 + 0.42 * most))
    for n, (reference, own) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), n)
        methods = sorted(own, key=lambda name: own[name].value, reverse=True)
        ends = [100 * abs(v) for i in own.values() for v in (i.low, i.high) if np.isfinite(v)]
        limit = 1.15 * max([*ends, 1.0])
        for y, method in enumerate(methods):
            _row(axes, y, own[method], limit)
        axes.axvline(0, color="#000000", linewidth=1.2)
        axes.set_yticks(range(len(methods)), [legible(name) for name in methods])
        axes.set_ylim(-0.6, most - 0.4)
        axes.set_xlim(-limit, limit)
        axes.grid(axis="y", visible=False)
        axes.set_title(legible(f"against {reference}"), fontsize=11, loc="left")
        axes.set_xlabel("WER difference, points\n\u2190 better     worse \u2192")
    title(figure, f"{about}{unfinished}")
    return figure


def _row(axes, y: int, interval: Interval, limit: float) -> None:
    colour = GREY
    if interval.distinguishable:
        colour = GREEN if interval.value < 0 else RED
    low, high = (np.clip(100 * v, -limit, limit) for v in (interval.low, interval.high))
    axes.plot([low, high], [y, y], color=colour, linewidth=3.0, solid_capstyle="butt")
    axes.plot(100 * interval.value, y, "o", color=colour, markersize=9)
    text = f"{100 * interval.value:+.1f}"
    axes.annotate(
        text, (100 * interval.value, y), (0, 9), textcoords="offset points", ha="center", fontsize=9
    )


def per_run(wers: Mapping[str, Sequence[float]], about: str) -> Figure | None:
    """WER of each run as a point and of their mean as a bar, of {method: WERs}, the best at the
    top. None without a run."""
    if not wers:
        return None
    methods = sorted(wers, key=lambda name: float(np.mean(wers[name])), reverse=True)
    figure = Figure(figsize=(WIDTH, 1.4 + 0.42 * len(methods)))
    axes = figure.add_subplot()
    for y, method in enumerate(methods):
        values = 100 * np.array(wers[method])
        axes.plot(values, [y] * len(values), "o", color=COLOURS[0], alpha=0.6, markersize=8)
        mean = float(values.mean())
        axes.plot([mean, mean], [y - 0.3, y + 0.3], color="#000000", linewidth=2.5)
        axes.annotate(
            f"{mean:.1f}", (mean, y + 0.3), (0, 1), textcoords="offset points", ha="center",
            va="bottom", fontsize=9,
        )  # fmt: skip
    axes.set_yticks(range(len(methods)), [legible(name) for name in methods])
    axes.set_ylim(-0.6, len(methods) - 0.2)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("WER, % (points: runs; bars: means)")
    title(figure, about)
    return figure


def over(
    series: Mapping[str, Mapping[float, Sequence[float]]], axis: str, about: str
) -> Figure | None:
    """Mean WER with the range of its runs over compute or labelled amount: {method: {x: WERs}}.
    None unless a method has two values of x."""
    if not series or max(len(own) for own in series.values()) < 2:
        return None
    figure = Figure(figsize=(WIDTH, 5.0))
    axes = figure.add_subplot()
    values = sorted({x for own in series.values() for x in own})
    for n, (method, own) in enumerate(series.items()):
        xs = sorted(own)
        means = np.array([100 * np.mean(own[x]) for x in xs])
        ends = np.array([[100 * min(own[x]), 100 * max(own[x])] for x in xs]).T
        style = {"color": COLOURS[n % len(COLOURS)], "marker": MARKERS[n % len(MARKERS)]}
        shift = [x * (1 + 0.012 * (n - (len(series) - 1) / 2)) for x in xs]
        dash = DASHES[n // len(COLOURS) % len(DASHES)]
        apart = np.maximum(np.abs(ends - means), 0.0)
        axes.errorbar(
            shift, means, apart, label=legible(method), capsize=3, linestyle=dash, **style
        )
    axes.set_xscale("log")
    axes.set_xticks(values, [f"{x:g}" for x in values])
    axes.minorticks_off()
    axes.set_xlabel(axis)
    axes.set_ylabel("WER, % (mean, range of runs)")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    title(figure, about)
    return figure
