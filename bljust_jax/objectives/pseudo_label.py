"""Pseudo-labels: CTC on unlabelled audio, with the greedy hypotheses of a teacher as its labels.

The teacher is an average of the student (momentum pseudo-labelling: Higuchi, Moritz, Le Roux, Hori,
Interspeech 2021, arXiv 2106.08922); or the student itself, whose labels a cache keeps (slimIPL:
Likhomanenko, Xu, Kahn, Synnaeve, Collobert, Interspeech 2021, arXiv 2010.11524); or a trained model
whose successor starts anew (noisy student: Park, Zhang, Jia, Han, Chiu, Li, Wu, Le, Interspeech
2020, arXiv 2005.09629).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.types import Aux, Teacher
from bljust_jax.common.config_schema import ranges as r
from bljust_jax.common.config_schema.field import Field
from bljust_jax.common.errors import UserError
from bljust_jax.common.shapes import Labels, Lengths
from bljust_jax.decoding import greedy
from bljust_jax.objectives import EncoderObjective
from bljust_jax.objectives.ctc import Ctc
from bljust_jax.ops.ctc import blank_share

FIELDS = {
    "start": Field(
        float, "share of the FLOPs on labels alone first; 0: that of the method", r.BELOW_1, 0.0
    ),
    "weight": Field(float, "weight of the pseudo-labels against the labels", r.ABOVE_0, 1.0),
    "half_life": Field(
        int, "steps that halve a parameter's share in the teacher; 0: an epoch", r.AT_LEAST_0, 0
    ),
    "cache": Field(
        int, "batches whose labels are kept; 0: 100, less in short runs", r.AT_LEAST_0, 0
    ),
    "replace": Field(float, "probability that a drawn batch is replaced", r.ABOVE_0_TO_1, 0.1),
    "rounds": Field(int, "students trained anew, method noisy_student", r.AT_LEAST_1, 1),
    "min_confidence": Field(
        float, "least confidence of labels in use, method noisy_student", r.FROM_0_TO_1, 0.7
    ),
    "ratio": Field(int, "steps on pseudo-labels per step on labels", r.AT_LEAST_1, 4),
}


PUBLISHED_SLOTS = 100  # of slimIPL from 100 h of labels; 1,000 from 10 h


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
    decay: of the teacher, per step of this loss; it starts as the student of that time. None: it
        stays until a phase starts anew
    min_confidence: rows below it are masked out
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
    decay: float | int | None
    labels_per_second: float | int
    min_confidence: float | int = 0.0

    @property
    def head_owners(self) -> dict[str, frozenset[str]]:
        return {self.ctc.head: frozenset({self.ctc.name, self.name})}

    @property
    def parts(self) -> dict[str, str]:
        """{name in `extras.frozen`: key in the parameters} of the teacher."""
        return {f"teacher_{part}": part for part in ("encoder", self.ctc.head)}

    @property
    def teachers(self) -> dict[str, Teacher]:
        decay = None if self.decay is None else lambda k: self.decay
        return {key: Teacher(self.name, part, decay) for key, part in self.parts.items()}

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
        labels, counts = greedy.collapse_rows(path, self.room(data["audio"].shape[1]))
        best = jnp.max(jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)
        at_labels = path > 0
        mean = jnp.sum(jnp.where(at_labels, best, 0), axis=1) / jnp.maximum(at_labels.sum(1), 1)
        return Hypotheses(labels, counts, jnp.where(counts > 0, jnp.exp(mean), 0))

    def room(self, samples: int) -> int:
        """Labels that a batch of rows of `samples` has room for."""
        seconds = samples / self.sample_rate
        return min(self.encoder.frames(samples), math.ceil(seconds * self.labels_per_second))

    def most_labels(self, data: Any) -> Lengths:
        """Number of labels above which a row is masked out, by its own length."""
        seconds = data["audio_lengths"].astype(jnp.float32) / self.sample_rate
        return jnp.floor(seconds * self.labels_per_second).astype(jnp.int32)

    def teach(self, params: Any, extras: Any, data: Any) -> tuple[Hypotheses, dict, dict]:
        """(labels of a batch, {frozen array: its new value}, metrics)."""
        del params
        teacher = {part: extras.frozen[key] for key, part in self.parts.items()}
        return self.recognise(teacher, extras.stats, data), {}, {}

    def apply(self, params, extras, batch, rng):
        data, name = batch[self.stream], self.name
        found, moved, metrics = self.teach(params, extras, data)
        used = (found.label_lengths > 0) & (found.label_lengths <= self.most_labels(data))
        used &= found.confidence >= self.min_confidence
        counts = jnp.where(used, found.label_lengths, 0)
        keys = jax.random.split(rng)
        encoded = self.encode_augmented(params, extras, data, self.ctc.context, *keys)
        logits = scale_gradient(self.ctc.logits(params, encoded.output), extras.scale[name])
        labelled = {**data, "labels": found.labels, "label_lengths": counts}
        nats, weights = self.ctc.nats(logits, encoded.lengths, labelled)
        metrics |= self._metrics(found, used, data)
        metrics[f"{name}/blank_share"] = blank_share(logits, encoded.lengths, blank=0)
        return {name: (jnp.sum(nats), jnp.sum(weights))}, Aux(metrics, moved)

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CachedPseudoLabel(PseudoLabel):
    """`PseudoLabel` by the student itself, with the labels of the last `slots` batches in a cache.

    A batch has `cache_slot` and `cache_fresh` (`data/replay.py`), the same in every row. A fresh
    one is labelled by the parameters of its step, in evaluation mode; at later draws it has these
    labels again. `extras.frozen["pseudo_label_cache"]` keeps labels and confidence of each slot:
    {"labels" [slots, space], "label_lengths", "confidence" [slots, rows], "step" [slots]}.

    rows, space: rows, and rows times room for labels, of the largest batches
    replace: probability of a fresh batch, the mean number of passes for labels per step

    Metric: `<name>/age`, steps of this loss since the labels of the batch were made.
    """

    decay: float | int | None = None
    slots: int
    rows: int
    space: int
    replace: float | int

    @property
    def cache(self) -> str:
        """Name in `extras.frozen`."""
        return f"{self.name}_cache"

    @property
    def teachers(self) -> dict[str, Teacher]:
        return {}

    @property
    def label_passes(self) -> float:
        return float(self.replace)

    def sized_for(self, steps: int) -> "CachedPseudoLabel":
        """With as many slots as a run of `steps` steps of this loss suits, if none are given: 100,
        as published, or so few that a batch stays for a tenth of the steps, slots / replace."""
        slots = self.slots or max(1, min(PUBLISHED_SLOTS, round(self.replace * steps / 10)))
        return dataclasses.replace(self, slots=slots)

    def init(self, rng: Any) -> tuple[dict, dict]:
        del rng
        kind = jnp.int16 if self.ctc.vocab_size < 2**15 else jnp.int32
        arrays = {
            "labels": jnp.zeros((self.slots, self.space), kind),
            "label_lengths": jnp.zeros((self.slots, self.rows), jnp.int32),
            "confidence": jnp.zeros((self.slots, self.rows), jnp.float32),
            "step": jnp.zeros(self.slots, jnp.int32),
        }
        return {}, {self.cache: arrays}

    def teach(self, params: Any, extras: Any, data: Any) -> tuple[Hypotheses, dict, dict]:
        cache, slot = extras.frozen[self.cache], jnp.max(data["cache_slot"])
        fresh = jnp.max(data["cache_fresh"]) > 0
        rows, room = data["audio"].shape[0], self.room(data["audio"].shape[1])

        def kept():
            row = {key: array[slot] for key, array in cache.items()}
            labels = row["labels"][: rows * room].reshape(rows, room).astype(jnp.int32)
            return Hypotheses(labels, row["label_lengths"][:rows], row["confidence"][:rows])

        def made():
            return self.recognise(params, extras.stats, data)

        found = jax.lax.cond(fresh, made, kept)
        step = jnp.where(fresh, extras.step, cache["step"][slot])
        new = {**found._asdict(), "step": step}
        moved = {
            key: array.at[slot].set(_padded(new[key], array.shape[1:]).astype(array.dtype))
            for key, array in cache.items()
        }
        age = (extras.step - step).astype(jnp.float32)
        return found, {self.cache: moved}, {f"{self.name}/age": (age, jnp.float32(1))}


def _padded(x: Any, shape: tuple[int, ...]) -> Any:
    """x, flat, with zeros behind it up to `shape`, of one axis or none."""
    return jnp.pad(x.reshape(-1), (0, shape[0] - x.size)) if shape else x


def build_loss(
    config: Any, ctc: Ctc, steps_per_epoch: int, shapes: Sequence[tuple[int, float]]
) -> PseudoLabel:
    """The loss of `config.method`, as `config.pseudo_label` sets it.

    steps_per_epoch: of the unlabelled stream, the default half-life
    shapes: (rows, seconds) of its batches. UserError for a cache with micro-batches
    """
    own = config.pseudo_label
    fields = {"encoder": ctc.encoder, "sample_rate": config.data.sample_rate, "ctc": ctc}
    fields["labels_per_second"] = config.data.labels_per_second
    if config.method == "mpl":
        half_life = own.half_life or steps_per_epoch
        return PseudoLabel(**fields, decay=0.5 ** (1 / half_life))
    if config.method == "noisy_student":
        return PseudoLabel(**fields, decay=None, min_confidence=own.min_confidence)
    if config.accumulate > 1:
        raise UserError(
            f"config.accumulate={config.accumulate}: method slimipl keeps labels of whole batches; "
            "set accumulate=1 and lower config.data.unlabelled_batch_seconds"
        )
    plain = PseudoLabel(**fields, decay=None)
    space = max(n * plain.room(round(seconds * plain.sample_rate)) for n, seconds in shapes)
    rows = max(n for n, _ in shapes)
    sizes = {"slots": own.cache, "rows": rows, "space": space, "replace": own.replace}
    return CachedPseudoLabel(**fields, **sizes)


def warnings(config: Any) -> tuple[str, ...]:
    """Log lines on settings known to hurt."""
    if config.model.get("norm") != "batch":
        return ()
    return (
        f"method {config.method} with config.model.norm='batch': running statistics of labelled "
        "audio alone serve the teacher (arXiv 2110.04948 replaces batch norm); take norm='layer'",
    )
