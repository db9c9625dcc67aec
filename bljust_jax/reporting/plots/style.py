"""Colours, sizes, titles and drawable text of the pictures.

Colours are those of Okabe and Ito ("Color Universal Design", 2008), which every kind of colour
vision distinguishes; beyond their number lines differ in their dashes.
"""

import functools

import numpy as np
from matplotlib import font_manager
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

BLUE, RED, GREEN, PURPLE, ORANGE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, "#56b4e9", "#000000")
CONFLICT = "RdBu"  # of cosines: red below 0, blue above
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.12,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d0d0d0",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
WIDTH = 10.0  # inches, 1000 pixels


def title(figure: Figure, text: str) -> None:
    """Set the title of a figure."""
    figure.suptitle(legible(text), x=0.01, ha="left", fontsize=13, fontweight="bold")


def area_colours(number: int) -> list[tuple[float, float, float]]:
    """Colours of areas: those of lines without black, then paler ones."""
    bright = [to_rgb(colour) for colour in COLOURS[:-1]]
    rounds = -(-number // len(bright))
    paleness = [0.7 * n / max(rounds - 1, 1) for n in range(rounds)]
    shades = [(np.array(rgb) * (1 - p) + p).tolist() for p in paleness for rgb in bright]
    return [tuple(rgb) for rgb in shades[:number]]


def legible(text: str) -> str:
    """The text with a box for each character without a glyph, and "$" escaped."""
    drawn = "".join(c if ord(c) in _glyphs() else "\u25a1" for c in text)
    return drawn.replace("$", r"\$")


@functools.cache
def _glyphs() -> frozenset[int]:
    """The characters of matplotlib's default font."""
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return frozenset(font.get_charmap())
