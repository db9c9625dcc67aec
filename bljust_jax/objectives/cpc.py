"""Contrastive predictive coding (CPC): a self-supervised objective on unlabelled audio.

Sources: van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding"
(2018), equations 3 and 4; as the lower level of BL-JUST, arXiv 2401.06980.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.rng import row_keys
from bljust_jax.bilevel.types import Aux
from bljust_jax.common.config_schema import ranges as r
from bljust_jax.common.config_schema.field import Field
from bljust_jax.common.shapes import Frames, RowKeys
from bljust_jax.models import heads
from bljust_jax.models.encoders import Encoded, Encoder
from bljust_jax.objectives import EncoderObjective
from bljust_jax.ops import quantizer
from bljust_jax.ops.log_mel import valid_frames

FIELDS = {
    "steps": Field(int, "predicted frames, each by a linear map of its own", r.AT_LEAST_1, 12),
    "first_step": Field(int, "distance of the first predicted frame", r.AT_LEAST_1, 2),
    "width": Field(int, "width of projected latents and predictions", r.AT_LEAST_1, 256),
    "temperature": Field(float, "divisor of the cosine", r.ABOVE_0, 0.1),
    "negatives": Field(int, "negative frames of the same utterance; 0: all", r.AT_LEAST_0, 100),
    "context": Field(str, "one causal pass, or windows apart", ("causal", "chunked"), "causal"),
    "chunk": Field(tuple, "windows of context=chunked", r.CHUNK, (2.0, 1.0, 1.0)),
    "target_gradient": Field(bool, "the loss has a gradient into its targets", default=True),
}

EPS = 1e-8
CONTEXTS = ("causal", "chunked")


class Candidates(NamedTuple):
    """Predictions of a batch and the targets among which they must find theirs."""

    queries: Float[Array, "k b q p"]  # K steps predicted from each of Q times
    targets: Float[Array, "b m p"]  # all targets of each utterance
    valid: Bool[Array, "b m"]  # True = real target
    truth_of: Callable[[Array], Array]  # [B, M, ...] per target -> [K, B, Q, ...] per query


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cpc(EncoderObjective):
    """InfoNCE of predicting an utterance's own future latents among its other latents, in nats.

    context="causal": one pass with causal context; the output at frame t predicts the latents of
    frames t + first_step .. t + first_step + steps - 1. Take first_step = 2 where the front end's
    windows of neighbouring latents overlap.
    context="chunked", as published: for windows that start every chunk[2] seconds, the first
    chunk[0] seconds are encoded alone and their last output predicts the first `steps` latents of
    the chunk[1] seconds that follow, also encoded alone. `first_step` is not used.

    width: of projected latents and predictions. Parameters params["cpc_head"]: {"project": linear
        map of latents, "predict": one linear map of the output per step}
    temperature: divides the cosine
    negatives: 0 takes all other valid candidates of the same utterance; n > 0 a random subset of n,
        drawn once per utterance from its own key
    target_gradient: False stops the gradient of the targets before the encoder; their projection
        still learns
    dtype: of the products of the linear maps (`heads.apply`); scores are float32

    Features are normalised by stored statistics, since those of the utterance depend on its future.
    The loss is a sum over valid (time, step) pairs and its weight is their number. Metrics:
    `<name>/accuracy`, share of pairs whose positive scores above every negative; `<name>/short`,
    utterances per step that are too short for one pair, which enter neither sum.
    Raises ValueError for settings that cannot work together.
    """

    name: str = "cpc"
    width: int = 256
    steps: int = 4
    first_step: int = 2
    temperature: float | int = 0.1
    negatives: int = 0
    context: str = "causal"
    chunk: tuple[float | int, float | int, float | int] = (2.0, 1.0, 1.0)
    target_gradient: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.context not in CONTEXTS:
            raise ValueError(f"context {self.context!r}: expected one of {CONTEXTS}")
        if min(self.steps, self.first_step) < 1 or self.negatives < 0 or self.temperature <= 0:
            raise ValueError("CPC needs steps, first_step >= 1, negatives >= 0, temperature > 0")
        if self.context == "chunked" and not 0 < self.chunk[1] <= self.chunk[2]:
            raise ValueError(
                f"chunk {self.chunk}: a slide shorter than the future window would make an "
                "utterance's negatives equal to its positives"
            )

    def init(self, rng: Any) -> tuple[dict, dict]:
        project, predict = jax.random.split(rng)
        head = {
            "project": heads.init(project, self.encoder.latent_dim, self.width),
            "predict": heads.init(predict, self.encoder.dim, self.width, steps=self.steps),
        }
        return {self.head: head}, {}

    def cost(self, losses: frozenset[str], seconds: float | int) -> float:
        if self.context == "causal":
            return super().cost(losses, seconds)
        past, future, _ = self.chunk
        return self.windows(seconds) * sum(super(Cpc, self).cost(losses, s) for s in (past, future))

    def windows(self, seconds: float | int) -> int:
        """Number of pairs of windows in a row of `seconds`, for context "chunked"."""
        past, future, slide = self.chunk
        return max(0, int((seconds - past - future) // slide) + 1)

    def head_cost(self, losses: frozenset[str], seconds: float | int) -> float | int:
        """FLOPs of the linear maps and of the scores, 6 K Q (M + 1) P for Q times, K steps, M
        candidates of width P."""
        if self.context == "causal":
            times = self.frames_of(seconds)
            candidates, maps = self.negatives or times, super().head_cost(losses, seconds)
        else:
            times = self.windows(seconds)
            candidates = self.negatives or times * self.steps
            latents = self.steps * self.encoder.latent_dim * self.width
            maps = 6 * times * (latents + self.steps * self.encoder.dim * self.width)
        return maps + 6 * self.steps * times * (candidates + 1) * self.width

    def project(self, params: Any, latents: Float[Array, "b t e"]) -> Float[Array, "b t p"]:
        """Targets of latents."""
        return heads.apply(params[self.head]["project"], latents, self.dtype)

    def predict(self, params: Any, output: Frames) -> Float[Array, "k b t p"]:
        """Predictions of the targets 1, ..., K steps ahead."""
        every = heads.apply(params[self.head]["predict"], output, self.dtype)
        return jnp.moveaxis(every, 2, 0)

    def apply(self, params, extras, batch, rng):
        data = batch[self.stream]
        draw_rng, encoder_rng = jax.random.split(rng)
        audio = data["audio"], data["audio_lengths"]
        if self.context == "causal":
            encoded = self._encode(params, extras, *audio, encoder_rng, "causal")
            return self.apply_encoded(params, extras, data, encoded, draw_rng)
        return self._contrast(self._chunked(params, extras, *audio, encoder_rng), data, draw_rng)

    def apply_encoded(self, params, extras, data, encoded: Encoded, rng):
        """The loss on the output of a causal pass."""
        return self._contrast(self._causal(params, extras, encoded), data, rng)

    def _encode(self, params, extras, audio, audio_lengths, rng, context) -> Encoded:
        options = {"context": context, "train": True, "rng": rng, "stored_statistics": True}
        return self.encoder.encode_audio(params, extras.stats, audio, audio_lengths, **options)

    def _scaled(self, extras, encoded):
        """Output and latents, 0 in padded frames, and the mask of valid frames."""
        valid = valid_frames(encoded.output.shape[1], encoded.lengths)
        output, latents = (
            scale_gradient(jnp.where(valid[..., None], h, 0), extras.scale[self.name])
            for h in (encoded.output, encoded.hidden["latents"])
        )
        return output, latents, valid

    def _targets(self, params, latents):
        if not self.target_gradient:
            latents = jax.lax.stop_gradient(latents)
        return self.project(params, latents)

    def _causal(self, params, extras, encoded) -> Candidates:
        """Frame t of one causal pass predicts the latents of frames first_step, ... later."""
        output, latents, valid = self._scaled(extras, encoded)
        frames = valid.shape[1]

        def truth_of(x):
            ahead = range(self.first_step, self.first_step + self.steps)
            shifted = (x[:, min(k, frames) :] for k in ahead)
            rest = [(0, 0)] * (x.ndim - 2)
            return jnp.stack(
                [jnp.pad(s, ((0, 0), (0, frames - s.shape[1]), *rest)) for s in shifted]
            )

        queries, targets = self.predict(params, output), self._targets(params, latents)
        return Candidates(queries, targets, valid, truth_of)

    def _chunked(self, params, extras, audio, audio_lengths, rng) -> Candidates | None:
        """The last output of each past window predicts the first latents of the next window.

        Windows are cut from the padded length of the batch; one that passes the end of its
        utterance is masked. None if the batch is shorter than one window.
        """
        past, future, slide = (round(seconds * self.sample_rate) for seconds in self.chunk)
        batch, samples = audio.shape
        starts = range(0, samples - past - future + 1, slide)
        windows = len(starts)
        if windows == 0:
            return None
        inside = jnp.asarray(starts)[None, :] + (past + future) <= audio_lengths[:, None]

        def cut(offset, size):
            pieces = [audio[:, s + offset : s + offset + size] for s in starts]
            lengths = jnp.where(inside, size, 0).astype(audio_lengths.dtype)
            return jnp.stack(pieces, axis=1).reshape(batch * windows, size), lengths.reshape(-1)

        past_rng, future_rng = jax.random.split(rng)
        encoded = self._encode(params, extras, *cut(0, past), past_rng, "full")
        output, _, past_valid = self._scaled(extras, encoded)
        last = jnp.maximum(jnp.sum(past_valid, axis=1) - 1, 0)
        output = jnp.take_along_axis(output, last[:, None, None], axis=1)
        encoded = self._encode(params, extras, *cut(past, future), future_rng, "full")
        _, latents, valid = self._scaled(extras, encoded)
        frames = valid.shape[1]
        steps = min(self.steps, frames)

        def truth_of(x):
            by_window = x.reshape(x.shape[0], windows, frames, *x.shape[2:])
            return jnp.moveaxis(by_window[:, :, :steps], 2, 0)

        def by_utterance(x):
            return x.reshape(batch, windows * frames, *x.shape[2:])

        queries = self.predict(params, output.reshape(batch, windows, -1))[:steps]
        targets = self._targets(params, by_utterance(latents))
        return Candidates(queries, targets, by_utterance(valid), truth_of)

    def _contrast(self, candidates: Candidates | None, data, rng):
        """InfoNCE over the candidates, with its metrics; all sums are 0 where there are none."""
        if candidates is None:
            nats = hits = counted = jnp.zeros((1, len(data["ids"]), 1))
        else:
            keys = row_keys(rng, data["ids"])
            truth = (candidates.truth_of(x) for x in (candidates.targets, candidates.valid))
            negatives = draw_negatives(keys, candidates, self.negatives)
            nats, hits, counted = info_nce(
                candidates.queries, *truth, *negatives, temperature=self.temperature
            )
        pairs = jnp.sum(counted, dtype=jnp.float32)
        short = (data["audio_lengths"] > 0) & ~jnp.any(counted, axis=(0, 2))
        metrics = {
            f"{self.name}/accuracy": (jnp.sum(hits, dtype=jnp.float32), pairs),
            f"{self.name}/short": (jnp.sum(short, dtype=jnp.float32), jnp.float32(1)),
        }
        return {self.name: (jnp.sum(nats), pairs)}, Aux(metrics, {})


def build(config: Any, encoder: Encoder) -> Cpc:
    """CPC as `config.cpc` sets it."""
    fields = config.cpc.to_dict() | {"chunk": tuple(config.cpc.chunk)}
    if config.cpc.context == "causal":
        encoder.check_context("cpc.context", "causal", instead="chunked")
    fields["dtype"] = heads.dtype_of(config)
    return Cpc(encoder=encoder, sample_rate=config.data.sample_rate, **fields)


def info_nce(
    queries: Float[Array, "k b q p"],
    truth: Float[Array, "k b q p"],
    pairs: Bool[Array, "k b q"],
    negatives: Float[Array, "b n p"],
    is_negative: Bool[Array, "k b q n"],
    *,
    temperature: float | int,
) -> tuple[Float[Array, "k b q"], Bool[Array, "k b q"], Bool[Array, "k b q"]]:
    """-log( exp(s+) / (exp(s+) + sum over negatives of exp(s)) ), s = cosine / temperature.

    queries      [K, B, Q, P]  predictions, K steps from each of Q times
    truth        [K, B, Q, P]  what they should be
    pairs        [K, B, Q]     True = this prediction and its truth exist
    negatives    [B, N, P]     targets of the same utterance, shared by all its predictions
    is_negative  [K, B, Q, N]  True = real, and not the truth of this prediction

    Every vector must be finite, masked ones too. Returns, each [K, B, Q]: nats (0 where not
    counted), whether the truth scores above every negative, and what is counted: pairs that have
    at least one negative. float32.
    """
    queries, truth, negatives = (quantizer.unit(x, EPS) for x in (queries, truth, negatives))
    highest = jax.lax.Precision.HIGHEST
    positive = jnp.sum(queries * truth, axis=-1) / temperature
    scores = jnp.einsum("kbqp,bnp->kbqn", queries, negatives, precision=highest) / temperature
    scores = jnp.where(is_negative, scores, -jnp.inf)
    best = jnp.max(scores, axis=-1)
    peak = jax.lax.stop_gradient(jnp.maximum(positive, best))
    mass = jnp.exp(positive - peak) + jnp.sum(jnp.exp(scores - peak[..., None]), axis=-1)
    counted = pairs & jnp.any(is_negative, axis=-1)
    nats = jnp.where(counted, peak + jnp.log(mass) - positive, 0.0)
    return nats, counted & (positive > best), counted


def draw_negatives(
    keys: RowKeys, candidates: Candidates, count: int
) -> tuple[Float[Array, "b n p"], Bool[Array, "k b q n"]]:
    """`count` distinct valid targets per utterance, uniformly (0: all of them); N = min(count, M).

    Returns the targets and a mask, False at each query's own truth and where an utterance has fewer
    targets. A draw is a function of the key and of the valid targets, independent of padding.
    """
    size = candidates.valid.shape[1]
    drawn, real, position = candidates.targets, candidates.valid, jnp.arange(size)[None, :]
    own = candidates.truth_of(position)
    if count > 0:
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (size,), jnp.float32))(keys)
        rank, position = jax.lax.top_k(jnp.where(candidates.valid, uniform, -1.0), min(count, size))
        real = rank >= 0
        drawn = jnp.take_along_axis(candidates.targets, position[..., None], axis=1)
    is_negative = real[None, :, None, :] & (own[..., None] != position[None, :, None, :])
    return drawn, is_negative
