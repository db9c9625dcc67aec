"""Metric windows: exact means of (sum, weight) pairs over steps, and rows of metrics.jsonl.

A mean is taken once over the whole window between two log lines, so it is exact over batches and
hosts.
"""

import math
import pathlib

import jax

from bljust_jax.bilevel.types import Means
from bljust_jax.common.files import read_json_lines


class Window:
    """Sums and weights since the last log line, in float64 on the host.

    The values of a step stay on the device until they are needed. `add` waits for the step before,
    so that the device always has its next step and the host is at most one step ahead.
    """

    def __init__(self, totals: dict[str, list[float]] | None = None, skipped: int = 0):
        self.totals = {k: list(v) for k, v in (totals or {}).items()}
        self.skipped = skipped  # consecutive non-finite steps up to now
        self.longest_skip, self.last_skipped = 0, -1  # their largest number, and its last step
        self._queue: list[tuple[int, Means]] = []

    def add(self, step: int, metrics: Means) -> None:
        """Queue the metrics of a step."""
        if self._queue:
            jax.block_until_ready(self._queue[-1])
        self._queue.append((step, metrics))

    def settle(self) -> dict[str, list[float]]:
        """Fetch what is queued; returns a copy of the totals, {name: [sum, weight]}.

        Pairs that are not finite are skipped; `train/skipped` counts their steps.
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
        """Settle, return {name: sum / weight} (none for weight 0), and start the next window."""
        self.settle()
        means = {k: s / w for k, (s, w) in sorted(self.totals.items()) if w > 0}
        self.totals = {}
        return means


def read(path: pathlib.Path) -> list[dict]:
    """The rows of a metrics file, without lines that are none (`files.read_json_lines`)."""
    return [row for row in read_json_lines(path) if isinstance(row.get("step"), int)]
