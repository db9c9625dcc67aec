"""Metric trackers: write rows of metrics to metrics.jsonl and TensorBoard, and resume them."""

import json
import logging
import os
import pathlib
from typing import Any

from tensorboardX import SummaryWriter

from bljust_jax.common.files import write_text
from bljust_jax.monitoring import metrics


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    try:
        return metrics.read(path)
    except ValueError as error:  # the checkpoint that is resumed from is whole
        logging.warning("%s is damaged (%s) and is begun anew", path, error)
        return []


class MetricWriter:
    """metrics.jsonl, one JSON object per line with its `step`, and tb/, its numbers as scalars.

    On resume, the rows that the run will write again are dropped: those after the restored step,
    and the `final` one. dropped: those rows. An inactive writer (of any process but the first)
    writes nothing.
    """

    def __init__(self, workdir: pathlib.Path, resumed_at: int | None, active: bool = True):
        self._active, self.dropped = active, []
        if not active:
            return
        path, resumed = workdir / "metrics.jsonl", resumed_at is not None
        if resumed and path.exists():
            rows = _rows(path)
            keep = [r for r in rows if r["step"] <= resumed_at and "final" not in r]
            self.dropped = [r for r in rows if r["step"] > resumed_at or "final" in r]
            write_text(path, "".join(json.dumps(r) + "\n" for r in keep))
        self._file = path.open("a" if resumed else "w", encoding="utf-8")
        purge = resumed_at + 1 if resumed else 0
        self._board = SummaryWriter(str(workdir / "tb"), purge_step=purge)

    def write(self, step: int, row: dict[str, Any]) -> None:
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, **row}, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in row.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """All rows are on disk, or in the bucket, when this returns."""
        if self._active:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._active:
            self._file.close()
            self._board.close()
