"""What a person sees on stderr: one line that stays in place on a terminal, plain lines
elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator


class Progress:
    """Steps/s, audio seconds/s, losses, penalty and time left; quiet between log lines where stderr
    is no terminal."""

    def __init__(self, total: int, start: int, active: bool = True):
        self._total, self._active = total, active
        self._live = active and sys.stderr.isatty()
        self._began = self._mark = time.monotonic()
        self._start = self._marked_step = start
        self._width = 0

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self._active:
            return
        if self._live and self._width:
            print("\r" + " " * self._width, end="\r", file=sys.stderr)
            self._width = 0
        print(text, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Time spent inside (compiling ahead, evaluation, saving) counts neither in rates nor in
        the time left."""
        began = time.monotonic()
        yield
        spent = time.monotonic() - began
        self._mark += spent
        self._began += spent

    def rates(self, step: int, audio_seconds: float, waited: float) -> dict[str, float]:
        """perf/* of the steps done since the last call; `waited`: seconds for their batches."""
        now = time.monotonic()
        span, self._mark = max(now - self._mark, 1e-9), now
        steps, self._marked_step = step - self._marked_step, step
        return {
            "perf/steps_per_s": steps / span,
            "perf/audio_s_per_s": audio_seconds / span,
            "perf/input_wait": waited / span,
        }

    def show(self, step: int, phase: str, row: dict[str, float]) -> None:
        """Redraw the line."""
        if not self._live:
            return
        losses = " ".join(
            f"{name.split('/')[1]} {value:.3f}"
            for name, value in row.items()
            if name.startswith("train/") and name.endswith("/loss")
        )
        penalty = "".join(f" penalty {v:.3f}" for n, v in row.items() if n.startswith("penalty/"))
        elapsed = time.monotonic() - self._began
        left = elapsed / max(step - self._start, 1) * (self._total - step)
        text = (
            f"{step}/{self._total} {phase} {losses}{penalty}  "
            f"{row['perf/steps_per_s']:.1f} steps/s {row['perf/audio_s_per_s']:.0f} s audio/s  "
            f"{clock(left)} left"
        )
        print("\r" + text.ljust(self._width), end="", file=sys.stderr, flush=True)
        self._width = len(text)


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss under an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
