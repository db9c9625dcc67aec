"""How pictures look: colours, sizes, titles, and text that can be drawn.

Colours are those of Okabe and Ito ("Color Universal Design", 2008), told apart by every kind of
colour vision; lines differ in their dashes as well once colours run out.
"""

from __future__ import annotations

import functools

from matplotlib import font_manager
from matplotlib.figure import Figure

BLUE, RED, GREEN, PURPLE, ORANGE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, "#56b4e9", "#000000")
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
    figure.suptitle(legible(text), x=0.01, ha="left", fontsize=13, fontweight="bold")


def legible(text: str) -> str:
    """What can be drawn: a box for a character without a glyph, and no mathematics."""
    drawn = "".join(c if ord(c) in _glyphs() else "\u25a1" for c in text)
    return drawn.replace("$", r"\$")


@functools.cache
def _glyphs() -> frozenset[int]:
    """The characters of matplotlib's own font."""
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return frozenset(font.get_charmap())
