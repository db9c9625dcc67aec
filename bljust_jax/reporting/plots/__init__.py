"""Draw the pictures of a run with matplotlib: PNG files, 1000 pixels wide."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bljust_jax.common.files import replacing
from bljust_jax.reporting.plots import grid
from bljust_jax.reporting.plots.curves import CURVES, compute_figure
from bljust_jax.reporting.plots.objectives import OBJECTIVES
from bljust_jax.reporting.plots.series import MEASURES, Row, Span, cosine_keys, score_name
from bljust_jax.reporting.plots.speech import SPEECH
from bljust_jax.reporting.plots.style import STYLE

__all__ = ["MEASURES", "Picture", "Row", "Span", "compare", "cosine_keys", "draw", "save_grid"]
__all__ += ["score_name"]

OVER_STEPS = CURVES | OBJECTIVES
ORDER = (
    *("losses", "scores", "gradients", "weights", "cosines", "layers"),
    *("schedules", "codebooks"),
)


class Picture(NamedTuple):
    """A file in the folder of pictures, and a sentence on its content."""

    file: str
    caption: str


def draw(
    folder: pathlib.Path,
    rows: Sequence[Row],
    phases: Sequence[Span],
    example: Mapping[str, np.ndarray] | None = None,
) -> list[Picture]:
    """Draw every picture that `rows` (of `metrics.jsonl`) and `example` (see `example.make`) have
    data for; write them to `folder` and return them in the order of a report."""
    rows = [row for row in rows if "final" not in row]
    with matplotlib.rc_context(STYLE):
        drawn = [(name, *OVER_STEPS[name]) for name in ORDER]
        figures = [(name, make(rows, phases), caption) for name, make, caption in drawn]
        if example is not None:
            figures += [(name, make(example), text) for name, (make, text) in SPEECH.items()]
        return [
            Picture(f"{name}.png", caption)
            for name, figure, caption in figures
            if _save(figure, folder / f"{name}.png")
        ]


def compare(path: pathlib.Path, runs: Mapping[str, Sequence[Row]], measure: str) -> bool:
    """Draw `measure` (such as `dev/wer`) over compute into `path`, one line per run of {name:
    rows}. Returns whether any run has it; otherwise nothing is written."""
    with matplotlib.rc_context(STYLE):
        return _save(compute_figure(runs, measure), path)


def save_grid(path: pathlib.Path, kind: str, *given: object) -> bool:
    """Draw the picture `kind` of a comparison (a function of `grid`) into `path`. Returns whether
    there are data for it; otherwise nothing is written."""
    with matplotlib.rc_context(STYLE):
        return _save(getattr(grid, kind)(*given), path)


def _save(figure: Figure | None, path: pathlib.Path) -> bool:
    """Write the figure, or delete the file of an earlier call if it is None. Returns whether there
    is a figure."""
    if figure is None:
        path.unlink(missing_ok=True)
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:], metadata={"Software": None})
    return True
