"""Where the wall time of a run goes, over all its restarts.

At any moment a run does one thing: it starts (from the command to the loop, other hosts and the
state that it restores included), compiles, waits for input, takes steps, evaluates or saves. What a
run that died had done after its last save was lost: the time from then to the last row that it
logged.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

KINDS = ("step", "input", "compile", "save", "evaluate", "start", "lost")
WALL = "perf/wall_s"  # of a row of metrics.jsonl: seconds of all runs until it was written


class Clock:
    """Seconds of each of `KINDS`; all of the time since `began` is of exactly one of them."""

    def __init__(self, began: float | None = None):
        """`began`: by `time.monotonic`; None for now."""
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._kind = "start"
        self._began = self._since = time.monotonic() if began is None else began

    def turn(self, kind: str) -> str:
        """From now on the time is of `kind`; returns what it was of before."""
        now = time.monotonic()
        self._seconds[self._kind] += now - self._since
        before, self._kind, self._since = self._kind, kind, now
        return before

    @contextlib.contextmanager
    def on(self, kind: str) -> Iterator[None]:
        """The time inside is of `kind`, and of nothing around it."""
        before = self.turn(kind)
        try:
            yield
        finally:
            self.turn(before)

    def seconds(self) -> dict[str, float]:
        """Up to now; JSON types, for a checkpoint."""
        self.turn(self._kind)
        return dict(self._seconds)

    @property
    def age(self) -> float:
        """Seconds since `began`."""
        return time.monotonic() - self._began

    @property
    def wall(self) -> float:
        """Seconds of this run and those before it."""
        return sum(self.seconds().values())

    def resume(self, saved: Mapping[str, float], dropped: Sequence[Mapping[str, Any]]) -> None:
        """Add what the runs before had spent when they saved, and what was lost after that, as the
        rows tell that they logged since."""
        for kind, seconds in saved.items():
            self._seconds[kind] += seconds
        last = max((row.get(WALL, 0.0) for row in dropped), default=0.0)
        self._seconds["lost"] += max(last - sum(saved.values()), 0.0)

    def shares(self) -> dict[str, float]:
        """perf/*: goodput is the share of steps; input the waits of the loop for a batch, during
        which the device may still be busy with the step before."""
        seconds = self.seconds()
        wall = max(sum(seconds.values()), 1e-9)
        rest = {f"perf/share/{kind}": seconds[kind] / wall for kind in KINDS[1:]}
        return {"perf/goodput": seconds["step"] / wall, **rest, WALL: wall}


def describe(shares: Mapping[str, float]) -> str:
    """goodput 83 %: step 83, input 1, compile 9, save 1, evaluate 5, start 1, lost 0 (of 12:31)."""
    step = shares["perf/goodput"]
    parts = {"step": step} | {kind: shares[f"perf/share/{kind}"] for kind in KINDS[1:]}
    listed = ", ".join(f"{kind} {100 * share:.0f}" for kind, share in parts.items())
    return f"goodput {100 * step:.0f} %: {listed} (of {in_minutes(shares[WALL])})"


def in_minutes(seconds: float) -> str:
    """h:mm:ss, or m:ss under an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
