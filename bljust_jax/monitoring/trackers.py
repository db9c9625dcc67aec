"""Metric trackers: write rows of metrics to metrics.jsonl and TensorBoard, and resume them."""

import json
import os
import pathlib
from typing import Any

from tensorboardX import SummaryWriter

from bljust_jax.monitoring import metrics


class JsonLines:
    """metrics.jsonl: one JSON object per line with its `step`.

    On resume, the rows that the run will write again are dropped: those after the restored step,
    and the `final` one. dropped: those rows.
    """

    def __init__(self, path: pathlib.Path, resumed_at: int | None):
        self.dropped: list[dict] = []
        if resumed_at is not None and path.exists():
            rows = metrics.read(path)
            keep = [r for r in rows if r["step"] <= resumed_at and "final" not in r]
            self.dropped = [r for r in rows if r["step"] > resumed_at or "final" in r]
            scratch = path.with_suffix(".tmp")
            scratch.write_text("".join(json.dumps(r) + "\n" for r in keep))
            scratch.replace(path)
        self._file = path.open("a" if resumed_at is not None else "w")

    def write(self, step: int, row: dict[str, Any]) -> None:
        self._file.write(json.dumps({"step": step, **row}, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """All rows are on disk, or in the bucket, when this returns."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """tb/: the numbers of each row as scalars."""

    def __init__(self, folder: pathlib.Path, resumed_at: int | None):
        purge = 0 if resumed_at is None else resumed_at + 1
        self._board = SummaryWriter(str(folder), purge_step=purge)

    def write(self, step: int, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


class MetricWriter:
    """Both trackers of a workdir; an inactive one (of any process but the first) writes nothing."""

    def __init__(self, workdir: pathlib.Path, resumed_at: int | None, active: bool = True):
        self._rows = JsonLines(workdir / "metrics.jsonl", resumed_at) if active else None
        self._board = TensorBoard(workdir / "tb", resumed_at) if active else None

    @property
    def dropped(self) -> list[dict]:
        """Rows of metrics.jsonl that the run will write again."""
        return self._rows.dropped if self._rows else []

    def write(self, step: int, row: dict[str, Any]) -> None:
        if self._rows and self._board:
            self._rows.write(step, row)
            self._board.write(step, row)

    def sync(self) -> None:
        if self._rows:
            self._rows.sync()

    def close(self) -> None:
        if self._rows and self._board:
            self._rows.close()
            self._board.close()
