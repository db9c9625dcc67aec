"""The objective of an attention decoder: cross-entropy of the next token, with label smoothing."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.types import Aux
from bljust_jax.common.shapes import Labels, Lengths
from bljust_jax.models.decoder import Decoder
from bljust_jax.models.encoders import Encoded
from bljust_jax.objectives import EncoderObjective, nameless
from bljust_jax.ops.log_mel import valid_frames

END = 0  # first token of the input, last token of the target


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossEntropy(EncoderObjective):
    """-log P(labels, end | audio) in nats under teacher forcing, summed over tokens.

    decoder: its parameters are params[head]
    smoothing: share of the target probability spread over all classes (`smoothed_nats`)
    labels_per_second: of padded labels, for the count of FLOPs
    context: "causal" encodes without future frames, on features normalised by stored statistics

    The weight is the number of tokens: label_lengths + 1 (the end) per utterance with audio.
    Running statistics of the encoder (batch norm) are updated by this objective.
    Metric: `<name>/accuracy`, share of tokens that are the decoder's first choice given the true
    tokens before them. Raises ValueError for smoothing outside [0, 1).
    """

    decoder: Decoder
    smoothing: float | int = 0.1
    context: str = "full"
    labels_per_second: float | int = 25.0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing={self.smoothing} must lie in [0, 1)")

    @property
    def kind(self) -> EncoderObjective:
        return nameless(self)

    def init(self, rng: Any) -> tuple[dict, dict]:
        return {self.head: self.decoder.init(rng)}, {}

    def head_cost(self, losses: frozenset[str], seconds: float | int) -> float | int:
        """FLOPs of the decoder on padded labels: forward 1, backward 2."""
        del losses
        tokens = math.ceil(seconds * self.labels_per_second) + 1
        return 3 * self.decoder.flops(tokens, self.frames_of(seconds))

    def decode(self, params: Any, *inputs: Any, **options: Any) -> Float[Array, "b u k"]:
        """`Decoder.apply` on the head's parameters."""
        return self.decoder.apply(params[self.head], *inputs, **options)

    def apply(self, params, extras, batch, rng):
        data = batch[self.stream]
        *keys, decoder_rng = jax.random.split(rng, 3)
        encoded = self.encode_augmented(params, extras, data, self.context, *keys)
        losses, aux = self.apply_encoded(params, extras, data, encoded, decoder_rng)
        return losses, aux._replace(stats=encoded.stats)

    def apply_encoded(self, params, extras, data, encoded: Encoded, rng):
        name, lengths = self.name, encoded.lengths
        output = scale_gradient(encoded.output, extras.scale[name])
        has_audio = (data["audio_lengths"] > 0) & (lengths > 0)
        inputs, targets, counts = teacher_forcing(data["labels"], data["label_lengths"], has_audio)
        logits = self.decode(params, output, lengths, inputs, counts, train=True, rng=rng)
        real = valid_frames(targets.shape[1], counts)
        nats = jnp.where(real, smoothed_nats(logits, targets, self.smoothing), 0.0)
        right = jnp.where(real, jnp.argmax(logits, axis=-1) == targets, False)
        weight = jnp.sum(counts, dtype=jnp.float32)
        metrics = {f"{name}/accuracy": (jnp.sum(right, dtype=jnp.float32), weight)}
        return {name: (jnp.sum(nats), weight)}, Aux(metrics, {})


def teacher_forcing(
    labels: Labels, label_lengths: Lengths, has_audio: Bool[Array, "b"]
) -> tuple[Int[Array, "b v"], Int[Array, "b v"], Lengths]:
    """(inputs 0, y_1, ..., y_n; targets y_1, ..., y_n, 0; n + 1), `[B, U + 1]` and `[B]`.

    Both are 0 after their end, whatever pads `labels`; the count is 0 for rows without audio.
    """
    real = valid_frames(labels.shape[1], label_lengths)
    labels = jnp.where(real, labels, END)
    inputs = jnp.pad(labels, ((0, 0), (1, 0)), constant_values=END)
    targets = jnp.pad(labels, ((0, 0), (0, 1)), constant_values=END)
    return inputs, targets, jnp.where(has_audio, label_lengths + 1, 0)


def smoothed_nats(
    logits: Float[Array, "b u k"], targets: Labels, smoothing: float
) -> Float[Array, "b u"]:
    """-sum_k q_k ln p_k with q_k = (1 - smoothing) [k = target] + smoothing / K, p = softmax.

    The smoothed share is spread over all K classes, the target included (Szegedy et al., CVPR 2016,
    section 7).
    """
    log_probs = jax.nn.log_softmax(logits)
    right = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return -(1 - smoothing) * right - smoothing * jnp.mean(log_probs, axis=-1)
