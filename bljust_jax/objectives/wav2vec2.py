"""wav2vec 2.0: tell the quantised latent of a masked frame from those of other masked frames.

Source: Baevski, Zhou, Mohamed, Auli, "wav2vec 2.0: a framework for self-supervised learning of
speech representations", NeurIPS 2020, equations 2 to 4; as the lower level of Wav2Vec2-JUST.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.rng import row_keys
from bljust_jax.bilevel.types import Aux, Objective, SelfSupervised
from bljust_jax.common.errors import UserError
from bljust_jax.ops import quantizer
from bljust_jax.ops.log_mel import valid_frames
from bljust_jax.ops.masking import Hide, wav2vec2_spans


class Heads(NamedTuple):
    """The functions of the head, each of the whole parameter tree."""

    codes: Callable  # (params, latents [B, T, E]) -> scores of the codes [B, T, G, V]
    codevectors: Callable  # params -> [G, V, d]
    target: Callable  # (params, quantised [B, T, G d]) -> [B, T, P]
    prediction: Callable  # (params, output [B, T, D]) -> [B, T, P]


def bind(config: Any, encoder: Any, encode: Callable, linear: Any) -> SelfSupervised:
    """The loss as `config.wav2vec2` sets it. Head: {"quantizer": {"project", "codevectors"},
    "project_q", "project_hid"}."""
    if not encoder.hides:
        raise UserError(
            f"config.ssl='wav2vec2' masks inside the encoder, and {config.encoder!r} does not: "
            "take configs/wav2vec2_just.py"
        )
    c, rate, name = config.wav2vec2, config.data.sample_rate, "wav2vec2_head"
    if c.code_dim % c.groups:
        raise UserError(
            f"config.wav2vec2.code_dim={c.code_dim} must be a multiple of groups={c.groups}"
        )

    def init(rng):
        k_codes, k_vectors, k_target, k_prediction = jax.random.split(rng, 4)
        entries = c.groups * c.codes
        # scores far apart from the first step on: an even quantiser would say nothing
        spread = jax.random.normal(k_codes, (encoder.latent_dim, entries))
        vectors = jax.random.uniform(k_vectors, (c.groups, c.codes, c.code_dim // c.groups))
        return {
            "quantizer": {
                "project": {"kernel": spread, "bias": jnp.zeros(entries)},
                "codevectors": vectors,
            },
            "project_q": linear.init(k_target, c.code_dim, c.width),
            "project_hid": linear.init(k_prediction, encoder.dim, c.width),
        }, {}

    def codes(params, latents):
        scores = linear.apply(params[name]["quantizer"]["project"], latents)
        return scores.reshape(*latents.shape[:2], c.groups, c.codes)

    objective = make(
        stream="unlabelled",
        features=encoder.features,
        encode=encode,
        frames=encoder.frames,
        heads=Heads(
            codes,
            lambda params: params[name]["quantizer"]["codevectors"],
            lambda params, q: linear.apply(params[name]["project_q"], q),
            lambda params, h: linear.apply(params[name]["project_hid"], h),
        ),
        mask_prob=c.mask_prob,
        mask_length=c.mask_length,
        negatives=c.negatives,
        temperature=c.temperature,
        diversity=c.diversity,
        feature_penalty=c.feature_penalty,
        tau=(c.tau_start, c.tau_end, c.tau_decay),
    )
    return SelfSupervised(objective, init, lambda s: 3 * encoder.flops(round(s * rate)))


def make(
    *,
    stream: str,
    features: Callable,
    encode: Callable,
    frames: Callable,
    heads: Heads,
    mask_prob: float = 0.65,
    mask_length: int = 10,
    negatives: int = 100,
    temperature: float | int = 0.1,
    diversity: float | int = 0.1,
    feature_penalty: float | int = 10.0,
    tau: tuple[float | int, float | int, float | int] = (2.0, 0.5, 0.999995),
    name: str = "wav2vec2",
) -> Objective:
    """contrastive + diversity * D + feature_penalty * mean(conv^2), in nats a masked frame.

    features, encode: `Encoder.features` and `Encoder.apply` of an encoder that hides frames, the
        latter finding its own part of params and stats; hidden["latents"] [B, T, E] are quantised,
        hidden["conv"], where there is one, is penalised by its mean square over valid frames
    frames(samples) -> frames of output, of numbers or arrays
    tau: (start, end, decay) of the Gumbel temperature, max(end, start * decay^step)

    The contrastive term is `contrast` over the masked frames, D is `diversity_loss` of the code
    probabilities. The loss is the sum times n and its weight is n, the number of masked frames of
    utterances that have at least two: with transformers' sums, n times each of its terms.
    Metrics: `<name>/{contrastive,diversity,penalty}`; `<name>/accuracy`, the share of masked frames
    whose target beats every negative that is another vector; `<name>/temperature`; `<name>/short`,
    utterances a step without two masked frames, which count nowhere; `codebook/<name>/...`
    (`quantizer.usage_metrics`) of the codes that the quantiser would choose without noise.
    """

    def apply(params, extras, batch, rng):
        data = batch[stream]
        mask_keys, noise_keys, negative_keys, encoder_rng = _keys(rng, data["ids"])
        x, lengths, _ = features(data["audio"], data["audio_lengths"], keys=None, train=True)
        spans = {"probability": mask_prob, "span": mask_length}
        size, lengths_out = frames(data["audio"].shape[1]), frames(data["audio_lengths"])
        mask = wav2vec2_spans(mask_keys, lengths_out, size, **spans)
        how = {"context": "full", "hide": Hide(mask), "train": True, "rng": encoder_rng}
        output, lengths, hidden, _ = encode(params, x, lengths, stats=extras.stats, **how)
        valid = valid_frames(size, lengths)[..., None]

        def hear(h):
            return scale_gradient(jnp.where(valid, h, 0), extras.scale[name])

        mask = mask & (jnp.sum(mask, axis=1, keepdims=True) >= 2)
        n = jnp.sum(mask, dtype=jnp.float32)
        scores = heads.codes(params, hear(hidden["latents"]))
        warmth = quantizer.annealed(extras.step, *tau)
        quantised, picked = _quantise(scores, heads.codevectors(params), noise_keys, warmth)
        nats, hits, rivals = contrast(
            heads.prediction(params, hear(output)),
            heads.target(params, quantised),
            picked,
            mask,
            draw_negatives(negative_keys, mask, negatives),
            temperature=temperature,
        )
        spread = diversity_loss(scores, mask)
        penalty = mean_square(hear(hidden["conv"]), lengths) if "conv" in hidden else 0 * n
        loss = jnp.sum(nats) + n * (diversity * spread + feature_penalty * penalty)
        short = (data["audio_lengths"] > 0) & ~jnp.any(mask, axis=1)
        one, some = jnp.float32(1), (n > 0).astype(jnp.float32)
        counts = quantizer.count_codes(jnp.argmax(scores, axis=-1), mask, scores.shape[-1])
        metrics = {
            f"{name}/contrastive": (jnp.sum(nats), n),
            f"{name}/diversity": (some * spread, some),
            f"{name}/penalty": (some * penalty, some),
            f"{name}/accuracy": (jnp.sum(hits, dtype=jnp.float32), jnp.sum(rivals, dtype=n.dtype)),
            f"{name}/temperature": (warmth, one),
            f"{name}/short": (jnp.sum(short, dtype=jnp.float32), one),
            **quantizer.usage_metrics(name, counts),
        }
        return {name: (loss, n)}, Aux(metrics, {})

    return Objective(losses=(name,), streams=(stream,), apply=apply)


def draw_negatives(
    keys: Key[Array, "b"], mask: Bool[Array, "b t"], count: int
) -> Int[Array, "b t n"]:
    """Places of `count` other masked frames of the same utterance for each frame, uniform and with
    replacement, as published; without meaning where an utterance has fewer than two.

    A draw is a function of the key and of the masked frames, not of the padding behind them.
    """
    frames = mask.shape[1]
    rank = jnp.cumsum(mask, axis=1) - 1
    others = jnp.maximum(jnp.sum(mask, axis=1) - 1, 1)[:, None, None]
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (frames, count), jnp.float32))(keys)
    drawn = jnp.minimum(jnp.floor(uniform * others).astype(jnp.int32), others - 1)
    drawn = drawn + (drawn >= rank[..., None])
    places = jnp.argsort(~mask, axis=1, stable=True)
    drawn = jnp.clip(drawn, 0, frames - 1).reshape(mask.shape[0], -1)
    return jnp.take_along_axis(places, drawn, axis=1).reshape(*mask.shape, count)


def contrast(
    predictions: Float[Array, "b t p"],
    targets: Float[Array, "b t p"],
    codes: Int[Array, "b t g"],
    mask: Bool[Array, "b t"],
    negatives: Int[Array, "b t n"],
    *,
    temperature: float | int,
) -> tuple[Float[Array, "b t"], Bool[Array, "b t"], Bool[Array, "b t"]]:
    """-log( exp(s_tt) / (exp(s_tt) + sum over negatives j of exp(s_tj)) ), s = cosine(prediction t,
    target j) / temperature.

    A negative that has the codes of the positive is the same vector and is left out of the sum; a
    collapsed codebook so has a loss of 0, and codebook metrics that say why. Returns, each
    [B, T] and 0 or False outside the mask: nats, whether the target beats every negative, and
    whether there is another vector to beat. float32 or wider.
    """
    predictions, targets = quantizer.unit(predictions), quantizer.unit(targets)
    highest = jax.lax.Precision.HIGHEST
    scores = jnp.einsum("btp,bjp->btj", predictions, targets, precision=highest) / temperature
    same = jnp.all(codes[:, :, None, :] == codes[:, None, :, :], axis=-1)
    positive = jnp.sum(predictions * targets, axis=-1) / temperature
    scores = jnp.where(same, -jnp.inf, scores)
    drawn = jnp.take_along_axis(scores, negatives, axis=2)
    best = jnp.max(drawn, axis=-1)
    rivals = mask & (best > -jnp.inf)
    against = jax.nn.logsumexp(jnp.where(rivals[..., None], drawn, 0), axis=-1)
    nats = jnp.where(rivals, jax.nn.softplus(against - positive), 0)
    return nats, rivals & (positive > best), rivals


def diversity_loss(scores: Float[Array, "b t g v"], mask: Bool[Array, "b t"]) -> Float[Array, ""]:
    """(G V - sum_g exp H(p_g)) / (G V), p = mean over masked frames of softmax(scores), without
    noise or temperature; 0 where all codes are used alike. transformers' is n times this."""
    groups, size = scores.shape[2:]
    chosen = jnp.where(mask[..., None, None], jax.nn.softmax(scores, axis=-1), 0)
    mean = jnp.sum(chosen, axis=(0, 1)) / jnp.maximum(jnp.sum(mask), 1)
    return 1 - jnp.sum(quantizer.perplexity(mean)) / (groups * size)


def mean_square(x: Float[Array, "b t e"], lengths: Int[Array, "b"]) -> Float[Array, ""]:
    """Over the channels of all valid frames, x being 0 in the others; 0 where there is none."""
    return jnp.sum(jnp.square(x)) / jnp.maximum(jnp.sum(lengths) * x.shape[2], 1)


def _quantise(scores, codevectors, keys, temperature):
    """(quantised [B, T, G d], codes [B, T, G]) with Gumbel noise, straight-through."""
    positions = jnp.broadcast_to(jnp.arange(scores.shape[1])[None, :], scores.shape[:2])
    scores = scores + quantizer.gumbel(keys, positions, scores.shape[2:])
    weights = quantizer.select(scores, temperature, hard=True)
    return quantizer.product_codes(weights, codevectors), jnp.argmax(scores, axis=-1)


def _keys(rng, ids):
    """Keys an utterance for the mask, the noise and the negatives, and the encoder's own."""
    mask, noise, negatives, encoder = jax.random.split(rng, 4)
    return row_keys(mask, ids), row_keys(noise, ids), row_keys(negatives, ids), encoder
