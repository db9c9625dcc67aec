"""BEST-RQ: predict the codes of a fixed random quantiser in masked frames.

Source: Chiu, Qin, Zhang, Yu, Wu, "Self-supervised learning with random-projection quantizer for
speech recognition", ICML 2022. The quantiser reads the clean features, the encoder the masked ones;
labels are compared with what the head says and are an input of nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.rng import row_keys
from bljust_jax.bilevel.types import Aux, Objective, SelfSupervised
from bljust_jax.common.errors import UserError
from bljust_jax.ops import quantizer
from bljust_jax.ops.log_mel import normalise, valid_frames
from bljust_jax.ops.masking import start_spans


def bind(config: Any, encoder: Any, encode: Callable, linear: Any) -> SelfSupervised:
    """BEST-RQ as `config.best_rq` sets it. Head: {"head"}, a linear map to all codebooks' codes;
    frozen: {"projection", "codebook"}."""
    c, rate = config.best_rq, config.data.sample_rate

    def init(rng):
        head, labels = jax.random.split(rng)
        dim = c.stack * config.features.n_mels
        return (
            {"head": linear.init(head, encoder.dim, c.codebooks * c.codes)},
            quantizer.init_random_projection(labels, dim, c.codes, c.code_dim, c.codebooks),
        )

    def head(params, h):
        logits = linear.apply(params["best_rq_head"]["head"], h)
        return logits.reshape(*h.shape[:2], c.codebooks, c.codes)

    objective = make(
        stream="unlabelled",
        features=encoder.features,
        encode=encode,
        head=head,
        stack=c.stack,
        probability=c.mask_prob,
        span=c.mask_length,
        noise_std=c.noise_std,
    )
    return SelfSupervised(objective, init, lambda s: 3 * encoder.flops(round(s * rate)))


def make(
    *,
    stream: str,
    features: Callable,
    encode: Callable,
    head: Callable,
    stack: int,
    probability: float,
    span: int,
    noise_std: float,
    entries: int = quantizer.ENTRIES,
    name: str = "best_rq",
) -> Objective:
    """Cross entropy of the anchor labels in masked frames, in nats a frame, the mean of codebooks.

    features: `Encoder.features`, of log-mel; encode: `Encoder.apply`, which finds its own part of
        params and stats
    head(params, output [B, T, D]) -> logits [B, T, C, V]
    stack: feature frames a label, the encoder's subsampling factor
    probability, span, noise_std: of `mask_input`, at the rate of labels
    entries: logits in memory at a time, of `quantizer.sum_over_frames`

    `extras.frozen[name]` = {"projection", "codebook"}. The loss is a sum over masked frames and its
    weight is their number. Metrics: `<name>/accuracy`, `<name>/masked_share` of the valid frames,
    and `codebook/anchor/...` (`quantizer.usage_metrics`) over the labels of masked frames. Raises
    UserError for an encoder that does not hear features, or has another factor than `stack`.
    """

    def apply(params, extras, batch, rng):
        data, frozen = batch[stream], extras.frozen[name]
        mask_rng, encoder_rng = jax.random.split(rng)
        x, lengths, _ = features(data["audio"], data["audio_lengths"], keys=None, train=True)
        check_features(name, x)
        labels = anchor_labels(frozen, x, lengths, stack)
        keys = row_keys(mask_rng, data["ids"])
        spans = {"stack": stack, "probability": probability, "span": span, "noise_std": noise_std}
        masked, mask = mask_input(x, lengths, keys, **spans)
        how = {"context": "full", "hide": None, "train": True, "rng": encoder_rng}
        output, lengths, *_ = encode(params, masked, lengths, stats=extras.stats, **how)
        check_stack(name, stack, mask, output)
        hidden = scale_gradient(output, extras.scale[name])

        def score(positions, wanted, hidden, labels):
            return score_labels(head(params, hidden), labels, wanted)

        books, codes, _ = frozen["codebook"].shape
        nats, hits = quantizer.sum_over_frames(
            score, mask, hidden, labels, width=books * codes, entries=entries
        )
        frames = jnp.sum(mask, dtype=jnp.float32)
        metrics = {
            f"{name}/accuracy": (hits, frames),
            f"{name}/masked_share": (frames, jnp.sum(lengths, dtype=jnp.float32)),
            **quantizer.usage_metrics("anchor", quantizer.count_codes(labels, mask, codes)),
        }
        return {name: (nats, frames)}, Aux(metrics, {})

    return Objective(losses=(name,), streams=(stream,), apply=apply)


def anchor_labels(
    frozen: dict[str, Float[Array, "..."]],
    x: Float[Array, "b t m"],
    lengths: Int[Array, "b"],
    stack: int,
) -> Int[Array, "b u c"]:
    """The nearest code of each `stack` frames of features, U = ceil(T / stack).

    Features are normalised a band over the utterance's valid frames, padding left out, and joined
    `stack` at a time, 0 where the last join is not full; then `quantizer.nearest`. No gradient.
    """
    x = normalise(x, lengths)
    batch, frames, bands = x.shape
    joined = -(-frames // stack)
    x = jnp.pad(x, ((0, 0), (0, joined * stack - frames), (0, 0)))
    return quantizer.nearest(frozen, x.reshape(batch, joined, stack * bands))


def mask_input(
    x: Float[Array, "b t m"],
    lengths: Int[Array, "b"],
    keys: Key[Array, "b"],
    *,
    stack: int,
    probability: float,
    span: int,
    noise_std: float,
) -> tuple[Float[Array, "b t m"], Bool[Array, "b u"]]:
    """(features with masked frames replaced by N(0, noise_std^2), mask at the rate of labels).

    Spans are drawn at the rate of labels (`masking.start_spans`), so that a label's frames are
    masked together; True = masked. Padded frames stay as they are.
    """
    frames, bands = x.shape[1:]
    labels = -(-frames // stack)
    mask = start_spans(keys, -(-lengths // stack), labels, probability=probability, span=span)
    noise = jax.vmap(
        lambda key: jax.random.normal(jax.random.fold_in(key, 2), (frames, bands), jnp.float32)
    )(keys)
    hidden = jnp.repeat(mask, stack, axis=1)[:, :frames] & valid_frames(frames, lengths)
    return jnp.where(hidden[..., None], noise_std * noise, x), mask


def score_labels(
    logits: Float[Array, "b t c v"], labels: Int[Array, "b t c"], wanted: Bool[Array, "b t"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(nats, hits) of hard labels over the wanted frames, each frame the mean of its codebooks."""
    nats = jnp.mean(quantizer.hard_nats(logits, labels), axis=-1)
    hits = jnp.mean(jnp.argmax(logits, axis=-1) == labels, axis=-1, dtype=jnp.float32)
    return jnp.sum(jnp.where(wanted, nats, 0)), jnp.sum(jnp.where(wanted, hits, 0))


def check_features(name: str, x: Array) -> None:
    """UserError where the encoder hears waveforms, which have no frames to mask."""
    if x.ndim != 3:
        raise UserError(
            f"the loss {name} masks log-mel frames: config.encoder must hear features, such as "
            '"conformer"'
        )


def check_stack(name: str, stack: int, mask: Array, output: Array) -> None:
    """UserError where labels and encoder frames do not meet."""
    if mask.shape[1] != output.shape[1]:
        raise UserError(
            f"config.{name}.stack={stack} makes {mask.shape[1]} labels where the encoder makes "
            f"{output.shape[1]} frames: set it to the encoder's subsampling factor"
        )
