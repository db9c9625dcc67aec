"""Compare runs: one table of scores and costs, one picture of error rate over compute."""

import pathlib
from collections.abc import Sequence

from bljust_jax.common.files import write_text
from bljust_jax.reporting import plots
from bljust_jax.reporting.answers import differences
from bljust_jax.reporting.run_files import RunFiles, costs, score_order
from bljust_jax.reporting.text import narrow_table, number, rate


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
