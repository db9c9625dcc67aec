"""Training progress on stderr: log lines, rates per step, and a status line with the time left."""

from collections.abc import Mapping
from typing import Any

from bljust_jax.common.console import StatusLine
from bljust_jax.monitoring.goodput import Clock, in_minutes


class Progress:
    """Steps/s, audio seconds/s, losses, penalty and time left: redrawn in place on a terminal, a
    line per log interval elsewhere. Rates count the time of steps and of waits for input alone."""

    def __init__(
        self,
        total: int,
        start: int,
        clock: Clock,
        computed: Mapping[str, Any],
        peak: float | None = None,
        active: bool = True,
    ):
        """`computed`: compute/* up to `start`; `peak`: FLOP/s of all devices, None if unknown."""
        self._total, self._clock, self._peak = total, clock, peak
        self._status = StatusLine(active=active, interval=0.0)
        self._start, self._began = start, self._working()
        self._mark = (start, self._began, *_audio_and_tflop(computed), clock.seconds()["input"])

    def _working(self) -> float:
        seconds = self._clock.seconds()
        return seconds["step"] + seconds["input"]

    def log(self, text: str) -> None:
        """Print a line."""
        self._status.log(text)

    def rates(self, step: int, computed: Mapping[str, Any], waited: float) -> dict[str, float]:
        """perf/* over the steps since the last call. `computed` (compute/*) and the seconds
        `waited` for batches are totals of the whole run up to `step`."""
        mark = (step, self._working(), *_audio_and_tflop(computed), waited)
        steps, span, audio, tflop, wait = (
            now - before for now, before in zip(mark, self._mark, strict=True)
        )
        self._mark, span = mark, max(span, 1e-9)
        utilisation = {"perf/mfu": tflop * 1e12 / span / self._peak} if self._peak else {}
        return {
            "perf/steps_per_s": steps / span,
            "perf/audio_s_per_s": audio / span,
            "perf/input_wait": wait / span,
            **utilisation,
        }

    def show(self, step: int, phase: str, row: dict[str, float]) -> None:
        """Redraw the status line, or print it."""
        losses = " ".join(
            f"{name.split('/')[1]} {value:.3f}"
            for name, value in row.items()
            if name.startswith("train/") and name.endswith("/loss")
        )
        penalty = "".join(f" penalty {v:.3f}" for n, v in row.items() if n.startswith("penalty/"))
        elapsed = self._working() - self._began
        left = elapsed / max(step - self._start, 1) * (self._total - step)
        self._status.update(
            f"{step}/{self._total} {phase} {losses}{penalty}  "
            f"{row['perf/steps_per_s']:.1f} steps/s {row['perf/audio_s_per_s']:.0f} s audio/s  "
            f"{in_minutes(left)} left"
        )


def _audio_and_tflop(computed: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds of audio, and encoder TFLOP, of compute/*."""
    return 3600 * computed["compute/audio_hours"], computed["compute/encoder_tflop"]
