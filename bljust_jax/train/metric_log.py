"""Metric log of training: window means to metrics.jsonl, TensorBoard and the progress line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bljust_jax.bilevel.types import Means
from bljust_jax.monitoring import goodput, metrics, trackers
from bljust_jax.monitoring.progress import Progress


class Pending(NamedTuple):
    """A window that has ended and is not written yet."""

    step: int  # after its last step
    phase: str
    row: dict[str, Any]  # what is logged besides the window means
    input_seconds: float  # time spent waiting for batches, whole run


class MetricLog:
    """One row of metrics per window of `log_every` steps.

    A window is fetched and written while the step after it runs, so that no step waits for the
    host: `end_window` notes its end, `write_pending` writes it.
    """

    def __init__(
        self,
        window: metrics.Window,
        writer: trackers.MetricWriter,
        progress: Progress,
        clock: goodput.Clock,
        alarms: Sequence[Callable[[Mapping[str, Any]], list[str]]],
        check_finite: Callable[[metrics.Window], None],
    ):
        """After each row `check_finite` is called with the window, then each alarm with the row,
        for its log lines; both may raise UserError."""
        self.window, self.writer = window, writer
        self._progress, self._clock = progress, clock
        self._alarms, self._check_finite = alarms, check_finite
        self._pending: Pending | None = None

    def add(self, step: int, means: Means) -> None:
        """Add the metrics of one step to the open window."""
        self.window.add(step, means)

    def end_window(self, step: int, phase: str, row: dict[str, Any]) -> None:
        """End the open window after step - 1; `row` is logged with its means."""
        self._pending = Pending(step, phase, row, self._clock.seconds()["input"])

    def write_pending(self) -> None:
        """Write the window that has ended, if any; blocks until its last step is done."""
        if self._pending is None:
            return
        (step, phase, row, waited), self._pending = self._pending, None
        row = row | self.window.means()  # blocks: the rates below count completed steps
        row |= self._progress.rates(step, row, waited) | {goodput.WALL: self._clock.wall}
        self.writer.write(step, row)
        self._progress.show(step, phase, row)
        self._check_finite(self.window)
        for line in (line for alarm in self._alarms for line in alarm(row)):
            self._progress.log(line)
