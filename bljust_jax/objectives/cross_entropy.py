"""The supervised objective of an attention decoder: cross-entropy of the next token."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.types import Aux, Objective
from bljust_jax.objectives import shared_forward
from bljust_jax.ops.log_mel import valid_frames

END = 0  # begins a text as an input, ends it as an output


def make(
    *,
    stream: str,
    features: Callable,
    encode: Callable,
    decode: Callable,
    name: str,
    smoothing: float = 0.1,
    context: str = "full",
) -> Objective:
    """-log P(labels, end | audio) in nats a token, under teacher forcing, with smoothed labels.

    features: `Encoder.features`; with keys, one an utterance, it augments
    encode(params, x, lengths, *, stats, context, hide, train, rng)
        -> (output [B, T, D], lengths [B], hidden, stats)
    decode(params, memory, memory_lengths, tokens [B, U + 1], token_lengths, *, train, rng)
        -> logits [B, U + 1, K], those at t blind to tokens after t

    The loss is the sum of `smoothed_nats` over the labels and the end of each utterance that has
    audio; its weight is their number, label_lengths + 1 each. context="causal" encodes without a
    view of the future, on features normalised by the stored statistics. Running statistics that the
    encoder has (batch norm) are this objective's to update.
    Metric: `<name>/accuracy`, the share of these tokens that are the decoder's first choice after
    the true tokens before them. Raises ValueError for smoothing outside of [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing={smoothing} must lie in [0, 1)")
    hear = shared_forward.augmented(features, encode, context)

    def apply(params, extras, batch, rng):
        data = batch[stream]
        augment_rng, encoder_rng, decoder_rng = jax.random.split(rng, 3)
        output, lengths, stats = hear(params, extras, data, augment_rng, encoder_rng)
        output = scale_gradient(output, extras.scale[name])
        heard = (data["audio_lengths"] > 0) & (lengths > 0)
        inputs, targets, counts = teacher_forcing(data["labels"], data["label_lengths"], heard)
        logits = decode(params, output, lengths, inputs, counts, train=True, rng=decoder_rng)
        real = valid_frames(targets.shape[1], counts)
        nats = jnp.where(real, smoothed_nats(logits, targets, smoothing), 0.0)
        right = jnp.where(real, jnp.argmax(logits, axis=-1) == targets, False)
        weight = jnp.sum(counts, dtype=jnp.float32)
        metrics = {f"{name}/accuracy": (jnp.sum(right, dtype=jnp.float32), weight)}
        return {name: (jnp.sum(nats), weight)}, Aux(metrics, stats)

    return Objective(losses=(name,), streams=(stream,), apply=apply)


def teacher_forcing(
    labels: Int[Array, "b u"], label_lengths: Int[Array, "b"], heard: Bool[Array, "b"]
) -> tuple[Int[Array, "b v"], Int[Array, "b v"], Int[Array, "b"]]:
    """(inputs 0, y_1, ..., y_n; targets y_1, ..., y_n, 0; n + 1), `[B, U + 1]` and `[B]`.

    Both are 0 after their end, whatever pads `labels`; the count is 0 where nothing is `heard`.
    """
    real = valid_frames(labels.shape[1], label_lengths)
    labels = jnp.where(real, labels, END)
    inputs = jnp.pad(labels, ((0, 0), (1, 0)), constant_values=END)
    targets = jnp.pad(labels, ((0, 0), (0, 1)), constant_values=END)
    return inputs, targets, jnp.where(heard, label_lengths + 1, 0)


def smoothed_nats(
    logits: Float[Array, "b u k"], targets: Int[Array, "b u"], smoothing: float
) -> Float[Array, "b u"]:
    """-sum_k q_k ln p_k with q_k = (1 - smoothing) [k = target] + smoothing / K, p = softmax.

    The smoothed share is spread over all K classes, the target included (Szegedy et al., CVPR 2016,
    section 7).
    """
    log_probs = jax.nn.log_softmax(logits)
    right = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return -(1 - smoothing) * right - smoothing * jnp.mean(log_probs, axis=-1)
