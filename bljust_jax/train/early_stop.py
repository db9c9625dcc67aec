"""End training before its last step: at an error of 0, or without improvement (`config.stop`)."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass
class EarlyStop:
    """Counts of evaluations of dev; a checkpoint stores them.

    waited: evaluations in a row, in the last phase, without a better score
    perfect: evaluations in a row with an error of 0
    """

    waited: int = 0
    perfect: int = 0

    def count(self, *, improved: bool, error: float, in_last_phase: bool) -> None:
        """Add an evaluation. error: that of the measure that chooses the best parameters."""
        self.waited = 0 if improved or not in_last_phase else self.waited + 1
        self.perfect = 0 if error else self.perfect + 1

    def reason(self, stop: Any) -> str:
        """Why training ends, "" while it goes on. stop: `config.stop`, whose 0 is never."""
        if 0 < stop.perfect <= self.perfect:
            return f"{self.perfect} evaluations in a row without an error (config.stop.perfect)"
        if 0 < stop.patience <= self.waited:
            return (
                f"{self.waited} evaluations in a row without a better score (config.stop.patience)"
            )
        return ""
