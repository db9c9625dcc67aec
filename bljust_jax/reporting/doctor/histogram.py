"""Histograms as inline SVG, with labelled axes and marked outliers."""

import html
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from bljust_jax.reporting.plots.style import BLUE, RED

WIDTH, HEIGHT = 520, 250  # pixels
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 50  # margins that hold ticks and labels
BINS = 40
LEAST = 3.0  # pixels of a bar that is not empty: one utterance among thousands is visible
TICKS = 6


def svg(
    values: Float[np.ndarray, "n"], marked: Bool[np.ndarray, "n"], label: str, *, log: bool = False
) -> str:
    """A histogram of `values`, those that are `marked` in red on top; `label` names the x axis with
    its unit. log: logarithmic x axis, for values above 0."""
    shown = np.log10(np.maximum(values, 1e-6)) if log else values
    edges = _edges(float(shown.min()), float(shown.max()))
    counts, _ = np.histogram(shown, edges)
    red, _ = np.histogram(shown[marked], edges)
    parts = [*_y_axis(int(counts.max())), *_x_axis(edges, label, log)]
    scale = (HEIGHT - TOP - BOTTOM) / counts.max()
    step = (WIDTH - LEFT - RIGHT) / BINS
    for k in np.flatnonzero(counts).tolist():
        height, over = (max(n * scale, LEAST) if n else 0.0 for n in (counts[k], red[k]))
        base, x = HEIGHT - BOTTOM, LEFT + k * step
        low = _value(edges[k], log), _value(edges[k + 1], log)
        text = f"{low[0]:.4g} to {low[1]:.4g}: {counts[k]} utterances, {red[k]} with a finding"
        parts.append(f"<g><title>{text}</title>")
        parts.append(_bar(x, base - height, step, height, BLUE))
        if over:
            parts.append(_bar(x, base - height, step, over, RED))
        parts.append("</g>")
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="histogram, {_text(label)}">'
    return "\n".join([head, *parts, "</svg>"])


def _bar(x: float, y: float, width: float, height: float, colour: str) -> str:
    size = f'width="{max(width - 1, 1):.2f}" height="{height:.2f}"'
    return f'<rect x="{x:.2f}" y="{y:.2f}" {size} fill="{colour}"/>'


def _edges(low: float, high: float) -> np.ndarray:
    """Edges of `BINS` equal bins; a single value is in their middle."""
    pad = 0.0 if high > low else max(abs(high), 1.0) / 10
    return np.linspace(low - pad, high + pad, BINS + 1)


def _value(edge: float, log: bool) -> float:
    return 10**edge if log else edge


def _y_axis(most: int) -> list[str]:
    parts = []
    for tick in ticks(0.0, float(most)):
        if tick != round(tick):
            continue
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * tick / most
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.0f}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 14 {middle})"'
    label = f'<text x="14" y="{middle}" text-anchor="middle" {turned}>utterances</text>'
    return [*parts, label]


def _x_axis(edges: np.ndarray, label: str, log: bool) -> list[str]:
    low, high = float(edges[0]), float(edges[-1])
    marks = _decades(low, high) if log else ticks(low, high)
    base = HEIGHT - BOTTOM
    parts = [f'<path class="axis" d="M{LEFT} {base}H{WIDTH - RIGHT}"/>']
    for tick in marks:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (tick - low) / (high - low)
        parts.append(f'<path class="axis" d="M{x:.1f} {base}v4"/>')
        text = f"{_value(tick, log):.4g}"
        parts.append(f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{text}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{_text(label)}</text>')
    return parts


def _decades(low: float, high: float) -> Sequence[float]:
    """Logarithms of powers of ten within the range, and of 2 and 5 times them if these are few."""
    decades = range(math.floor(low), math.floor(high) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [n + math.log10(factor) for n in decades for factor in factors]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) <= TICKS:
            break
    return found


def ticks(low: float, high: float) -> Sequence[float]:
    """At most `TICKS` multiples of 1, 2 or 5 times a power of ten within the range."""
    span = max(high - low, 1e-12)
    power = 10.0 ** math.floor(math.log10(span / TICKS))
    steps = (power * factor for factor in (1, 2, 5, 10, 20))
    step = next(s for s in steps if math.floor(high / s) - math.ceil(low / s) + 1 <= TICKS)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _text(label: str) -> str:
    return html.escape(label)
