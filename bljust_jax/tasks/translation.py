"""Speech translation on an encoder: an attention decoder a pair of languages."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from bljust_jax.bilevel.types import Objective, Task
from bljust_jax.decoding import attention_beam as search
from bljust_jax.models.decoder import Decoder
from bljust_jax.models.encoders import Encoder
from bljust_jax.objectives import cross_entropy
from bljust_jax.tasks import recognition


@dataclasses.dataclass(frozen=True)
class Translation:
    """`params["encoder"]`, whose output the decoder `params[head]` reads to write a text of
    `vocab_size` classes, as `config.decoder` says. Loss, head and task are named after the stream,
    "st/fr-en"."""

    config: Any
    encoder: Encoder
    vocab_size: int
    stream: str

    @property
    def head(self) -> str:
        return recognition.head_name(self.stream)

    @property
    def decoder(self) -> Decoder:
        c, model = self.config.decoder, self.config.model
        return Decoder(
            dim=c.dim,
            layers=c.layers,
            heads=c.heads,
            vocab_size=self.vocab_size,
            memory_dim=self.encoder.dim,
            ff_mult=c.ff_mult,
            dropout=c.dropout,
            dtype=model.dtype,
        )

    def init_head(self, rng: Any) -> dict:
        return self.decoder.init(rng)

    def decode(self, params: Any, *inputs: Any, **how: Any) -> Any:
        """`Decoder.apply` on its part of params."""
        return self.decoder.apply(params[self.head], *inputs, **how)

    def translate(self, params: Any, stats: Any, batch: Any, beam: int) -> Any:
        """ids int32 [B, U], -1 after the end, of the audio of a batch."""
        output, frames = recognition.hear(self.config, self.encoder, params, stats, batch)
        decoder, own, c = self.decoder, params[self.head], self.config.decoder
        return search.search(
            partial(decoder.begin, own, output, frames),
            partial(decoder.extend, own),
            frames,
            output.shape[1],
            beam=beam,
            alpha=c.alpha,
            max_ratio=c.max_ratio,
            max_extra=c.max_extra,
        )

    def task(self) -> Task:
        measure = self.config.data.streams[self.stream].measure
        return Task(self.stream, self.stream, measure, self.head, translate=self.translate)

    def objective(self) -> Objective:
        """Cross-entropy of the next token on its stream."""
        return cross_entropy.make(
            stream=self.stream,
            features=self.encoder.features,
            encode=partial(recognition.encode, self.encoder),
            decode=self.decode,
            name=self.stream,
            smoothing=self.config.decoder.smoothing,
            context=self.config.ctc.context,
        )

    def cost(self, seconds: float) -> float:
        """Encoder FLOPs of one training step on a row of so many padded seconds."""
        return 3 * self.encoder.flops(round(seconds * self.config.data.sample_rate))
