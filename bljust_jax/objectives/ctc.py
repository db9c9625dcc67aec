"""The CTC objective on labelled audio."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.types import Aux
from bljust_jax.common.config_schema.field import Field
from bljust_jax.common.shapes import Frames, Lengths, Logits
from bljust_jax.models import heads
from bljust_jax.models.encoders import Encoded
from bljust_jax.objectives import EncoderObjective, nameless
from bljust_jax.ops.ctc import blank_share, ctc_feasible, ctc_loss

FIELDS = {
    "reduction": Field(str, "unit that the loss is averaged over", ("label", "utterance")),
    "context": Field(str, "frames that the encoder uses; causal: no future", ("full", "causal")),
    "implementation": Field(
        str,
        "CTC kernel; auto: the fastest of the device",
        ("auto", "scan", "one_scan", "pallas_tpu", "pallas_gpu"),
    ),
}

REDUCTIONS = ("label", "utterance")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ctc(EncoderObjective):
    """-log P(labels | audio) in nats, summed over the feasible utterances of `stream`; an utterance
    without labels enters neither the sum nor the weight.

    vocab_size: classes K of the head, params[head] = {"kernel" [D, K], "bias" [K]}; 0 is the blank
    reduction: the weight of the loss is the number of labels ("label") or of utterances
        ("utterance"), feasible ones alone
    context: "causal" encodes without future frames, on features normalised by stored statistics
    implementation: of `ctc_loss`

    Running statistics of the encoder (batch norm) are updated by this objective.
    Metrics: `<name>/infeasible`, utterances per step with fewer frames than their labels need,
    which enter neither sum; `<name>/blank_share`. Raises ValueError for an unknown reduction.
    """

    name: str = "ctc"
    stream: str = "labelled"
    vocab_size: int = 0
    reduction: str = "label"
    context: str = "full"
    implementation: str = "auto"

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"reduction {self.reduction!r}: expected one of {REDUCTIONS}")

    @property
    def kind(self) -> EncoderObjective:
        return nameless(self)

    def init(self, rng: Any) -> tuple[dict, dict]:
        return {self.head: heads.init(rng, self.encoder.dim, self.vocab_size)}, {}

    def logits(self, params: Any, output: Frames) -> Logits:
        return heads.apply(params[self.head], output)

    def predict(self, params: Any, stats: Any, batch: Any) -> tuple[Any, Any]:
        """(logits [B, T, K], lengths [B]) of the audio of a batch, without augmentation or
        dropout."""
        audio = batch["audio"], batch["audio_lengths"]
        encoded = self.encoder.encode_audio(params, stats, *audio, context=self.context)
        return self.logits(params, encoded.output), encoded.lengths

    def apply(self, params, extras, batch, rng):
        data = batch[self.stream]
        encoded = self.encode_augmented(params, extras, data, self.context, *jax.random.split(rng))
        losses, aux = self.apply_encoded(params, extras, data, encoded, None)
        return losses, aux._replace(stats=encoded.stats)

    def apply_encoded(self, params, extras, data, encoded: Encoded, rng):
        del rng
        lengths = encoded.lengths
        logits = self.logits(params, scale_gradient(encoded.output, extras.scale[self.name]))
        nats, weights = self.nats(logits, lengths, data)
        feasible = ctc_feasible(data["labels"], data["label_lengths"], lengths)
        metrics = {
            f"{self.name}/infeasible": (jnp.sum(~feasible, dtype=jnp.float32), jnp.float32(1)),
            f"{self.name}/blank_share": blank_share(logits, lengths, blank=0),
        }
        return {self.name: (jnp.sum(nats), jnp.sum(weights))}, Aux(metrics, {})

    def nats(self, logits: Logits, lengths: Lengths, data: Any) -> tuple[Any, Any]:
        """(-log P(labels | audio) in nats [B], weight [B]) per utterance; both are 0 for one that
        has no labels, or fewer frames than they need."""
        labels, label_lengths = data["labels"], data["label_lengths"]
        nats = ctc_loss(logits, lengths, labels, label_lengths, implementation=self.implementation)
        counted = ctc_feasible(labels, label_lengths, lengths) & (label_lengths > 0)
        counts = label_lengths if self.reduction == "label" else data["audio_lengths"] > 0
        return jnp.where(counted, nats, 0), jnp.where(counted, counts, 0).astype(jnp.float32)
