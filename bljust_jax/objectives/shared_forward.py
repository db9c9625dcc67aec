"""Several losses on one forward pass: half the cost of a joint step, where the mathematics allows.

Each loss must be content with the same audio, the same features and the same encoder context. CPC
and CTC are, on a causal encoder without masked input: CPC needs that nothing of the future leaks
into its queries, and CTC can read a causal encoder. The two levels then draw the same batch, which
is another (correlated) estimate of the penalised gradient than two batches give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int

from bljust_jax.bilevel.rng import row_keys
from bljust_jax.bilevel.types import Aux, Objective


class Encoded(NamedTuple):
    """What an encoder made of a batch."""

    output: Float[Array, "b t d"]
    latents: Float[Array, "b t d"]  # the frames before any context is mixed in
    lengths: Int[Array, "b"]


def make(
    *, stream: str, features: Callable, encode: Callable, readers: Mapping[str, Callable]
) -> Objective:
    """The losses of `readers` on one causal pass over `stream`.

    features, encode: as in `cpc.make`; the features are normalised by the stored statistics, never
        masked
    readers: {loss name: read(params, extras, data, encoded, rng) -> ({name: (sum, weight)}, Aux)}

    A loss that `extras.scale` does not hold is not read: a phase without it costs nothing of it.
    Two levels of one forward pass need `gradients="fused"`: each reader takes the hidden states
    through `scale_gradient`.
    """

    def apply(params, extras, batch, rng):
        data = batch[stream]
        encoder_rng, *keys = jax.random.split(rng, 1 + len(readers))
        encoded = run(
            *(features, encode, params, extras, data["audio"], data["audio_lengths"]),
            *(encoder_rng, "causal"),
        )
        losses, metrics, stats = {}, {}, {}
        for (name, read), key in zip(readers.items(), keys, strict=True):
            if name not in extras.scale:
                continue
            own, aux = read(params, extras, data, encoded, key)
            losses, metrics, stats = losses | own, metrics | aux.metrics, stats | aux.stats
        return losses, Aux(metrics, stats)

    return Objective(losses=tuple(readers), streams=(stream,), apply=apply)


def run(
    features: Callable,
    encode: Callable,
    params,
    extras,
    audio: Int[Array, "b s"],
    audio_lengths: Int[Array, "b"],
    rng,
    context: str,
) -> Encoded:
    """A forward pass over features that are normalised by the stored statistics.

    features: `Encoder.features`, encode: `Encoder.apply`, which finds its own part of params and
    extras.stats.
    """
    stored = extras.stats.get("features")  # waveforms have none
    x, lengths, _ = features(audio, audio_lengths, keys=None, train=True, stats=stored)
    how = {"context": context, "hide": None, "train": True, "rng": rng}
    output, lengths, hidden, _ = encode(params, x, lengths, stats=extras.stats, **how)
    return Encoded(output, hidden["latents"], lengths)


def augmented(features: Callable, encode: Callable, context: str) -> Callable:
    """hear(params, extras, data, augment_rng, encoder_rng) -> (output [B, T, D], lengths [B],
    stats): what a supervised loss reads, augmented by a key an utterance.

    features, encode: as in `ctc.make`. context="causal" takes features that are normalised by the
    stored statistics. stats: {"encoder": running statistics}, {} where the encoder has none.
    """

    def hear(params, extras, data, augment_rng, encoder_rng):
        keys = row_keys(augment_rng, data["ids"])
        stored = extras.stats["features"] if context == "causal" else None
        x, lengths, hide = features(
            data["audio"], data["audio_lengths"], keys=keys, train=True, stats=stored
        )
        how = {"context": context, "hide": hide, "train": True, "rng": encoder_rng}
        output, lengths, _, stats = encode(params, x, lengths, stats=extras.stats, **how)
        return output, lengths, {"encoder": stats} if stats else {}

    return hear
