"""Timer for checkpoints every `config.save_minutes`, the same on all processes."""

from __future__ import annotations

import time

import jax
import numpy as np
from jax.experimental import multihost_utils


class SaveTimer:
    """Whether `minutes` have passed since the last save (0: never).

    The clock of the first process is read before each `every`-th step, and its answer broadcast."""

    def __init__(self, minutes: float | int, every: int):
        self._seconds, self._every = 60 * minutes, every
        self.restart()

    def restart(self) -> None:
        self._began = time.monotonic()

    def is_due(self, step: int) -> bool:
        """To be called before each step, by all processes."""
        if self._seconds == 0 or step % self._every:
            return False
        due = time.monotonic() - self._began >= self._seconds
        if jax.process_count() > 1:
            due = bool(multihost_utils.broadcast_one_to_all(np.bool_(due)))
        return due
