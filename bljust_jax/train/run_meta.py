"""Run metadata in a checkpoint: best score, compute counters, open metric window, quarantine."""

from __future__ import annotations

import dataclasses
from typing import Any

from bljust_jax.monitoring import flops
from bljust_jax.train.early_stop import EarlyStop


@dataclasses.dataclass
class Best:
    """The best dev score so far, and its step."""

    errors: list[float]  # `Scored.rank`: lower is better, compared in order
    step: int


@dataclasses.dataclass
class RunMeta:
    """What a checkpoint stores besides arrays. The field names are the keys of its JSON object."""

    data: str  # `Corpus.digest`
    best: Best | None = None  # None before the first evaluation
    compute: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(flops.FRESH))
    window: dict[str, list[float]] = dataclasses.field(
        default_factory=dict
    )  # {name: [sum, weight]}
    skipped: int = 0  # consecutive non-finite steps up to now
    quarantined: Any = dataclasses.field(default_factory=list)  # `Quarantine.state`
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # `goodput.Clock.seconds`
    early: EarlyStop = dataclasses.field(default_factory=EarlyStop)
    unscored: bool = False  # an evaluation is due at this step, and was abandoned for a signal

    def to_json(self) -> dict[str, Any]:
        """A deep copy in JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> RunMeta:
        """The inverse of `to_json`."""
        best = fields["best"] and Best(**fields["best"])
        early = EarlyStop(**fields.get("early", {}))  # one of an earlier version has none
        return cls(**{**fields, "best": best, "early": early})

    def update_best(self, errors: list[float], step: int) -> bool:
        """Record the score of a step if it is lower than the best one; whether it was."""
        if self.best is not None and not errors < self.best.errors:
            return False
        self.best = Best(errors, step)
        return True
