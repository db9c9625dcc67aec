"""CTC on an encoder: the recogniser that every recipe trains, predicts with and is scored by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from bljust_jax.bilevel.types import Objective, Task
from bljust_jax.common.errors import UserError
from bljust_jax.models import heads
from bljust_jax.models.encoders import Encoder
from bljust_jax.objectives import ctc

LOSS = "ctc"


def head_name(loss: str) -> str:
    """The part of the parameters that a loss alone owns: ctc_head, asr_en_head."""
    return f"{loss.replace('/', '_')}_head"


HEAD = head_name(LOSS)


def encode(encoder: Encoder, params: Any, x: Any, lengths: Any, *, stats: Any, **how: Any) -> tuple:
    """`Encoder.apply` on its part of params and stats."""
    return encoder.apply(params["encoder"], x, lengths, stats=stats.get("encoder", {}), **how)


def hear(config: Any, encoder: Encoder, params: Any, stats: Any, batch: Any) -> tuple[Any, Any]:
    """(output [B, T, D], frames [B]) of the audio of a batch, as evaluation hears it."""
    context = config.ctc.context
    x, lengths, _ = encoder.features(
        batch["audio"],
        batch["audio_lengths"],
        keys=None,
        train=False,
        stats=stats["features"] if context == "causal" else None,
    )
    how = {"context": context, "hide": None, "train": False, "rng": None}
    output, lengths, *_ = encode(encoder, params, x, lengths, stats=stats, **how)
    return output, lengths


@dataclasses.dataclass(frozen=True)
class Recognition:
    """`params["encoder"]`, whose output `params[head]` maps to `vocab_size` logits, as `config.ctc`
    says. Loss, head and task are named after the stream ("asr/en"), "ctc" where that is
    "labelled"."""

    config: Any
    encoder: Encoder
    vocab_size: int
    stream: str = "labelled"

    def __post_init__(self) -> None:
        context = self.config.ctc.context
        self.encoder.check_context("ctc.context", context, instead="full")
        if context == "causal" and self.config.model.get("norm") == "batch":
            raise UserError(
                'config.model.norm="batch": its moments are measured by CTC in full context alone; '
                'set config.ctc.context="full", or norm="layer"'
            )

    @property
    def loss(self) -> str:
        return LOSS if self.stream == "labelled" else self.stream

    @property
    def head(self) -> str:
        return head_name(self.loss)

    def init_head(self, rng: Any) -> dict:
        return heads.init(rng, self.encoder.dim, self.vocab_size)

    def encode(self, params: Any, x: Any, lengths: Any, **how: Any) -> tuple:
        return encode(self.encoder, params, x, lengths, **how)

    def logits(self, params: Any, output: Any) -> Any:
        return heads.apply(params[self.head], output)

    def predict(self, params: Any, stats: Any, batch: Any) -> tuple[Any, Any]:
        """(logits [B, T, K], lengths [B]) of the audio of a batch."""
        output, lengths = hear(self.config, self.encoder, params, stats, batch)
        return self.logits(params, output), lengths

    def task(self) -> Task:
        name = "" if self.stream == "labelled" else self.stream
        measure = self.config.data.streams[name].measure if name else "wer"
        return Task(name, self.stream, measure, self.head, predict=self.predict)

    def objective(self) -> Objective:
        """CTC on its stream."""
        return ctc.make(
            stream=self.stream,
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
            "name": self.loss,
            "reduction": c.reduction,
            "implementation": c.implementation,
        }
