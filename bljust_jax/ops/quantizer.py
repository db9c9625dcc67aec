"""Vector quantisers: fixed random projection with nearest code, and Gumbel-softmax selection.

Code vectors and scores are float32 (or wider) at highest precision, since rounding can change the
nearest code. Random draws are a function of the utterance's key and the frame index, independent of
padding and of the rest of the batch.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bljust_jax.common.shapes import Mask, Rng, RowKeys, Scalar

HIGHEST = jax.lax.Precision.HIGHEST
EPS = 1e-12
# Entries of one array of scores that may be in memory at once: 64 MiB of float32.
ENTRIES = 2**24

CodeScores = Float[Array, "b t c v"]  # of the V codes of C codebooks
Codes = Int[Array, "b t c"]


def init_random_projection(
    rng: Rng, dim: int, codes: int, code_dim: int, codebooks: int = 1
) -> dict[str, Float[Array, "..."]]:
    """{"projection": `[C, D, d]`, "codebook": `[C, V, d]`}: arrays that are never trained.

    Projections are Xavier uniform, codes standard normal and then of length 1.
    Source: Chiu et al., BEST-RQ, ICML 2022, section 3.1.
    """
    project, codebook = jax.random.split(rng)
    bound = (6 / (dim + code_dim)) ** 0.5
    return {
        "projection": jax.random.uniform(project, (codebooks, dim, code_dim), minval=-1) * bound,
        "codebook": unit(jax.random.normal(codebook, (codebooks, codes, code_dim))),
    }


def unit(x: Float[Array, "... d"], eps: float = EPS) -> Float[Array, "... d"]:
    """x / sqrt(|x|^2 + eps) over the last axis, in float32 or wider; at x = 0 it is 0 and its
    gradient finite."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + eps)


def project(projection: Float[Array, "c e d"], x: Float[Array, "b t e"]) -> Float[Array, "b t c d"]:
    """x through each projection `[C, E, d]`, to vectors of length 1."""
    return unit(jnp.einsum("bte,ced->btcd", x, projection, precision=HIGHEST))


def similarity(vectors: Float[Array, "b t c d"], codebook: Float[Array, "c v d"]) -> CodeScores:
    """Cosine of each vector (of length 1) with each code. The squared distance is 2 - 2 cosine, so
    the nearest code has the largest cosine."""
    return jnp.einsum("btcd,cvd->btcv", vectors, unit(codebook), precision=HIGHEST)


def nearest(
    frozen: dict[str, Float[Array, "..."]], x: Float[Array, "b t e"], entries: int = ENTRIES
) -> Codes:
    """argmin over v of | unit(x A_c) - unit(c_v) |: one code per frame and codebook.

    frozen: {"projection": A `[C, E, d]`, "codebook": `[C, V, d]`}. No gradient. Scores are computed
    for as many frames at a time as `entries` allows.
    """
    vectors = jax.lax.stop_gradient(project(frozen["projection"], x))
    codebook = jax.lax.stop_gradient(frozen["codebook"])

    def codes(part):
        return jnp.argmax(similarity(part, codebook), axis=-1).astype(jnp.int32)

    size = _chunk(x.shape[0], x.shape[1], codebook.shape[0] * codebook.shape[1], entries)
    if size >= x.shape[1]:
        return codes(vectors)
    chunks = jax.lax.map(codes, _split(vectors, size))
    return jnp.moveaxis(chunks, 0, 1).reshape(x.shape[0], -1, codebook.shape[0])[:, : x.shape[1]]


def gumbel(
    keys: RowKeys, positions: Int[Array, "b t"], shape: tuple[int, ...]
) -> Float[Array, "b t ..."]:
    """Standard Gumbel noise -log(-log u), `[B, T, *shape]`, from (utterance key, frame index)."""

    def frame(key, t):
        return jax.random.gumbel(jax.random.fold_in(key, t), shape, jnp.float32)

    return jax.vmap(jax.vmap(frame, (None, 0)))(keys, positions)


def select(
    scores: Float[Array, "... v"], temperature: Any, *, hard: bool = False
) -> Float[Array, "... v"]:
    """softmax(scores / temperature) over the codes; scores may include noise.

    hard: one-hot of the largest score, with the gradient of the softmax (straight-through).
    Source: Jang et al., Categorical reparameterization with Gumbel-softmax, ICLR 2017.
    """
    soft = jax.nn.softmax(scores / temperature, axis=-1)
    if not hard:
        return soft
    best = jax.nn.one_hot(jnp.argmax(scores, axis=-1), scores.shape[-1], dtype=soft.dtype)
    return best + (soft - jax.lax.stop_gradient(soft))  # the difference is exactly 0


def annealed(step: Any, start: float | int, end: float | int, decay: float | int) -> Scalar:
    """max(end, start * decay^step), the decreasing temperature of `select`."""
    return jnp.maximum(end, start * jnp.exp(math.log(decay) * jnp.asarray(step, jnp.float32)))


def product_codes(
    weights: Float[Array, "b t g v"], codevectors: Float[Array, "g v d"]
) -> Float[Array, "b t e"]:
    """sum_v weights[g, v] codevectors[g, v], groups concatenated: E = G d."""
    vectors = jnp.einsum("btgv,gvd->btgd", weights, codevectors, precision=HIGHEST)
    return vectors.reshape(*weights.shape[:2], -1)


def perplexity(probabilities: Float[Array, "... v"]) -> Float[Array, "..."]:
    """exp of the entropy over the last axis: 1 for a one-hot distribution, V for a uniform one. The
    gradient at a probability of 0 is finite."""
    safe = jnp.maximum(probabilities, 1e-30)
    return jnp.exp(-jnp.sum(probabilities * jnp.log(safe), axis=-1))


def usage_metrics(name: str, counts: Float[Array, "c v"]) -> dict[str, tuple[Any, Any]]:
    """Codebook usage metrics of a batch, mean over codebooks; they reveal a collapse.

    counts: uses of each of V entries of each codebook, by the same number of frames
    `codebook/<name>/perplexity`  exp entropy of the used entries, 1 .. min(V, frames)
    `codebook/<name>/share`       perplexity / min(V, frames), its largest possible value
    `codebook/<name>/unused`      share of the V entries that no frame used
    `codebook/<name>/entropy`     nats
    Each with weight 1, or 0 without frames.
    """
    frames = jnp.sum(counts, axis=-1, keepdims=True)
    each = perplexity(counts / jnp.maximum(frames, 1))
    figures = {
        "perplexity": each,
        "share": each / jnp.clip(frames[:, 0], 1, counts.shape[-1]),
        "unused": jnp.mean(counts == 0, axis=-1, dtype=jnp.float32),
        "entropy": jnp.log(each),
    }
    some = jnp.any(frames > 0).astype(jnp.float32)
    return {f"codebook/{name}/{key}": (some * jnp.mean(x), some) for key, x in figures.items()}


def count_codes(codes: Codes, counted: Mask, size: int) -> Float[Array, "c v"]:
    """Occurrences of each of `size` codes in the frames where `counted` is True."""
    books = codes.shape[-1]
    place = codes + size * jnp.arange(books)[None, None, :]
    ones = jnp.broadcast_to(counted[..., None], codes.shape).astype(jnp.float32)
    counts = jnp.zeros(books * size, jnp.float32).at[place.ravel()].add(ones.ravel())
    return counts.reshape(-1, size)


def hard_nats(logits: CodeScores, labels: Codes) -> Float[Array, "b t c"]:
    """-log softmax(logits)[label]."""
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def soft_nats(logits: CodeScores, labels: CodeScores) -> Float[Array, "b t c"]:
    """-sum_v labels_v log softmax(logits)_v, labels of sum 1; differentiable in both."""
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(labels * logits, axis=-1)


def sum_over_frames(
    fn: Callable[..., Any], wanted: Mask, *arrays: Array, width: int, entries: int = ENTRIES
) -> Any:
    """Sums of `fn` over the wanted frames, with the scores of few frames in memory at a time.

    fn(positions [B, F], wanted [B, F], *parts [B, F, ...]) -> tree of sums over the given frames;
        unwanted frames must add 0 to values and gradients; `positions` are frame indices in the
        utterance, for noise
    arrays: each [B, T, ...]
    width: entries of fn's largest array per frame (codebooks x codes)
    entries: number of such entries allowed in memory

    If [B, T, width] fits into `entries`, fn is called once on all frames. Otherwise the wanted
    frames of each row are moved to its front, fn runs on F frames of each row at a time and is
    recomputed in the backward pass, and chunks without a wanted frame are skipped: the cost depends
    on the largest number of wanted frames per row, not on T. Rows never mix, so a batch sharded
    over devices is not moved.
    """
    batch, frames = wanted.shape
    positions = jnp.broadcast_to(jnp.arange(frames)[None, :], wanted.shape)
    size = _chunk(batch, frames, width, entries)
    if size >= frames:
        return fn(positions, wanted, *arrays)
    order = jnp.argsort(~wanted, axis=1, stable=True)

    def arranged(x):
        index = order.reshape(*order.shape, *(1,) * (x.ndim - 2))
        return _split(jnp.take_along_axis(x, index, axis=1), size)

    parts = tuple(arranged(x) for x in (positions, wanted, *arrays))
    shapes = jax.eval_shape(fn, *(x[0] for x in parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    @jax.checkpoint
    def add(total, part):
        added = jax.lax.cond(jnp.any(part[1]), fn, lambda *_: zeros, *part)
        return jax.tree.map(jnp.add, total, added), None

    return jax.lax.scan(add, zeros, parts)[0]


def _chunk(batch: int, frames: int, width: int, entries: int) -> int:
    """Frames per row that fit into `entries`, at least one, for nearly equal chunks."""
    most = max(1, entries // (batch * width))
    return -(-frames // -(-frames // most)) if frames else most


def _split(x: Array, size: int) -> Array:
    """[B, T, ...] -> [T / size, B, size, ...], padded with zeros after the last frame."""
    batch, frames, *rest = x.shape
    chunks = -(-frames // size)
    x = jnp.pad(x, ((0, 0), (0, chunks * size - frames), *((0, 0) for _ in rest)))
    return jnp.moveaxis(x.reshape(batch, chunks, size, *rest), 1, 0)
