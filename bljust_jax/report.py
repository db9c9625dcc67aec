"""`report.md`: what a run did, what it cost and what it reached, on one page."""

from __future__ import annotations

import pathlib
from typing import Any

from bljust_jax import metrics

SHOWN = ("train/ctc/loss", "train/cpc/loss", "penalty/1", "moo/cos/ctc|cpc", "dev/wer", "dev/cer")


def write(workdir: pathlib.Path, config: Any, phases: list[tuple], final: dict) -> None:
    """Write `workdir/report.md` from the phase table, the final metrics and `metrics.jsonl`."""
    lines = [f"# {workdir.name}: {config.recipe}, method {config.method}, seed {config.seed}", ""]
    lines += _table(("measure", "value"), [(k, _number(v)) for k, v in sorted(final.items())])
    lines += ["", "## Phases", ""]
    lines += _table(("phase", "steps", "levels"), phases)
    lines += ["", "Compute counts encoder FLOPs (forward 1, backward 2) over padded audio.", ""]
    lines += ["## Course", ""]
    lines += _table(("step", *SHOWN), _course(metrics.read(workdir / "metrics.jsonl")))
    (workdir / "report.md").write_text("\n".join(lines) + "\n")


def _course(rows: list[dict], points: int = 12) -> list[tuple]:
    """`points` evenly spaced stretches of the run, each with the last value it logged of every
    measure."""
    rows = [r for r in rows if "final" not in r]
    if not rows:
        return []
    last = rows[-1]["step"]
    marks = sorted({round(last * (n + 1) / points) for n in range(points)})
    table = []
    for start, end in zip([0, *marks], marks, strict=False):
        logged = {k: v for r in rows if start < r["step"] <= end for k, v in r.items()}
        table.append((end, *(_number(logged[k]) if k in logged else "" for k in SHOWN)))
    return table


def _table(head: tuple, rows: list[tuple]) -> list[str]:
    """A Markdown table whose columns line up in a terminal."""
    cells = [tuple(str(c).replace("|", "/") for c in row) for row in [head, *rows]]
    widths = [max(len(row[n]) for row in cells) for n in range(len(head))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return lines


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
