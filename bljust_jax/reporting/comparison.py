"""Compare runs: one table of scores and costs, one picture of error rate over compute."""

import json
import os
import pathlib
from collections.abc import Sequence

from bljust_jax.common import console
from bljust_jax.common.errors import UserError
from bljust_jax.common.files import write_text
from bljust_jax.reporting import page, plots
from bljust_jax.reporting.answers import differences
from bljust_jax.reporting.run_files import (
    RunFiles,
    as_json,
    costs,
    read_run_files,
    score_order,
)
from bljust_jax.reporting.text import narrow_table, number, rate


def present(
    folders: Sequence[pathlib.Path], out: pathlib.Path | None, *, as_list: bool = False
) -> list[str]:
    """Write the report of one run, or the comparison of several into `out` (default: comparison/ in
    their parent folder); returns the lines to print, one line of JSON if `as_list`.

    UserError without a folder, for one that is no run, and for `out` with one run.
    """
    if not folders:
        raise UserError("required: RUN, or several to compare")
    runs = [read_run_files(folder) for folder in folders]
    if len(runs) == 1:
        if out is not None:
            raise UserError("--out is for the comparison of several runs; name two or more")
        lines, written = page.summary(runs[0]), page.write(runs[0].folder)
    else:
        common = pathlib.Path(os.path.commonpath([run.folder.resolve().parent for run in runs]))
        lines, written = write(runs, out or common / "comparison")
    console.log(f"written: {written}")
    return [json.dumps([as_json(run) for run in runs])] if as_list else lines


def write(runs: Sequence[RunFiles], out: pathlib.Path) -> tuple[list[str], pathlib.Path]:
    """Write `comparison.md` and, if dev was scored, `wer.png` and `bleu.png` into `out`.

    Returns the lines of the table and the path of `comparison.md`.
    """
    names = distinct_names(runs)
    compared = narrow_table(*_cells(names, runs))
    out.mkdir(parents=True, exist_ok=True)
    apart = differences(names, runs)
    lines = ["# Comparison", "", *compared, "", *([*apart, ""] if apart else [])]
    rows = {name: run.rows for name, run in zip(names, runs, strict=True)}
    for measure in ("wer", "bleu"):
        key = f"dev/{measure}"
        if plots.compare(out / f"{measure}.png", rows, key):
            caption = f"{plots.score_name(key)} over encoder compute, one line per run."
            lines += [f"![{measure}.png]({measure}.png)", "", caption, ""]
    path = out / "comparison.md"
    write_text(path, "\n".join(lines))
    return [*compared, *(["", *apart] if apart else [])], path


def _cells(names: Sequence[str], runs: Sequence[RunFiles]) -> tuple[tuple, list[tuple]]:
    """(head, rows) of the table: every score and cost that any run has."""
    scores = sorted({key for run in runs for key in run.scores}, key=score_order)
    labels = dict.fromkeys(label for run in runs for label in costs(run))
    labels = sorted(labels, key=lambda name: (not name.endswith("TFLOP"), "updates" not in name))
    head = ("run", "method", "seed", *map(plots.score_name, scores), *labels, "state")
    rows = []
    for name, run in zip(names, runs, strict=True):
        spent, about = costs(run), (name, run.config["method"], run.config["seed"])
        rates = (rate(key.split("/")[-1], run.scores.get(key)) for key in scores)
        figures = (number(spent.get(label, "")) for label in labels)
        rows.append((*about, *rates, *figures, run.state))
    return head, rows


def distinct_names(runs: Sequence[RunFiles]) -> list[str]:
    """The shortest trailing parts of the folders that differ between the runs."""
    paths = [run.folder.resolve().parts for run in runs]
    for depth in range(1, max(map(len, paths))):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(runs):
            break
    return names
