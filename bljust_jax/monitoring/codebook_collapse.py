"""Collapse alarm: a loss may fall while all frames get the same code, or the same target."""

import re
from collections.abc import Mapping
from typing import Any

from bljust_jax.common.errors import UserError
from bljust_jax.monitoring.low_rows import LowRows

# {metric: (what collapses, the value that falls, cure)}
WATCHED = {
    r"codebook/(.*)/share": (
        "codebook {}",
        "perplexity has been under {:.0%} of its maximum",
        "raise config.wav2vec2.diversity or config.birq.label_entropy",
    ),
    r"(.*)/target_std": (
        "the target of {}",
        "standard deviation has been under {:.0%} of that of a normalised layer",
        "raise config.data2vec.tau_start or config.data2vec.mask_prob",
    ),
}


class CollapseAlarm:
    """Monitor the metrics `WATCHED` in the rows of metrics.jsonl: `codebook/<name>/share`,
    perplexity over its maximum, min(codes, frames), and `<name>/target_std`, at most about 1.

    Called with a row, it returns log lines: one when a value has been below `share` for `rows`
    consecutive rows, one when it has recovered. With `stop`, UserError instead of the first.
    """

    def __init__(self, share: float, rows: int, stop: bool):
        self._share, self._rows, self._stop = share, rows, stop
        self._low = LowRows(share, rows)

    def __call__(self, row: Mapping[str, Any]) -> list[str]:
        lines = []
        for metric, value in row.items():
            for pattern, (what, falls, cure) in WATCHED.items():
                if found := re.fullmatch(pattern, metric):
                    lines += self._line(what.format(found[1]), falls, cure, value)
        return lines

    def _line(self, what: str, falls: str, cure: str, value: float) -> list[str]:
        """The line of one value in a row, if it has one."""
        change = self._low.count(what, value)
        if change == "recovered":
            return [f"{what} has recovered: {value:.1%} of it"]
        if change != "low":
            return []
        line = (
            f"{what} collapses: its {falls.format(self._share)} for {self._rows} rows of "
            f"metrics.jsonl, {value:.1%} now: lower the learning rate, or {cure}; "
            "--config.collapse.stop=False continues nevertheless"
        )
        if self._stop:
            raise UserError(line)
        return [line]
