"""Pseudo-labels: CTC on unlabelled audio, with the greedy hypotheses of a teacher as its labels.

The teacher is an average of the student (momentum pseudo-labelling: Higuchi, Moritz, Le Roux, Hori,
Interspeech 2021, arXiv 2106.08922).
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.types import Aux, Teacher
from bljust_jax.common.config_schema import ranges as r
from bljust_jax.common.config_schema.field import Field
from bljust_jax.common.shapes import Labels, Lengths
from bljust_jax.decoding import greedy
from bljust_jax.objectives import EncoderObjective
from bljust_jax.objectives.ctc import Ctc
from bljust_jax.ops.ctc import blank_share

FIELDS = {
    "start": Field(float, "share of the FLOPs that trains on labels alone first", r.SHARE, 0.3),
    "weight": Field(float, "weight of the pseudo-labels against the labels", r.ABOVE_0, 1.0),
    "half_life": Field(
        int, "steps that halve a parameter's share in the teacher; 0: an epoch", r.AT_LEAST_0, 0
    ),
}


class Hypotheses(NamedTuple):
    """Labels of a teacher.

    labels int32 [B, U], 0 after their end; label_lengths [B], above U where some were left off
    confidence [B]: geometric mean of the probabilities at the frames of the labels; 0 without any
    """

    labels: Labels
    label_lengths: Lengths
    confidence: Float[Array, "b"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PseudoLabel(EncoderObjective):
    """CTC on `stream` with the labels that the teacher recognises in it: nats per label.

    ctc: the supervised objective, whose head and settings both teacher and student use
    decay: of the teacher, per step of this loss; it starts as the student of that time
    labels_per_second: room for labels; rows with more are masked out

    The teacher reads the audio of the batch in evaluation mode, without SpecAugment or dropout: its
    labels are the hypotheses of `evaluate` for its parameters. It receives no gradient. It has the
    running statistics of the student, which the labelled batches alone move. Rows without labels
    have weight 0.

    Metrics: `<name>/confidence` (of rows with labels); shares of the rows with audio:
    `<name>/empty` (no label recognised), `<name>/masked` (labels, but masked out);
    `<name>/labels_per_second` of the labels in use; `<name>/blank_share` of the student.
    """

    name: str = "pseudo_label"
    ctc: Ctc
    decay: float | int
    labels_per_second: float | int

    @property
    def head_owners(self) -> dict[str, frozenset[str]]:
        return {self.ctc.head: frozenset({self.ctc.name, self.name})}

    @property
    def parts(self) -> dict[str, str]:
        """{name in `extras.frozen`: key in the parameters} of the teacher."""
        return {f"teacher_{part}": part for part in ("encoder", self.ctc.head)}

    @property
    def teachers(self) -> dict[str, Teacher]:
        decay = self.decay
        return {key: Teacher(self.name, part, lambda k: decay) for key, part in self.parts.items()}

    def init(self, rng: Any) -> tuple[dict, dict]:
        del rng
        return {}, {}

    @property
    def label_passes(self) -> float:
        """Forward passes of the teacher per pass of the student."""
        return 1.0

    def cost(self, losses: frozenset[str], seconds: float | int) -> float:
        """The student's pass, forward and backward, and the teacher's."""
        return super().cost(losses, seconds) * (1 + self.label_passes / 3)

    def head_cost(self, losses: frozenset[str], seconds: float | int) -> float | int:
        return self.ctc.head_cost(losses, seconds) * (1 + self.label_passes / 3)

    def recognise(self, params: Any, stats: Any, data: Any) -> Hypotheses:
        """Greedy hypotheses of `params`, which need encoder and head alone; no gradient."""
        params = jax.lax.stop_gradient(params)
        logits, frames = self.ctc.predict(params, stats, data)
        path = greedy.best_path(logits, frames)
        seconds = data["audio"].shape[1] / self.sample_rate
        room = min(path.shape[1], math.ceil(seconds * self.labels_per_second))
        labels, counts = greedy.collapse_rows(path, room)
        best = jnp.max(jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)
        at_labels = path > 0
        mean = jnp.sum(jnp.where(at_labels, best, 0), axis=1) / jnp.maximum(at_labels.sum(1), 1)
        return Hypotheses(labels, counts, jnp.where(counts > 0, jnp.exp(mean), 0))

    def most_labels(self, data: Any) -> Lengths:
        """Number of labels above which a row is masked out, by its own length."""
        seconds = data["audio_lengths"].astype(jnp.float32) / self.sample_rate
        return jnp.floor(seconds * self.labels_per_second).astype(jnp.int32)

    def teach(self, params: Any, extras: Any, data: Any) -> Hypotheses:
        """The labels of a batch."""
        del params
        teacher = {part: extras.frozen[key] for key, part in self.parts.items()}
        return self.recognise(teacher, extras.stats, data)

    def apply(self, params, extras, batch, rng):
        data, name = batch[self.stream], self.name
        found = self.teach(params, extras, data)
        used = (found.label_lengths > 0) & (found.label_lengths <= self.most_labels(data))
        counts = jnp.where(used, found.label_lengths, 0)
        keys = jax.random.split(rng)
        encoded = self.encode_augmented(params, extras, data, self.ctc.context, *keys)
        logits = scale_gradient(self.ctc.logits(params, encoded.output), extras.scale[name])
        labelled = {**data, "labels": found.labels, "label_lengths": counts}
        nats, weights = self.ctc.nats(logits, encoded.lengths, labelled)
        metrics = self._metrics(found, used, data)
        metrics[f"{name}/blank_share"] = blank_share(logits, encoded.lengths, blank=0)
        return {name: (jnp.sum(nats), jnp.sum(weights))}, Aux(metrics, {})

    def _metrics(self, found: Hypotheses, used: Any, data: Any) -> dict[str, Any]:
        def total(x):
            return jnp.sum(x, dtype=jnp.float32)

        some, heard = found.label_lengths > 0, data["audio_lengths"] > 0
        seconds = total(jnp.where(used, data["audio_lengths"], 0)) / self.sample_rate
        shares = {
            "confidence": (total(found.confidence), total(some)),
            "empty": (total(heard & ~some), total(heard)),
            "masked": (total(some & ~used), total(heard)),
            "labels_per_second": (total(jnp.where(used, found.label_lengths, 0)), seconds),
        }
        return {f"{self.name}/{key}": pair for key, pair in shares.items()}


def build_teacher(config: Any, ctc: Ctc, steps_per_epoch: int) -> PseudoLabel:
    """The loss of `config.method`, as `config.pseudo_label` sets it; `steps_per_epoch`, of the
    unlabelled stream, is the default half-life."""
    half_life = config.pseudo_label.half_life or steps_per_epoch
    return PseudoLabel(
        encoder=ctc.encoder,
        sample_rate=config.data.sample_rate,
        ctc=ctc,
        decay=0.5 ** (1 / half_life),
        labels_per_second=config.data.labels_per_second,
    )


def warnings(config: Any) -> tuple[str, ...]:
    """Log lines on settings known to hurt."""
    if config.model.get("norm") != "batch":
        return ()
    return (
        f"method {config.method} with config.model.norm='batch': running statistics of labelled "
        "audio alone serve the teacher (arXiv 2110.04948 replaces batch norm); take norm='layer'",
    )
