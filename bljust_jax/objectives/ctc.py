"""The supervised objective: CTC on labelled audio."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.types import Aux, Objective
from bljust_jax.objectives import shared_forward
from bljust_jax.ops.ctc import blank_share, ctc_feasible, ctc_loss

REDUCTIONS = ("label", "utterance")


def make(
    *,
    stream: str,
    features: Callable,
    encode: Callable,
    head: Callable,
    blank: int = 0,
    name: str = "ctc",
    reduction: str = "label",
    context: str = "full",
    implementation: str = "auto",
) -> Objective:
    """-log P(labels | audio) in nats, over the feasible utterances of `stream`.

    features: `Encoder.features`; with keys, one an utterance, it augments
    encode(params, x, lengths, *, stats, context, hide, train, rng)
        -> (output [B, T, D], lengths [B], hidden, stats)
    head(params, output) -> logits [B, T, K]

    The loss is a sum of nats over feasible utterances; its weight is their number of labels
    (reduction="label") or their number ("utterance"). context="causal" encodes without a view of
    the future, on features normalised by the stored statistics. `implementation`: of `ctc_loss`.
    Running statistics that the encoder has (batch norm) are this objective's to update.
    Metrics: `<name>/infeasible`, utterances a step with fewer frames than their labels need (they
    count nowhere else), and `<name>/blank_share`. Raises ValueError for another reduction.
    """
    loss = _loss(head, blank, name, reduction, implementation)
    hear = shared_forward.augmented(features, encode, context)

    def apply(params, extras, batch, rng):
        data = batch[stream]
        output, lengths, stats = hear(params, extras, data, *jax.random.split(rng))
        losses, aux = loss(params, extras, data, output, lengths)
        return losses, aux._replace(stats=stats)

    return Objective(losses=(name,), streams=(stream,), apply=apply)


def reader(
    *,
    head: Callable,
    blank: int = 0,
    name: str = "ctc",
    reduction: str = "label",
    implementation: str = "auto",
) -> Callable:
    """The loss of `make` on an encoder's output, for `shared.make`."""
    loss = _loss(head, blank, name, reduction, implementation)

    def read(params, extras, data, encoded, rng):
        return loss(params, extras, data, encoded.output, encoded.lengths)

    return read


def _loss(head, blank, name, reduction, implementation):
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction {reduction!r}: expected one of {REDUCTIONS}")

    def loss(params, extras, data, output, lengths):
        logits = head(params, scale_gradient(output, extras.scale[name]))
        labels, label_lengths = data["labels"], data["label_lengths"]
        nats = ctc_loss(
            logits, lengths, labels, label_lengths, blank=blank, implementation=implementation
        )
        real = data["audio_lengths"] > 0
        feasible = ctc_feasible(labels, label_lengths, lengths)
        counts = label_lengths if reduction == "label" else real
        weight = jnp.sum(jnp.where(feasible, counts, 0), dtype=jnp.float32)
        metrics = {
            f"{name}/infeasible": (jnp.sum(~feasible, dtype=jnp.float32), jnp.float32(1)),
            f"{name}/blank_share": blank_share(logits, lengths, blank=blank),
        }
        return {name: (jnp.sum(nats), weight)}, Aux(metrics, {})

    return loss
