"""The supervised objective: CTC on labelled audio."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bljust_jax.ops.ctc import blank_share, ctc_feasible, ctc_loss
from bljust_jax.system import Aux, Objective, row_keys, scale_gradient

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
) -> Objective:
    """-log P(labels | audio) in nats, over the feasible utterances of `stream`.

    features(audio [B, S], lengths [B], *, keys, train) -> (x, lengths [B]); with `keys` [B] it
        may mask or augment, each utterance from its own key
    encode(params, x, lengths, *, context, train, rng) -> (output [B, T, D], lengths [B], ...)
    head(params, output) -> logits [B, T, K]

    The loss is a sum of nats over feasible utterances; its weight is their number of labels
    (reduction="label") or their number ("utterance"). Metrics: `<name>/infeasible`, utterances a
    step with fewer frames than their labels need (they count nowhere else), and
    `<name>/blank_share`. Raises ValueError for another reduction.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction {reduction!r}: expected one of {REDUCTIONS}")

    def apply(params, extras, batch, rng):
        data = batch[stream]
        augment_rng, encoder_rng = jax.random.split(rng)
        keys = row_keys(augment_rng, data["ids"])
        x, lengths = features(data["audio"], data["audio_lengths"], keys=keys, train=True)
        output, lengths, *_ = encode(
            params, x, lengths, context="full", train=True, rng=encoder_rng
        )
        logits = head(params, scale_gradient(output, extras.scale[name]))
        labels, label_lengths = data["labels"], data["label_lengths"]
        nats = ctc_loss(logits, lengths, labels, label_lengths, blank=blank)
        real = data["audio_lengths"] > 0
        feasible = ctc_feasible(labels, label_lengths, lengths)
        counts = label_lengths if reduction == "label" else real
        weight = jnp.sum(jnp.where(feasible, counts, 0), dtype=jnp.float32)
        metrics = {
            f"{name}/infeasible": (jnp.sum(~feasible, dtype=jnp.float32), jnp.float32(1)),
            f"{name}/blank_share": blank_share(logits, lengths, blank=blank),
        }
        return {name: (jnp.sum(nats), weight)}, Aux(metrics, {})

    return Objective(losses=(name,), streams=(stream,), apply=apply)
