"""The self-supervised objective: contrastive predictive coding on audio without labels.

Sources: van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding"
(2018), equations 3 and 4; as the lower level of BL-JUST, arXiv 2401.06980.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.rng import row_keys
from bljust_jax.bilevel.types import Aux, Objective, SelfSupervised
from bljust_jax.objectives import shared_forward

EPS = 1e-8
CONTEXTS = ("causal", "chunked")


def bind(config: Any, encoder: Any, encode: Callable, linear: Any) -> SelfSupervised:
    """CPC as `config.cpc` sets it. Head: {"project", "predict"}, one predictor a step."""
    c, rate = config.cpc, config.data.sample_rate
    if c.context == "causal":
        encoder.check_context("cpc.context", c.context, instead="chunked")

    def init(rng):
        project, predict = jax.random.split(rng)
        return {
            "project": linear.init(project, encoder.latent_dim, c.width),
            "predict": linear.init(predict, encoder.dim, c.width, steps=c.steps),
        }, {}

    def project(params, z):
        return linear.apply(params["cpc_head"]["project"], z)

    def predict(params, h):
        return jnp.moveaxis(linear.apply(params["cpc_head"]["predict"], h), 2, 0)

    def cost(seconds):
        if c.context == "causal":
            return 3 * encoder.flops(round(seconds * rate))
        past, future, slide = c.chunk
        windows = max(0, int((seconds - past - future) // slide) + 1)
        return 3 * windows * sum(encoder.flops(round(s * rate)) for s in (past, future))

    names = ("steps", "first_step", "temperature", "negatives", "target_gradient")
    heads = {"project": project, "predict": predict} | {name: c[name] for name in names}
    objective = make(
        stream="unlabelled",
        features=encoder.features,
        encode=encode,
        context=c.context,
        chunk=tuple(c.chunk),
        sample_rate=rate,
        **heads,
    )
    return SelfSupervised(objective, init, cost, reader(**heads))


def make(
    *,
    stream: str,
    features: Callable,
    encode: Callable,
    project: Callable,
    predict: Callable,
    steps: int = 4,
    first_step: int = 2,
    temperature: float | int = 0.1,
    negatives: int = 0,
    context: str = "causal",
    chunk: tuple[float | int, float | int, float | int] = (2.0, 1.0, 1.0),
    target_gradient: bool = True,
    sample_rate: int = 16000,
    name: str = "cpc",
) -> Objective:
    """InfoNCE of predicting an utterance's own future latents among its other latents, in nats.

    features, encode: as in `shared.run`: features are normalised by stored statistics, as an
        utterance's own would tell of its future
    project(params, latents [B, T, E]) -> targets [B, T, P]
    predict(params, output [B, T, D]) -> predictions [steps, B, T, P], one linear map a step

    context="causal": one pass with context "causal"; the output at frame t predicts the latents of
    frames t + first_step .. t + first_step + steps - 1. first_step = 2 where the front end's
    windows of neighbouring latents overlap.
    context="chunked", the published way: for windows that start every chunk[2] seconds, the first
    chunk[0] seconds are encoded alone and their last output predicts the first `steps` latents of
    the chunk[1] seconds that follow, also encoded alone. `first_step` is not used.

    Negatives are the other valid candidates of the same utterance, or with negatives > 0 a random
    subset of that many, drawn once an utterance from its own key. `target_gradient=False` keeps
    the gradient of the targets out of the encoder; their projection still learns.

    The loss is a sum over valid (time, step) pairs and its weight is their number. Metrics:
    `<name>/accuracy`, the share of pairs whose positive beats every negative, and `<name>/short`,
    utterances a step that are too short for one pair and are left out.
    Raises ValueError for settings that cannot work together.
    """
    if context not in CONTEXTS:
        raise ValueError(f"context {context!r}: expected one of {CONTEXTS}")
    if steps < 1 or first_step < 1 or negatives < 0 or temperature <= 0:
        raise ValueError("CPC needs steps >= 1, first_step >= 1, negatives >= 0, temperature > 0")
    if context == "chunked" and not 0 < chunk[1] <= chunk[2]:
        raise ValueError(
            f"chunk {chunk}: a slide shorter than the future window would make an utterance's "
            "negatives equal to its positives"
        )
    forward = functools.partial(shared_forward.run, features, encode)
    heads = _Heads(project, predict, target_gradient, name)
    contrast = functools.partial(_contrast, negatives, temperature, name)
    read = reader(
        project=project,
        predict=predict,
        steps=steps,
        first_step=first_step,
        temperature=temperature,
        negatives=negatives,
        target_gradient=target_gradient,
        name=name,
    )
    windows = tuple(round(seconds * sample_rate) for seconds in chunk)

    def causal(params, extras, batch, rng):
        data = batch[stream]
        draw_rng, encoder_rng = jax.random.split(rng)
        encoded = forward(
            *(params, extras, data["audio"], data["audio_lengths"], encoder_rng, "causal")
        )
        return read(params, extras, data, encoded, draw_rng)

    def chunked(params, extras, batch, rng):
        data = batch[stream]
        draw_rng, encoder_rng = jax.random.split(rng)
        view = _chunked(
            *(forward, heads, params, extras, data["audio"], data["audio_lengths"], encoder_rng),
            chunk=windows,
            steps=steps,
        )
        return contrast(view, data, draw_rng)

    apply = {"causal": causal, "chunked": chunked}[context]
    return Objective(losses=(name,), streams=(stream,), apply=apply)


def reader(
    *,
    project: Callable,
    predict: Callable,
    steps: int,
    first_step: int,
    temperature: float | int,
    negatives: int,
    target_gradient: bool,
    name: str = "cpc",
) -> Callable:
    """The loss of `make` with context="causal" on a causal encoder's output, for `shared.make`."""
    heads = _Heads(project, predict, target_gradient, name)
    ahead = range(first_step, first_step + steps)

    def read(params, extras, data, encoded, rng):
        view = _causal(heads, params, extras, encoded, ahead)
        return _contrast(negatives, temperature, name, view, data, rng)

    return read


def _contrast(negatives, temperature, name, view, data, rng):
    """InfoNCE over a view of the batch, with its metrics; nothing counts where the view is None."""
    if view is None:
        nats = hits = counted = jnp.zeros((1, len(data["ids"]), 1))
    else:
        keys = row_keys(rng, data["ids"])
        nats, hits, counted = info_nce(
            *(view.queries, view.pick(view.pool), view.pick(view.valid)),
            *draw_negatives(keys, view, negatives),
            temperature=temperature,
        )
    pairs = jnp.sum(counted, dtype=jnp.float32)
    short = (data["audio_lengths"] > 0) & ~jnp.any(counted, axis=(0, 2))
    metrics = {
        f"{name}/accuracy": (jnp.sum(hits, dtype=jnp.float32), pairs),
        f"{name}/short": (jnp.sum(short, dtype=jnp.float32), jnp.float32(1)),
    }
    return {name: (jnp.sum(nats), pairs)}, Aux(metrics, {})


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
    queries, truth, negatives = _unit(queries), _unit(truth), _unit(negatives)
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


class View(NamedTuple):
    """What one look at a batch predicts, and from which targets."""

    queries: Float[Array, "k b q p"]  # K steps predicted from each of Q times
    pool: Float[Array, "b m p"]  # all targets of each utterance
    valid: Bool[Array, "b m"]  # the real ones
    pick: Callable[[Array], Array]  # [B, M, ...] of the pool -> [K, B, Q, ...] of the truths


def draw_negatives(
    keys: Key[Array, "b"], view: View, count: int
) -> tuple[Float[Array, "b n p"], Bool[Array, "k b q n"]]:
    """`count` distinct valid targets an utterance, uniformly (0: all of them); N = min(count, M).

    The mask leaves out each prediction's own truth, and the rest where an utterance has fewer. A
    draw is a function of the key and of the valid targets, not of the padding behind them.
    """
    size = view.valid.shape[1]
    drawn, real, position = view.pool, view.valid, jnp.arange(size)[None, :]
    own = view.pick(position)
    if count > 0:
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (size,), jnp.float32))(keys)
        rank, position = jax.lax.top_k(jnp.where(view.valid, uniform, -1.0), min(count, size))
        real, drawn = rank >= 0, jnp.take_along_axis(view.pool, position[..., None], axis=1)
    is_negative = real[None, :, None, :] & (own[..., None] != position[None, :, None, :])
    return drawn, is_negative


class _Heads(NamedTuple):
    """The functions that the recipe bound, and how gradients pass through them."""

    project: Callable
    predict: Callable
    target_gradient: bool
    name: str

    def hear(self, extras, encoded):
        """Encoder output and latents, zero where padded, and which of their frames are valid."""
        valid = jnp.arange(encoded.output.shape[1])[None, :] < encoded.lengths[:, None]
        output, latents = (
            scale_gradient(jnp.where(valid[..., None], h, 0), extras.scale[self.name])
            for h in (encoded.output, encoded.latents)
        )
        return output, latents, valid

    def targets(self, params, latents):
        if not self.target_gradient:
            latents = jax.lax.stop_gradient(latents)
        return self.project(params, latents)


def _causal(heads: _Heads, params, extras, encoded, ahead) -> View:
    """Frame t of one causal pass predicts the latents of frames t + k for k in `ahead`."""
    output, latents, valid = heads.hear(extras, encoded)
    frames = valid.shape[1]

    def pick(x):
        shifted = (x[:, min(k, frames) :] for k in ahead)
        rest = [(0, 0)] * (x.ndim - 2)
        return jnp.stack([jnp.pad(s, ((0, 0), (0, frames - s.shape[1]), *rest)) for s in shifted])

    return View(heads.predict(params, output), heads.targets(params, latents), valid, pick)


def _chunked(
    forward, heads: _Heads, params, extras, audio, audio_lengths, rng, *, chunk, steps
) -> View | None:
    """The last output of each past window predicts the first latents of the window after it.

    Windows are cut from the padded length of the batch; one that passes the end of its utterance
    is masked. None where not one window fits the batch.
    """
    past, future, slide = chunk
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
    encoded = forward(params, extras, *cut(0, past), past_rng, "full")
    output, _, heard = heads.hear(extras, encoded)
    last = jnp.maximum(jnp.sum(heard, axis=1) - 1, 0)
    output = jnp.take_along_axis(output, last[:, None, None], axis=1)
    encoded = forward(params, extras, *cut(past, future), future_rng, "full")
    _, latents, valid = heads.hear(extras, encoded)
    frames = valid.shape[1]
    reach = min(steps, frames)

    def pick(x):
        apart = x.reshape(x.shape[0], windows, frames, *x.shape[2:])
        return jnp.moveaxis(apart[:, :, :reach], 2, 0)

    def utterances(x):
        return x.reshape(batch, windows * frames, *x.shape[2:])

    queries = heads.predict(params, output.reshape(batch, windows, -1))[:reach]
    targets = heads.targets(params, utterances(latents))
    return View(queries, targets, utterances(valid), pick)


def _unit(x):
    """x / |x| in float32; with a gradient at 0, where x / (|x| + eps) has none."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + EPS)
