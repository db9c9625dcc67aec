"""Starvation alarm: an objective of a multi-objective level whose weight stays near 0."""

from collections.abc import Mapping
from typing import Any

from bljust_jax.common.errors import UserError
from bljust_jax.monitoring.low_rows import LowRows

CURE = 'set config.moo.normalise="norm", raise config.moo.rho or lower config.moo.rate'
PREFIX = "moo/weight/"


class StarvationAlarm:
    """Monitor `moo/weight/<objective>`, the mean of a log window, in the rows of metrics.jsonl.

    Called with a row, it returns log lines: one when the weight has been below `weight` for `rows`
    consecutive rows, one when it has recovered. With `stop`, UserError instead of the first. A
    `weight` of 0 switches the alarm off.
    """

    def __init__(self, weight: float, rows: int, stop: bool):
        self._weight, self._rows, self._stop = weight, rows, stop
        self._low = LowRows(weight, rows)

    @classmethod
    def of(cls, config: Any) -> "StarvationAlarm":
        """The alarm of `config.moo`; off for a recipe without these fields."""
        moo = config.get("moo")
        if moo is None:
            return cls(0.0, 1, False)
        return cls(moo.starved_weight, moo.starved_rows, moo.starved_stop)

    def __call__(self, row: Mapping[str, Any]) -> list[str]:
        lines = []
        for metric, value in row.items():
            if not metric.startswith(PREFIX):
                continue
            name = metric.removeprefix(PREFIX)
            change = self._low.count(name, value)
            if change == "low":
                line = (
                    f"objective {name} starves: its weight has been under {self._weight:g} for "
                    f"{self._rows} rows of metrics.jsonl, {value:.4f} now: {CURE}"
                )
                if self._stop:
                    raise UserError(line)
                lines.append(line)
            elif change == "recovered":
                lines.append(f"objective {name} has recovered: its weight is {value:.3f}")
        return lines
