"""Codebook collapse alarm: a loss may fall while all frames get the same code."""

from collections.abc import Mapping
from typing import Any

from bljust_jax.common.errors import UserError
from bljust_jax.monitoring.low_rows import LowRows

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
        self._low = LowRows(share, rows)

    def __call__(self, row: Mapping[str, Any]) -> list[str]:
        lines = []
        for metric, value in row.items():
            if not (metric.startswith("codebook/") and metric.endswith("/share")):
                continue
            name = metric.split("/")[1]
            change = self._low.count(name, value)
            if change == "low":
                line = (
                    f"codebook {name} collapses: its perplexity has been under {self._share:.0%} "
                    f"of its maximum for {self._rows} rows of metrics.jsonl, {value:.1%} now: "
                    + CURE
                )
                if self._stop:
                    raise UserError(line)
                lines.append(line)
            elif change == "recovered":
                lines.append(f"codebook {name} has recovered: {value:.1%} of its maximum")
        return lines
