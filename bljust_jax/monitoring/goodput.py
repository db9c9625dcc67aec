"""Goodput: wall time of a run by activity, over all its restarts.

The time is divided into start (from the command to the loop, joining hosts and restoring included),
compilation, waiting for input, steps, evaluation and saves. Time after the last save of a killed
run, up to its last logged row, counts as lost.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

KINDS = ("step", "input", "compile", "save", "evaluate", "start", "lost")
WALL = "perf/wall_s"  # metric: seconds of all restarts until the row was written


class Clock:
    """Seconds of each of `KINDS`; all time since `began` belongs to exactly one of them."""

    def __init__(self, began: float | None = None):
        """`began`: start by `time.monotonic`; None for now."""
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._kind = "start"
        self._began = self._since = time.monotonic() if began is None else began

    def turn(self, kind: str) -> str:
        """Count the time from now on as `kind`; returns the kind before."""
        now = time.monotonic()
        self._seconds[self._kind] += now - self._since
        before, self._kind, self._since = self._kind, kind, now
        return before

    @contextlib.contextmanager
    def on(self, kind: str) -> Iterator[None]:
        """Count the time of the context as `kind`."""
        before = self.turn(kind)
        try:
            yield
        finally:
            self.turn(before)

    def seconds(self) -> dict[str, float]:
        """{kind: seconds} up to now, in JSON types, for a checkpoint."""
        self.turn(self._kind)
        return dict(self._seconds)

    @property
    def age(self) -> float:
        """Seconds since `began`."""
        return time.monotonic() - self._began

    @property
    def wall(self) -> float:
        """Seconds of this run and the restarts before it."""
        return sum(self.seconds().values())

    def resume(self, saved: Mapping[str, float], dropped: Sequence[Mapping[str, Any]]) -> None:
        """Add the seconds of earlier runs at their last save, and as lost the time up to the last
        of the dropped rows, which were logged after that save."""
        for kind, seconds in saved.items():
            self._seconds[kind] += seconds
        last = max((row.get(WALL, 0.0) for row in dropped), default=0.0)
        self._seconds["lost"] += max(last - sum(saved.values()), 0.0)

    def shares(self) -> dict[str, float]:
        """perf/*: goodput is the share of steps; input is time that the loop waits for a batch,
        while the device may still run the step before."""
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
