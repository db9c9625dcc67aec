"""The wav2vec 2.0 objective: distinguish the quantised latent of a masked frame from others.

Source: Baevski, Zhou, Mohamed, Auli, "wav2vec 2.0: a framework for self-supervised learning of
speech representations", NeurIPS 2020, equations 2 to 4; as the lower level of Wav2Vec2-JUST.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.rng import row_keys
from bljust_jax.bilevel.types import Aux
from bljust_jax.common.config_schema import ranges as r
from bljust_jax.common.config_schema.field import Field
from bljust_jax.common.errors import UserError
from bljust_jax.common.shapes import Lengths, Mask, RowKeys, Scalar
from bljust_jax.models import heads
from bljust_jax.models.encoders import Encoder
from bljust_jax.objectives import EncoderObjective, head_name, is_pretrained
from bljust_jax.ops import quantizer
from bljust_jax.ops.log_mel import valid_frames
from bljust_jax.ops.masking import InputMask, wav2vec2_spans

FIELDS = {
    "mask_prob": Field(
        float, "share of frames in masked spans, before overlaps", r.ABOVE_0_TO_1, 0.65
    ),
    "mask_length": Field(int, "frames per masked span", r.AT_LEAST_1, 10),
    "negatives": Field(int, "negative masked frames of the same utterance", r.AT_LEAST_1, 100),
    "temperature": Field(float, "divisor of the cosine", r.ABOVE_0, 0.1),
    "diversity": Field(float, "weight of the diversity loss", r.AT_LEAST_0, 0.1),
    "feature_penalty": Field(float, "weight of the features' mean square", r.AT_LEAST_0, 10.0),
    "groups": Field(int, "codebooks", r.AT_LEAST_1, 2),
    "codes": Field(int, "codes per codebook", r.AT_LEAST_1, 320),
    "code_dim": Field(int, "width of the codevectors of all groups together", r.AT_LEAST_1, 256),
    "width": Field(int, "width of projected targets and predictions", r.AT_LEAST_1, 256),
    "tau_start": Field(float, "temperature at step 0", r.ABOVE_0, 2.0),
    "tau_end": Field(float, "lowest temperature", r.ABOVE_0, 0.5),
    "tau_decay": Field(
        float, "tau = max(tau_end, tau_start * tau_decay^step)", r.ABOVE_0, 0.999995
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wav2Vec2Loss(EncoderObjective):
    """contrastive + diversity * D + feature_penalty * mean(conv^2), in nats per masked frame.

    mask_prob, mask_length: of `masking.wav2vec2_spans`, in frames of output
    negatives, temperature: of the contrastive term (`contrast`) over masked frames
    diversity: weight of D, the `diversity_loss` of the code probabilities
    feature_penalty: weight of the mean square of hidden["conv"] over valid frames, where the
        encoder has it
    groups, codes, code_dim: G codebooks of V entries, code_dim values in all, quantise
        hidden["latents"]
    width: of projected targets and predictions
    tau_start, tau_end, tau_decay: Gumbel temperature max(end, start * decay^k), k the steps of this
        loss so far; with the quantizer of another run (`config.init_parts`) it is `tau_end`

    Parameters params["wav2vec2_head"]: {"quantizer": {"project", "codevectors" [G, V, d]},
    "project_q", "project_hid"}. The loss is the sum times n and its weight is n, the number of
    masked frames of utterances that have at least two: with transformers' sums, n times each of its
    terms. Metrics: `<name>/{contrastive,diversity,penalty}`; `<name>/accuracy`, share of masked
    frames whose target scores above every negative with other codes; `<name>/temperature`;
    `<name>/short`, utterances per step without two masked frames, which enter no sum;
    `codebook/<name>/...` (`quantizer.usage_metrics`) of the codes chosen without noise.
    """

    name: str = "wav2vec2"
    mask_prob: float | int = 0.65
    mask_length: int = 10
    negatives: int = 100
    temperature: float | int = 0.1
    diversity: float | int = 0.1
    feature_penalty: float | int = 10.0
    groups: int = 2
    codes: int = 320
    code_dim: int = 256
    width: int = 256
    tau_start: float | int = 2.0
    tau_end: float | int = 0.5
    tau_decay: float | int = 0.999995

    def init(self, rng: Any) -> tuple[dict, dict]:
        k_codes, k_vectors, k_target, k_prediction = jax.random.split(rng, 4)
        entries = self.groups * self.codes
        # Scores with variance E from the first step on: with smaller ones all codes are equally
        # likely and the quantiser passes no information.
        kernel = jax.random.normal(k_codes, (self.encoder.latent_dim, entries))
        shape = self.groups, self.codes, self.code_dim // self.groups
        head = {
            "quantizer": {
                "project": {"kernel": kernel, "bias": jnp.zeros(entries)},
                "codevectors": jax.random.uniform(k_vectors, shape),
            },
            "project_q": heads.init(k_target, self.code_dim, self.width),
            "project_hid": heads.init(k_prediction, self.encoder.dim, self.width),
        }
        return {self.head: head}, {}

    def head_cost(self, losses: frozenset[str], seconds: float | int) -> float | int:
        """FLOPs of quantiser, projections and scores, counted on all frames."""
        scores = 6 * (self.negatives + 1) * self.width * self.frames_of(seconds)
        return super().head_cost(losses, seconds) + scores

    def code_scores(self, head: Any, latents: Float[Array, "b t e"]) -> Float[Array, "b t g v"]:
        scores = heads.apply(head["quantizer"]["project"], latents)
        return scores.reshape(*latents.shape[:2], self.groups, self.codes)

    def apply(self, params, extras, batch, rng):
        data, head = batch[self.stream], params[self.head]
        audio, audio_lengths = data["audio"], data["audio_lengths"]
        mask_keys, noise_keys, negative_keys, encoder_rng = _keys(rng, data["ids"])
        size, frames = self.encoder.frames(audio.shape[1]), self.encoder.frames(audio_lengths)
        spans = {"probability": self.mask_prob, "span": self.mask_length}
        mask = wav2vec2_spans(mask_keys, frames, size, **spans)
        options = {"input_mask": InputMask(mask), "train": True, "rng": encoder_rng}
        output, lengths, hidden, _ = self.encoder.encode_audio(
            params, extras.stats, audio, audio_lengths, **options
        )
        valid = valid_frames(size, lengths)[..., None]

        def scaled(h):
            return scale_gradient(jnp.where(valid, h, 0), extras.scale[self.name])

        mask = mask & (jnp.sum(mask, axis=1, keepdims=True) >= 2)
        scores = self.code_scores(head, scaled(hidden["latents"]))
        tau = quantizer.annealed(extras.step, self.tau_start, self.tau_end, self.tau_decay)
        codevectors = head["quantizer"]["codevectors"]
        quantised, codes = _quantise(scores, codevectors, noise_keys, tau)
        contrasted = contrast(
            heads.apply(head["project_hid"], scaled(output)),
            heads.apply(head["project_q"], quantised),
            codes,
            mask,
            draw_negatives(negative_keys, mask, self.negatives),
            temperature=self.temperature,
        )
        penalty = mean_square(scaled(hidden["conv"]), lengths) if "conv" in hidden else None
        short = (audio_lengths > 0) & ~jnp.any(mask, axis=1)
        return self._report(contrasted, scores, mask, penalty, short, tau)

    def _report(self, contrasted, scores, mask, penalty, short, tau):
        """The loss and its metrics."""
        nats, hits, rivals = contrasted
        n = jnp.sum(mask, dtype=jnp.float32)
        penalty = 0 * n if penalty is None else penalty
        spread = diversity_loss(scores, mask)
        loss = jnp.sum(nats) + n * (self.diversity * spread + self.feature_penalty * penalty)
        one, some, name = jnp.float32(1), (n > 0).astype(jnp.float32), self.name
        counts = quantizer.count_codes(jnp.argmax(scores, axis=-1), mask, scores.shape[-1])
        metrics = {
            f"{name}/contrastive": (jnp.sum(nats), n),
            f"{name}/diversity": (some * spread, some),
            f"{name}/penalty": (some * penalty, some),
            f"{name}/accuracy": (jnp.sum(hits, dtype=jnp.float32), jnp.sum(rivals, dtype=n.dtype)),
            f"{name}/temperature": (tau, one),
            f"{name}/short": (jnp.sum(short, dtype=jnp.float32), one),
            **quantizer.usage_metrics(name, counts),
        }
        return {name: (loss, n)}, Aux(metrics, {})


def build(config: Any, encoder: Encoder) -> Wav2Vec2Loss:
    """The loss as `config.wav2vec2` sets it."""
    if not encoder.masks_input:
        raise UserError(
            f"config.ssl='wav2vec2' masks inside the encoder, and {config.encoder!r} does not: "
            "take configs/wav2vec2_just.py"
        )
    c = config.wav2vec2
    if c.code_dim % c.groups:
        raise UserError(
            f"config.wav2vec2.code_dim={c.code_dim} must be a multiple of groups={c.groups}"
        )
    fields = c.to_dict()
    if is_pretrained(config, head_name(Wav2Vec2Loss.name)):
        fields["tau_start"] = c.tau_end  # its quantizer ended there
    return Wav2Vec2Loss(encoder=encoder, sample_rate=config.data.sample_rate, **fields)


def draw_negatives(keys: RowKeys, mask: Mask, count: int) -> Int[Array, "b t n"]:
    """Indices of `count` other masked frames of the same utterance for each frame, uniform and with
    replacement, as published; undefined for utterances with fewer than two masked frames.

    A draw is a function of the key and of the masked frames, independent of padding.
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
    mask: Mask,
    negatives: Int[Array, "b t n"],
    *,
    temperature: float | int,
) -> tuple[Float[Array, "b t"], Mask, Mask]:
    """-log( exp(s_tt) / (exp(s_tt) + sum over negatives j of exp(s_tj)) ), s = cosine(prediction t,
    target j) / temperature.

    A negative with the codes of the positive is the same vector and is excluded from the sum, so a
    collapsed codebook has a loss of 0; the codebook metrics show the collapse. Returns, each [B, T]
    and 0 or False outside the mask: nats, whether the target scores above every negative, and
    whether there is a negative with other codes. float32 or wider.
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


def diversity_loss(scores: Float[Array, "b t g v"], mask: Mask) -> Scalar:
    """(G V - sum_g exp H(p_g)) / (G V), p = mean over masked frames of softmax(scores), without
    noise or temperature; 0 where all codes are equally used. transformers' is n times this."""
    groups, size = scores.shape[2:]
    chosen = jnp.where(mask[..., None, None], jax.nn.softmax(scores, axis=-1), 0)
    mean = jnp.sum(chosen, axis=(0, 1)) / jnp.maximum(jnp.sum(mask), 1)
    return 1 - jnp.sum(quantizer.perplexity(mean)) / (groups * size)


def mean_square(x: Float[Array, "b t e"], lengths: Lengths) -> Scalar:
    """Mean of x^2 over the channels of all valid frames; x is 0 in the others. 0 without frames."""
    return jnp.sum(jnp.square(x)) / jnp.maximum(jnp.sum(lengths) * x.shape[2], 1)


def _quantise(scores, codevectors, keys, temperature):
    """(quantised [B, T, G d], codes [B, T, G]) with Gumbel noise, straight-through."""
    positions = jnp.broadcast_to(jnp.arange(scores.shape[1])[None, :], scores.shape[:2])
    scores = scores + quantizer.gumbel(keys, positions, scores.shape[2:])
    weights = quantizer.select(scores, temperature, hard=True)
    return quantizer.product_codes(weights, codevectors), jnp.argmax(scores, axis=-1)


def _keys(rng, ids):
    """Keys per utterance for the mask, the noise and the negatives; one key for the encoder."""
    mask, noise, negatives, encoder = jax.random.split(rng, 4)
    return row_keys(mask, ids), row_keys(noise, ids), row_keys(negatives, ids), encoder
