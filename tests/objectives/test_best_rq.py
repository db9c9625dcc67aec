"""BEST-RQ against a loop over masked frames, and the four mistakes that are easily made."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.bilevel.rng import row_keys
from bljust_jax.bilevel.types import Extras
from bljust_jax.common.errors import UserError
from bljust_jax.objectives import best_rq
from bljust_jax.ops import quantizer
from bljust_jax.ops.masking import start_spans
from tests.helpers import batches
from tests.helpers.batches import ToyEncoder
from tests.helpers.nearest_codes import brute_force

BANDS, STACK, DIM, CODES, BOOKS = 3, 2, 5, 7, 2
KEY = jax.random.key(0)
SIZE = best_rq.QuantizerSize(BANDS * STACK, CODES, 4, BOOKS)
FROZEN = quantizer.init_random_projection(jax.random.key(1), BANDS * STACK, CODES, 4, BOOKS)
SPANS = {"stack": STACK, "probability": 0.25, "span": 3, "noise_std": 0.1}


def features(audio, lengths, *, keys, train, stats=None):
    """Frames of three samples."""
    assert keys is None
    assert stats is None
    x = audio.astype(jnp.float32)[:, : audio.shape[1] // BANDS * BANDS]
    x, lengths = x.reshape(len(audio), -1, BANDS), lengths // BANDS
    return jnp.where((jnp.arange(x.shape[1])[None] < lengths[:, None])[..., None], x, 0), lengths, 0


def encode(params, x, lengths, *, stats, context, input_mask, train, rng):
    """A linear map of `STACK` frames at a time plus the utterance's mean of them."""
    assert (context, input_mask, train) == ("full", None, True)
    pad = x.shape[1] % STACK
    x = jnp.pad(x, ((0, 0), (0, pad), (0, 0))).reshape(len(x), -1, STACK * BANDS)
    h = jnp.tanh(x @ params["encoder"])
    lengths = -(-lengths // STACK)
    valid = jnp.arange(h.shape[1])[None, :] < lengths[:, None]
    h = jnp.where(valid[..., None], h, 0)
    h = h + jnp.sum(h, axis=1, keepdims=True) / jnp.maximum(lengths, 1)[:, None, None]
    return jnp.where(valid[..., None], h, 0), lengths, {"latents": h}, {}


def head(params, h):
    return (h @ params["best_rq_head"]).reshape(*h.shape[:2], BOOKS, CODES)


class BestRq(best_rq.BestRq):
    def logits(self, params, h):
        return head(params, h)


def make(features=features, encode=encode, entries=quantizer.ENTRIES, **spans):
    toy, masking = ToyEncoder(features, encode), best_rq.Masking(**SPANS | spans)
    return BestRq(encoder=toy, masking=masking, size=SIZE, entries=entries)


def extras(frozen=FROZEN, scale=1.0):
    frozen = {"best_rq": frozen}
    return Extras(step=0, frozen=frozen, stats={}, ema={}, scale={"best_rq": jnp.float32(scale)})


def parameters():
    rng = np.random.default_rng(0)
    shapes = {"encoder": (BANDS * STACK, DIM), "best_rq_head": (DIM, BOOKS * CODES)}
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}


make_batch = functools.partial(
    batches.unlabelled, lengths=(150, 93, 31, 8, 0), samples=150, limit=4
)


@functools.partial(jax.jit, static_argnums=0)
def report(objective, params, extras, batch):
    """((loss sum, weight), metrics), gradient of the sum."""

    def loss(params):
        losses, aux = objective.apply(params, extras, batch, KEY)
        return losses["best_rq"][0], (losses["best_rq"], aux.metrics)

    gradient, found = jax.grad(loss, has_aux=True)(params)
    return found, gradient


PLAIN = make()


def run(batch, objective=PLAIN, given=None):
    return report(objective, parameters(), extras() if given is None else given, batch)


@jax.jit
def masked_log_probabilities(params, *one):
    """(log-probabilities of the codes, mask) of an utterance alone."""
    masked, mask = best_rq.mask_input(*one, **SPANS)
    how = {"stats": {}, "context": "full", "input_mask": None, "train": True, "rng": None}
    h, *_ = encode(params, masked, one[1], **how)
    return jax.nn.log_softmax(head(params, h), axis=-1)[0], mask[0]


def by_loop(batch):
    """Nats, hits, masked frames, from masks and labels made one utterance at a time."""
    params, data = parameters(), batch["unlabelled"]
    keys = row_keys(jax.random.split(KEY)[0], data["ids"])
    nats, hits, used = 0.0, 0.0, []
    for b, samples in enumerate(np.asarray(data["audio_lengths"])):
        length = samples // BANDS
        if not length:
            continue
        x = np.asarray(data["audio"][b, : length * BANDS], np.float64).reshape(length, BANDS)
        clean = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        clean = np.pad(clean, ((0, length % STACK), (0, 0))).reshape(-1, STACK * BANDS)
        labels = brute_force(FROZEN, clean[None])[0]
        one = jnp.asarray(x[None], jnp.float32), jnp.array([length], jnp.int32), keys[b][None]
        log_p, mask = map(np.asarray, masked_log_probabilities(params, *one))
        for t in np.flatnonzero(mask):
            for c in range(BOOKS):
                nats -= log_p[t, c, labels[t, c]] / BOOKS
                hits += (log_p[t, c].argmax() == labels[t, c]) / BOOKS
            used.append(labels[t])
    return nats, hits, np.array(used)


def test_equals_the_loop():
    batch = make_batch()
    ((total, weight), metrics), _ = run(batch)
    nats, hits, used = by_loop(batch)
    assert len(used) > 20
    assert weight == len(used)
    # float32 sums of about 30 terms
    assert float(total) == pytest.approx(nats, rel=1e-5)
    assert metrics["best_rq/accuracy"][0] == pytest.approx(hits)
    frames = sum(
        -(-(n // BANDS) // STACK) for n in np.asarray(batch["unlabelled"]["audio_lengths"])
    )
    assert metrics["best_rq/masked_share"] == (len(used), frames)
    unused = np.mean([np.mean(np.bincount(used[:, c], minlength=CODES) == 0) for c in range(BOOKS)])
    assert metrics["codebook/anchor/unused"][0] == pytest.approx(unused)


def test_chunks_give_the_same():
    batch = make_batch()
    found, gradient = run(batch)
    chunked, other = run(batch, make(entries=5 * BOOKS * CODES * 3))
    # the same sums in another order
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, (found, gradient), (chunked, other))


# The four mistakes


def test_labels_are_normalised_over_time_and_not_over_bands():
    """A louder band, or one with an offset, changes no label; padding does not enter the mean."""
    rng = np.random.default_rng(4)
    x = jnp.asarray(rng.normal(size=(2, 12, BANDS)), jnp.float32)
    lengths = jnp.array([12, 7])
    labels = best_rq.anchor_labels(FROZEN, x, lengths, STACK)
    scaled = x * jnp.array([1.0, 20.0, 0.1])[None, None] + jnp.array([0.0, 3.0, -2.0])[None, None]
    np.testing.assert_array_equal(best_rq.anchor_labels(FROZEN, scaled, lengths, STACK), labels)
    garbage = jnp.where((jnp.arange(12)[None] < lengths[:, None])[..., None], x, 1e4)
    padded = jnp.pad(garbage, ((0, 0), (0, 5), (0, 0)), constant_values=jnp.nan)
    again = best_rq.anchor_labels(FROZEN, padded, lengths, STACK)
    np.testing.assert_array_equal(again[0, :6], labels[0])
    np.testing.assert_array_equal(again[1, :4], labels[1, :4])
    # over the bands of a frame, the offset between bands would decide
    wrong = (scaled - scaled.mean(-1, keepdims=True)) / scaled.std(-1, keepdims=True)
    assert np.any(brute_force(FROZEN, wrong.reshape(2, 6, -1))[0] != np.asarray(labels[0]))


def test_both_sides_of_the_comparison_have_length_one():
    """Codes of other lengths change no label: the direction decides alone."""
    lengths = jnp.exp(2 * jax.random.normal(KEY, (BOOKS, CODES, 1)))
    batch, longer = make_batch(), {**FROZEN, "codebook": FROZEN["codebook"] * lengths}
    one, other = run(batch)[0], run(batch, given=extras(longer))[0]
    # labels are the same; lengths of 1 differ from 1 by rounding
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other)


def test_the_mask_covers_all_codebooks_of_a_frame_and_no_other_frame():
    """With logits [B, T, C, V] and a mask [B, T], unmasked frames have no part, in any codebook."""
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(2, 4, 3, CODES)).astype(np.float32)
    labels = rng.integers(0, CODES, (2, 4, 3)).astype(np.int32)
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0]], bool)
    given = tuple(map(jnp.asarray, (logits, labels, mask)))
    (nats, hits), back = jax.vjp(lambda z: best_rq.score_labels(z, *given[1:]), given[0])
    log_p = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    expected = [-log_p[b, t, c, labels[b, t, c]] for b, t in np.argwhere(mask) for c in range(3)]
    assert float(nats) == pytest.approx(np.sum(expected) / 3, rel=1e-5)
    assert float(hits) == pytest.approx(np.sum((logits.argmax(-1) == labels).mean(-1)[mask]))
    (gradient,) = back((jnp.ones_like(nats), jnp.zeros_like(hits)))
    touched = np.any(np.asarray(gradient) != 0, axis=-1)
    np.testing.assert_array_equal(touched, np.broadcast_to(mask[..., None], touched.shape))


@pytest.mark.slow
def test_labels_are_an_input_of_nothing():
    """The input of the encoder does not depend on the labels: clean features or noise."""
    inputs = []

    def recording(params, x, lengths, **how):
        inputs.append(x)
        return encode(params, x, lengths, **how)

    batch, objective = make_batch(), make(encode=recording)
    others = jax.tree.map(lambda a: a[:, ::-1], FROZEN)
    losses = [
        objective.apply(parameters(), extras(frozen), batch, KEY)[0]["best_rq"][0]
        for frozen in (FROZEN, others)
    ]
    np.testing.assert_array_equal(*inputs)
    assert losses[0] != losses[1]
    data = batch["unlabelled"]
    clean, lengths, _ = features(data["audio"], data["audio_lengths"], keys=None, train=True)
    changed = np.any(np.asarray(inputs[0] != clean), axis=-1)
    keys = row_keys(jax.random.split(KEY)[0], data["ids"])
    mask = start_spans(keys, -(-lengths // STACK), 25, probability=0.25, span=3)
    inside = np.arange(50)[None] < np.asarray(lengths)[:, None]
    np.testing.assert_array_equal(changed, np.repeat(mask, STACK, axis=1) & inside)


# Limits


def test_noise_has_its_deviation():
    x = jnp.zeros((64, 40, BANDS))
    lengths, keys = jnp.full(64, 40), jax.random.split(KEY, 64)
    masked, mask = best_rq.mask_input(x, lengths, keys, **SPANS)
    noise = np.asarray(masked)[np.repeat(mask, STACK, axis=1)]
    # 8000 draws: standard errors of 1 % of the deviation, in the mean and in the deviation
    assert abs(noise.mean()) < 0.005
    assert noise.std() == pytest.approx(0.1, rel=0.05)


def test_padded_frames_of_a_masked_label_keep_their_values():
    """The last label of an odd number of frames reaches one frame beyond."""
    x, lengths = jnp.ones((3, 6, BANDS)), jnp.array([5, 6, 0])
    every = SPANS | {"probability": 1.0}
    masked, mask = best_rq.mask_input(x, lengths, jax.random.split(KEY, 3), **every)
    np.testing.assert_array_equal(np.sum(mask, axis=1), [3, 3, 0])
    changed = np.any(np.asarray(masked) != 1, axis=-1)
    np.testing.assert_array_equal(changed, np.arange(6)[None] < np.asarray(lengths)[:, None])


def test_nothing_masked_gives_nothing():
    ((total, weight), metrics), gradient = run(make_batch(lengths=(0, 0, 0, 0, 0)))
    assert (total, weight) == (0, 0)
    assert metrics["codebook/anchor/share"] == (0, 0)
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(gradient))


def test_gradient_into_the_encoder_is_scaled():
    batch = make_batch()
    one, half, none = (run(batch, given=extras(scale=s))[1] for s in (1.0, 0.5, 0.0))
    np.testing.assert_allclose(half["encoder"], 0.5 * one["encoder"], rtol=1e-6)
    assert np.all(np.asarray(none["encoder"]) == 0)
    np.testing.assert_array_equal(none["best_rq_head"], one["best_rq_head"])


def test_mistakes_of_the_config_are_told():
    wrong = quantizer.init_random_projection(KEY, BANDS * 3, CODES, 4, BOOKS)
    with pytest.raises(UserError, match=r"config\.best_rq\.stack=3 makes 17 labels .* 25 frames"):
        make(stack=3).apply(parameters(), extras(wrong), make_batch(), KEY)

    def waveforms(audio, lengths, **how):
        return audio.astype(jnp.float32), lengths, None

    with pytest.raises(UserError, match="must read features"):
        make(features=waveforms).apply(parameters(), extras(), make_batch(), KEY)
