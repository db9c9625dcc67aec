"""wav2vec 2.0's loss against a loop over masked frames, closed forms, and a collapsed codebook."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from bljust_jax.bilevel.types import Extras
from bljust_jax.common.errors import UserError
from bljust_jax.models import heads as linear
from bljust_jax.objectives import wav2vec2
from bljust_jax.ops import quantizer
from bljust_jax.ops.masking import wav2vec2_spans
from tests.helpers import batches
from tests.helpers.batches import ToyEncoder

HOP, DIM = 4, 6
KEY = jax.random.key(0)
RATE = 40


def features(audio, lengths, *, keys, train, stats=None):
    assert keys is None
    return audio.astype(jnp.float32) / 300, lengths, None


def encode(params, x, lengths, *, stats, context, input_mask, train, rng):
    """Linear frames of four samples; masked ones are replaced, and all see the utterance's mean."""
    assert (context, train) == ("full", True)
    own = params["encoder"]
    conv = x[:, : x.shape[1] // HOP * HOP].reshape(len(x), -1, HOP) @ own["conv"]
    lengths = lengths // HOP
    valid = (jnp.arange(conv.shape[1])[None, :] < lengths[:, None])[..., None]
    conv = jnp.where(valid, conv, jnp.nan)  # padding never matters
    h = jnp.where(input_mask.time[..., None], own["masked"][None, None], jnp.tanh(conv))
    mean = jnp.sum(jnp.where(valid, h, 0), 1, keepdims=True)
    h = h + mean / jnp.maximum(lengths, 1)[:, None, None]
    return jnp.where(valid, h, 0), lengths, {"latents": jnp.tanh(conv), "conv": conv}, {}


def toy_encoder(masks_input=True):
    return ToyEncoder(
        features,
        encode,
        dim=DIM,
        latent_dim=DIM,
        frames=lambda samples: samples // HOP,
        flops=lambda samples: 7.0 * samples,
        masks_input=masks_input,
    )


def make_config(**kw):
    own = {
        "mask_prob": 0.6, "mask_length": 3, "negatives": 5, "temperature": 0.1, "diversity": 0.1,
        "feature_penalty": 10.0, "groups": 2, "codes": 4, "code_dim": 6, "width": 5,
        "tau_start": 2.0, "tau_end": 0.5, "tau_decay": 0.9,
    }  # fmt: skip
    config = {"encoder": "toy", "data": {"sample_rate": RATE}, "wav2vec2": own | kw}
    return ConfigDict(config)


@functools.cache
def bound(**kw):
    return wav2vec2.build(make_config(**kw), toy_encoder())


@functools.cache
def parameters(**kw):
    rng = np.random.default_rng(0)
    heads, frozen = jax.jit(bound(**kw).init)(jax.random.key(2))
    assert frozen == {}
    conv, masked = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((HOP, DIM), (DIM,)))
    return {"encoder": {"conv": conv, "masked": masked}, **heads}


def extras(step=3, scale=1.0):
    return Extras(step, frozen={}, stats={}, ema={}, scale={"wav2vec2": jnp.float32(scale)})


make_batch = functools.partial(batches.unlabelled, lengths=(96, 70, 50, 8, 0, 0), samples=96)


@functools.partial(jax.jit, static_argnums=0)
def report(objective, params, extras, batch):
    """((loss sum, weight), metrics), gradient of the sum."""

    def loss(params):
        losses, aux = objective.apply(params, extras, batch, KEY)
        return losses["wav2vec2"][0], (losses["wav2vec2"], aux.metrics)

    gradient, found = jax.grad(loss, has_aux=True)(params)
    return found, gradient


def run(batch, params=None, scale=1.0, step=3, **kw):
    params = parameters(**kw) if params is None else params
    return report(bound(**kw), params, extras(step, scale), batch)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@jax.jit
def drawn_and_encoded(params, data):
    """(mask, negatives, samples' lengths, latents before the mask, output, scores, codes)."""
    mask_keys, noise_keys, negative_keys, _ = wav2vec2._keys(KEY, data["ids"])
    lengths = data["audio_lengths"] // HOP
    frames = data["audio"].shape[1] // HOP
    mask = wav2vec2_spans(mask_keys, lengths, frames, probability=0.6, span=3)
    negatives = wav2vec2.draw_negatives(negative_keys, mask, 5)
    x, samples, _ = features(data["audio"], data["audio_lengths"], keys=None, train=True)
    how = {"stats": {}, "context": "full", "train": True, "rng": None}
    output, _, hidden, _ = encode(params, x, samples, input_mask=wav2vec2.InputMask(mask), **how)
    head = params["wav2vec2_head"]
    scores = linear.apply(head["quantizer"]["project"], hidden["latents"]).reshape(-1, frames, 2, 4)
    positions = jnp.broadcast_to(jnp.arange(frames)[None], scores.shape[:2])
    codes = jnp.argmax(scores + quantizer.gumbel(noise_keys, positions, (2, 4)), -1)
    return mask, negatives, lengths, hidden["conv"], output, scores, codes


def by_loop(batch, temperature, tau):
    """(contrastive sum, masked frames, hits, rivals, diversity, penalty), frame by frame."""
    params, data = parameters(), batch["unlabelled"]
    found = drawn_and_encoded(params, data)
    mask, negatives, lengths, conv, output, scores, codes = map(np.asarray, found)
    head, frames = params["wav2vec2_head"], mask.shape[1]
    vectors = np.asarray(head["quantizer"]["codevectors"])
    targets = np.concatenate([vectors[g][codes[..., g]] for g in range(2)], axis=-1)
    targets = np.asarray(linear.apply(head["project_q"], jnp.asarray(targets)), np.float64)
    predictions = np.asarray(linear.apply(head["project_hid"], jnp.asarray(output)), np.float64)
    nats, count, hits, rivals = 0.0, 0, 0, 0
    for b, t in np.argwhere(mask):
        if mask[b].sum() < 2:
            continue
        own = cosine(predictions[b, t], targets[b, t]) / temperature
        others = [
            cosine(predictions[b, t], targets[b, j]) / temperature
            for j in negatives[b, t]
            if np.any(codes[b, j] != codes[b, t])
        ]
        nats += np.log(np.exp([own, *others]).sum()) - own
        count += 1
        rivals += bool(others)
        hits += bool(others) and own > max(others)
    probabilities = np.asarray(jax.nn.softmax(jnp.asarray(scores), axis=-1), np.float64)[mask]
    mean = probabilities.mean(0)
    diversity = 1 - np.exp(-(mean * np.log(mean)).sum(-1)).sum() / 8
    valid = np.arange(frames)[None] < lengths[:, None]
    penalty = np.mean(np.asarray(conv, np.float64)[valid] ** 2)
    return nats, count, hits, rivals, diversity, penalty


def test_equals_the_loop():
    batch = make_batch()
    ((total, weight), metrics), _ = run(batch)
    nats, count, hits, rivals, diversity, penalty = by_loop(batch, 0.1, 2.0 * 0.9**3)
    assert count > 15
    assert weight == count
    # float32 sums of some 30 terms
    assert float(metrics["wav2vec2/contrastive"][0]) == pytest.approx(nats, rel=1e-5)
    assert metrics["wav2vec2/accuracy"] == (hits, rivals)
    assert float(metrics["wav2vec2/diversity"][0]) == pytest.approx(diversity, rel=1e-5)
    assert float(metrics["wav2vec2/penalty"][0]) == pytest.approx(penalty, rel=1e-5)
    assert float(total) == pytest.approx(nats + count * (0.1 * diversity + 10 * penalty), rel=1e-5)
    assert (
        metrics["wav2vec2/short"][0] == 1
    )  # two frames: shorter than a span; the empty row is none
    assert float(metrics["wav2vec2/temperature"][0]) == pytest.approx(2 * 0.9**3)


def test_terms_are_normalised_a_masked_frame():
    """Utterances said twice have the same mean loss, however its terms are weighed."""
    batch = make_batch(lengths=(96, 70, 50, 0, 0, 0))
    twice = jax.tree.map(lambda a: jnp.concatenate([a[:3], a[:3]]), batch)
    ((one, n), _), gradient = run(batch)
    ((two, m), _), other = run(twice)
    assert m == 2 * n
    assert float(two / m) == pytest.approx(float(one / n), rel=1e-6)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3)
    jax.tree.map(lambda a, b: close(2 * a, b), gradient, other)


def test_nothing_masked_gives_nothing():
    ((total, weight), metrics), gradient = run(make_batch(lengths=(8, 8, 4, 1, 0, 0)))
    assert (total, weight) == (0, 0)
    # utterances shorter than a span
    assert metrics["wav2vec2/short"][0] == 4
    assert metrics["codebook/wav2vec2/share"] == (0, 0)
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(gradient))


def test_one_masked_frame_has_no_other_to_be_told_from():
    """Two frames of which one is masked: floor(1/2 * 2 + u) = 1 span of one frame."""
    batch = make_batch(lengths=(8, 8, 8, 8, 0, 0))
    ((total, weight), metrics), _ = run(batch, mask_prob=0.5, mask_length=1)
    assert (total, weight) == (0, 0)
    assert metrics["wav2vec2/short"][0] == 4


def test_gradient_into_the_encoder_is_scaled():
    batch = make_batch()
    one, half, none = (run(batch, scale=s)[1] for s in (1.0, 0.5, 0.0))
    for name in ("conv", "masked"):
        assert np.any(np.asarray(one["encoder"][name]) != 0)
        np.testing.assert_allclose(half["encoder"][name], 0.5 * one["encoder"][name], rtol=1e-5)
        assert np.all(np.asarray(none["encoder"][name]) == 0)
    jax.tree.map(np.testing.assert_array_equal, none["wav2vec2_head"], one["wav2vec2_head"])


def test_every_part_of_the_head_learns():
    _, gradient = run(make_batch())
    for leaf in jax.tree.leaves(gradient["wav2vec2_head"]):
        assert np.all(np.isfinite(leaf))
        assert np.any(np.asarray(leaf) != 0)


def test_a_collapsed_codebook_shows():
    """All frames have one code: the contrastive loss is 0 (no other vector), finite everywhere, and
    the metrics show why."""
    params = parameters()
    project = params["wav2vec2_head"]["quantizer"]["project"]
    project["kernel"] = jnp.zeros_like(project["kernel"])
    project["bias"] = jnp.array([99.0, 0, 0, 0, 0, 0, 99.0, 0])
    ((_, weight), metrics), gradient = run(make_batch(), params)
    assert metrics["wav2vec2/contrastive"] == (0, weight)
    assert metrics["wav2vec2/accuracy"] == (0, 0)
    assert float(metrics["wav2vec2/diversity"][0]) == pytest.approx(1 - 2 / 8)
    assert float(metrics["codebook/wav2vec2/perplexity"][0]) == pytest.approx(1)
    assert float(metrics["codebook/wav2vec2/share"][0]) == pytest.approx(1 / 4)
    assert float(metrics["codebook/wav2vec2/unused"][0]) == pytest.approx(3 / 4)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))


# Parts


def test_negatives_are_uniform_over_the_other_masked_frames():
    mask = jnp.array([[0, 1, 1, 0, 0, 1, 1, 0]] * 2048, bool)
    negatives = np.asarray(wav2vec2.draw_negatives(jax.random.split(KEY, 2048), mask, 6))
    places = [1, 2, 5, 6]
    for t in places:
        shares = np.bincount(negatives[:, t].ravel(), minlength=8) / negatives[:, t].size
        expected = [(j in places and j != t) / 3 for j in range(8)]
        # five standard errors of a frequency over 12288 draws
        np.testing.assert_allclose(shares, expected, atol=0.022)


def test_negatives_follow_the_utterance():
    mask = jnp.asarray(np.random.default_rng(0).random((4, 20)) < 0.4)
    keys = jax.random.split(KEY, 4)
    one = wav2vec2.draw_negatives(keys, mask, 9)
    longer = wav2vec2.draw_negatives(keys, jnp.pad(mask, ((0, 0), (0, 11))), 9)
    np.testing.assert_array_equal(longer[:, :20][mask], one[mask])
    order = jnp.array([2, 0])
    np.testing.assert_array_equal(wav2vec2.draw_negatives(keys[order], mask[order], 9), one[order])


def test_diversity_in_closed_form():
    mask = jnp.ones((2, 8), bool)
    assert float(wav2vec2.diversity_loss(jnp.zeros((2, 8, 2, 4)), mask)) == pytest.approx(
        0, abs=1e-6
    )
    one = 99 * jax.nn.one_hot(jnp.zeros((2, 8, 2), int), 4)
    assert float(wav2vec2.diversity_loss(one, mask)) == pytest.approx(0.75)
    # sure of each frame, and all codes used alike
    even = 99 * jax.nn.one_hot(jnp.arange(32).reshape(2, 8, 2) // 2 % 4, 4)
    assert float(wav2vec2.diversity_loss(even, mask)) == pytest.approx(0, abs=1e-6)
    half = mask.at[:, 4:].set(False)
    garbage = jnp.where(half[..., None, None], even, 99.0 * (jnp.arange(4) == 0)[None, None, None])
    assert float(wav2vec2.diversity_loss(garbage, half)) == pytest.approx(0, abs=1e-6)


def test_cost_and_mistakes_of_the_config():
    assert bound().cost(frozenset({"wav2vec2"}), 2.0) == 3 * 7.0 * 2 * RATE
    with pytest.raises(UserError, match=r"config\.ssl=.wav2vec2"):
        wav2vec2.build(make_config(), toy_encoder(masks_input=False))
    with pytest.raises(UserError, match="code_dim=6 must be a multiple of groups=4"):
        wav2vec2.build(make_config(groups=4), toy_encoder())
