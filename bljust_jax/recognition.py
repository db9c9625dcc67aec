"""CTC on an encoder: the recogniser that every recipe trains, predicts with and is scored by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from bljust_jax.encoders import Encoder
from bljust_jax.errors import UserError
from bljust_jax.models import heads
from bljust_jax.objectives import ctc
from bljust_jax.ops.ctc import IMPLEMENTATIONS
from bljust_jax.system import Objective, Task

LOSS, HEAD = "ctc", "ctc_head"
# The choices of `config`'s fields that are read here.
CHOICES = {
    "ctc.reduction": ctc.REDUCTIONS,
    "ctc.context": ("full", "causal"),
    "ctc.implementation": IMPLEMENTATIONS,
}


@dataclasses.dataclass(frozen=True)
class Recognition:
    """`params["encoder"]`, whose output `params["ctc_head"]` maps to `vocab_size` logits, as
    `config.ctc` says."""

    config: Any
    encoder: Encoder
    vocab_size: int

    def __post_init__(self) -> None:
        context = self.config.ctc.context
        self.encoder.check_context("ctc.context", context, instead="full")
        if context == "causal" and self.config.model.get("norm") == "batch":
            raise UserError(
                'config.model.norm="batch": its moments are measured by CTC in full context alone; '
                'set config.ctc.context="full", or norm="layer"'
            )

    def init_head(self, rng: Any) -> dict:
        return heads.init(rng, self.encoder.dim, self.vocab_size)

    def encode(self, params: Any, x: Any, lengths: Any, *, stats: Any, **how: Any) -> tuple:
        """`Encoder.apply` on its part of params and stats."""
        own = stats.get("encoder", {})
        return self.encoder.apply(params["encoder"], x, lengths, stats=own, **how)

    def logits(self, params: Any, output: Any) -> Any:
        return heads.apply(params[HEAD], output)

    def predict(self, params: Any, stats: Any, batch: Any) -> tuple[Any, Any]:
        """(logits [B, T, K], lengths [B]) of the audio of a batch."""
        context = self.config.ctc.context
        stored = stats["features"] if context == "causal" else None
        x, lengths, _ = self.encoder.features(
            batch["audio"], batch["audio_lengths"], keys=None, train=False, stats=stored
        )
        how = {"context": context, "hide": None, "train": False, "rng": None}
        output, lengths, *_ = self.encode(params, x, lengths, stats=stats, **how)
        return self.logits(params, output), lengths

    def task(self) -> Task:
        return Task("", "labelled", "wer", HEAD, predict=self.predict)

    def objective(self) -> Objective:
        """CTC on the stream `labelled`."""
        return ctc.make(
            stream="labelled",
            features=self.encoder.features,
            encode=self.encode,
            context=self.config.ctc.context,
            **self._loss(),
        )

    def reader(self) -> Callable:
        """The loss alone, for a forward pass that several losses share."""
        return ctc.reader(**self._loss())

    def cost(self, seconds: float) -> float:
        """Encoder FLOPs of one training step on a row of so many padded seconds."""
        return 3 * self.encoder.flops(round(seconds * self.config.data.sample_rate))

    def _loss(self) -> dict[str, Any]:
        c = self.config.ctc
        return {
            "head": self.logits,
            "name": LOSS,
            "reduction": c.reduction,
            "implementation": c.implementation,
        }
