"""Means as (sum, weight) pairs, and the files that hold them.

A mean is taken once, over the whole window between two log lines, so it is exact over batches and
hosts. `metrics.jsonl` holds one JSON object a line with its `step`; TensorBoard gets the same
numbers.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from typing import Any

import jax
from tensorboardX import SummaryWriter

from bljust_jax.bilevel.types import Means


class Window:
    """Sums and weights since the last log line, in float64 on the host.

    A step's values stay on the device until they are asked for. `add` waits for the step before,
    so the device always has its next step and the host is never further ahead than that.
    """

    def __init__(self, totals: dict[str, list[float]] | None = None, skipped: int = 0):
        self.totals = {k: list(v) for k, v in (totals or {}).items()}
        self.skipped = skipped  # steps in a row, up to now, that were not finite
        self.longest_skip, self.last_skipped = 0, -1  # the longest row of them, and its last step
        self._queue: list[tuple[int, Means]] = []

    def add(self, step: int, metrics: Means) -> None:
        if self._queue:
            jax.block_until_ready(self._queue[-1])
        self._queue.append((step, metrics))

    def settle(self) -> dict[str, list[float]]:
        """Fetch what is queued; returns a copy of the totals, {name: [sum, weight]}.

        A pair that is not finite is left out: `train/skipped` counts its step.
        """
        steps, self._queue = jax.device_get(self._queue), []
        for number, step in steps:
            for name, pair in sorted(step.items()):
                total, weight = (float(x) for x in pair)
                if math.isfinite(total) and math.isfinite(weight):
                    entry = self.totals.setdefault(name, [0.0, 0.0])
                    entry[0] += total
                    entry[1] += weight
            skipped = float(step.get("train/skipped", (0, 1))[0]) > 0
            self.skipped = self.skipped + 1 if skipped else 0
            if skipped and self.skipped >= self.longest_skip:
                self.longest_skip, self.last_skipped = self.skipped, int(number)
        return {k: list(v) for k, v in self.totals.items()}

    def means(self) -> dict[str, float]:
        """Settle, return {name: sum / weight} (weight 0: left out), and start the next window."""
        self.settle()
        means = {k: s / w for k, (s, w) in sorted(self.totals.items()) if w > 0}
        self.totals = {}
        return means


class Writer:
    """Appends rows to `metrics.jsonl` and TensorBoard; on resume drops the rows that the run will
    write again: those after the restored step, and the `final` one. `dropped`: those rows."""

    def __init__(self, workdir: pathlib.Path, resumed_at: int | None, active: bool = True):
        self.path = workdir / "metrics.jsonl"
        self._file = self._board = None
        self.dropped: list[dict] = []
        if not active:
            return
        if resumed_at is not None and self.path.exists():
            rows = read(self.path)
            keep = [r for r in rows if r["step"] <= resumed_at and "final" not in r]
            self.dropped = [r for r in rows if r["step"] > resumed_at or "final" in r]
            scratch = self.path.with_suffix(".tmp")
            scratch.write_text("".join(json.dumps(r) + "\n" for r in keep))
            scratch.replace(self.path)
        self._file = self.path.open("a" if resumed_at is not None else "w")
        purge = 0 if resumed_at is None else resumed_at + 1
        self._board = SummaryWriter(str(workdir / "tb"), purge_step=purge)

    def write(self, step: int, row: dict[str, Any]) -> None:
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **row}, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in row.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """All rows so far are on disk when this returns, or have reached the bucket."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._board.close()


def read(path: pathlib.Path) -> list[dict]:
    """The rows of a metrics file; a last line cut short by a crash is left out."""
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
