"""Codebook collapse alarm: a loss may fall while all frames get the same code."""

from collections.abc import Mapping
from typing import Any

from bljust_jax.common.errors import UserError

CURE = (
    "lower the learning rate, or raise config.wav2vec2.diversity or config.birq.label_entropy; "
    "--config.collapse.stop=False continues nevertheless"
)


class CollapseAlarm:
    """Monitor `codebook/<name>/share` in the rows of metrics.jsonl: perplexity over its maximum,
    min(codes, frames).

    Called with a row, it returns log lines: one when the share has been below `share` for `rows`
    consecutive rows, one when it has recovered. With `stop`, UserError instead of the first.
    """

    def __init__(self, share: float, rows: int, stop: bool):
        self._share, self._rows, self._stop = share, rows, stop
        self._low: dict[str, int] = {}

    def __call__(self, row: Mapping[str, Any]) -> list[str]:
        lines = []
        for metric, value in row.items():
            if not (metric.startswith("codebook/") and metric.endswith("/share")):
                continue
            name = metric.split("/")[1]
            before = self._low.get(name, 0)
            self._low[name] = before + 1 if value < self._share else 0
            if self._low[name] == self._rows:
                lines.append(
                    f"codebook {name} collapses: its perplexity has been under {self._share:.0%} "
                    f"of its maximum for {self._rows} rows of metrics.jsonl, {value:.1%} now: "
                    + CURE
                )
            elif before >= self._rows and not self._low[name]:
                lines.append(f"codebook {name} has recovered: {value:.1%} of its maximum")
        if lines and self._stop and max(self._low.values()) >= self._rows:
            raise UserError(lines[0])
        return lines
