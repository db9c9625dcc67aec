"""Quantisers against brute force, closed forms and finite differences; sums in chunks against sums
at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.ops import quantizer as q
from tests.helpers.nearest_codes import brute_force

KEY = jax.random.key(0)
# In chunks of 2 frames a row, for 3 rows of 6 entries a frame.
SMALL = 2 * 3 * 6


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# Random projection


def test_initial_arrays():
    frozen = q.init_random_projection(KEY, 30, 64, 6, codebooks=3)
    assert {k: v.shape for k, v in frozen.items()} == {
        "projection": (3, 30, 6),
        "codebook": (3, 64, 6),
    }
    np.testing.assert_allclose(jnp.linalg.norm(frozen["codebook"], axis=-1), 1, rtol=1e-6)
    # Xavier: uniform within sqrt(6 / (in + out)), so of standard deviation sqrt(2 / (in + out))
    bound = (6 / 36) ** 0.5
    assert 0.95 * bound < jnp.max(jnp.abs(frozen["projection"])) <= bound
    # 540 draws: the standard error of their deviation is 2 %
    assert float(jnp.std(frozen["projection"])) == pytest.approx((2 / 36) ** 0.5, rel=0.1)


@pytest.mark.parametrize("entries", [q.ENTRIES, 3 * 34 * 4, 1])
def test_nearest_is_the_brute_force_one(entries):
    """Lengths of inputs and of codes play no part: both sides are made unit vectors."""
    frozen = q.init_random_projection(KEY, 10, 17, 4, codebooks=2)
    x = normal(3, 13, 10) * jnp.exp(3 * normal(3, 13, 1, seed=1))
    lengths = jnp.exp(2 * normal(2, 17, 1, seed=2))
    frozen = {**frozen, "codebook": frozen["codebook"] * lengths}
    codes = q.nearest(frozen, x, entries)
    np.testing.assert_array_equal(codes, brute_force(frozen, x))
    # without the normalisation of codes another entry would be nearest
    raw = jnp.einsum("bte,ced,cvd->btcv", x, frozen["projection"], frozen["codebook"])
    assert np.mean(np.asarray(jnp.argmax(raw, axis=-1)) != np.asarray(codes)) > 0.3


def test_unit_of_zero_has_a_finite_gradient():
    value, slope = jax.value_and_grad(lambda x: jnp.sum(q.unit(x) * 2.0))(jnp.zeros(3))
    assert value == 0
    assert np.all(np.isfinite(slope))


# Gumbel selection


def test_noise_follows_utterance_and_frame():
    keys = jax.random.split(KEY, 3)
    positions = jnp.broadcast_to(jnp.arange(7)[None], (3, 7))
    noise = q.gumbel(keys, positions, (2, 5))
    assert noise.shape == (3, 7, 2, 5)
    order, places = jnp.array([2, 0]), jnp.array([[6, 1, 4]] * 2)
    some = q.gumbel(keys[order], places, (2, 5))
    np.testing.assert_array_equal(some, noise[order][:, places[0]])
    assert len(np.unique(noise)) == noise.size


def test_noisy_choices_follow_the_softmax():
    """The largest of scores + Gumbel noise is a draw from softmax(scores)."""
    scores = jnp.array([0.0, 1.0, -0.5, 2.0])
    positions = jnp.arange(8192)[None]
    picked = jnp.argmax(scores[None, None] + q.gumbel(KEY[None], positions, (4,)), axis=-1)
    shares = np.bincount(np.asarray(picked[0]), minlength=4) / 8192
    # five standard errors of a frequency over 8192 draws
    np.testing.assert_allclose(shares, jax.nn.softmax(scores), atol=0.028)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_straight_through_has_the_soft_gradient(temperature):
    """Forward exactly one-hot; backward the finite differences of the soft form."""
    with jax.enable_x64(True):
        scores, weights = (jnp.asarray(normal(2, 3, 5, seed=s), jnp.float64) for s in (0, 1))
        hard = q.select(scores, temperature, hard=True)
        expected = jax.nn.one_hot(jnp.argmax(scores, axis=-1), 5)
        np.testing.assert_array_equal(hard, expected)

        def value(s, hard):
            return jnp.sum(q.select(s, temperature, hard=hard) * weights)

        gradient = jax.grad(value)(scores, True)
        eps = 1e-6
        steps = eps * jnp.eye(scores.size, dtype=scores.dtype).reshape(-1, *scores.shape)
        soft = jax.jit(jax.vmap(lambda step: value(scores + step, False)))
        slopes = (soft(steps) - soft(-steps)) / (2 * eps)
        # central differences in float64: eps^2 and rounding / eps, both about 1e-10
        np.testing.assert_allclose(gradient, slopes.reshape(scores.shape), atol=1e-8)


def test_cold_selection_is_the_nearest_code():
    frozen = q.init_random_projection(KEY, 6, 9, 4, codebooks=2)
    x = normal(2, 5, 6)
    cosines = q.similarity(q.project(frozen["projection"], x), frozen["codebook"])
    cold = q.select(cosines, 1e-6)
    # the two best of 9 random cosines differ by far more than 1e-6 x 30 here
    np.testing.assert_allclose(cold, jax.nn.one_hot(q.nearest(frozen, x), 9), atol=1e-6)


@pytest.mark.parametrize("step", [0, 100_000, 277_000, 277_500, 10**6])
def test_temperature_falls_to_its_end(step):
    found = float(q.annealed(step, 2.0, 0.5, 0.999995))
    assert found == pytest.approx(max(0.5, 2.0 * 0.999995**step), rel=1e-5)


def test_product_codes_join_the_groups():
    codevectors = normal(2, 3, 4)
    codes = np.array([[[0, 2], [1, 1]]])
    joined = q.product_codes(jax.nn.one_hot(codes, 3), codevectors)
    expected = [np.concatenate([codevectors[0, i], codevectors[1, j]]) for i, j in codes[0]]
    np.testing.assert_allclose(joined[0], expected, rtol=1e-6)


# Usage


def test_perplexity_in_closed_form():
    assert float(q.perplexity(jnp.array([0.0, 1.0, 0.0]))) == 1
    assert float(q.perplexity(jnp.full(320, 1 / 320))) == pytest.approx(320, rel=1e-5)
    assert float(q.perplexity(jnp.array([0.5, 0.25, 0.25]))) == pytest.approx(2**1.5, rel=1e-6)
    assert np.all(np.isfinite(jax.grad(q.perplexity)(jnp.array([0.0, 1.0, 0.0]))))


def figures(counts):
    metrics = jax.jit(q.usage_metrics, static_argnums=0)("x", jnp.asarray(counts, jnp.float32))
    assert {weight.item() for _, weight in metrics.values()} <= {0.0, 1.0}
    return {key.removeprefix("codebook/x/"): float(s) for key, (s, _) in metrics.items()}


def test_usage_of_collapsed_and_uniform_batches():
    collapsed = figures([[0, 50, 0, 0], [50, 0, 0, 0]])
    assert collapsed == pytest.approx(
        {"perplexity": 1, "share": 0.25, "unused": 0.75, "entropy": 0}, abs=1e-6
    )
    uniform = figures([[5, 5, 5, 5]])
    assert uniform == pytest.approx(
        {"perplexity": 4, "share": 1, "unused": 0, "entropy": np.log(4)}, rel=1e-6
    )
    # two frames can use two entries of eight at most: all that was possible
    few = figures([[1, 0, 0, 1, 0, 0, 0, 0]])
    assert few == pytest.approx(
        {"perplexity": 2, "share": 1, "unused": 0.75, "entropy": np.log(2)}, rel=1e-6
    )
    # codebooks are averaged
    mixed = figures([[0, 50, 0, 0, 0], [10, 10, 10, 10, 10]])
    assert mixed["perplexity"] == pytest.approx(3, rel=1e-6)
    assert mixed["unused"] == pytest.approx(0.4, rel=1e-6)


def test_usage_without_a_frame_has_no_weight():
    metrics = q.usage_metrics("x", jnp.zeros((2, 4)))
    assert all(s == 0 and w == 0 for s, w in metrics.values())


def test_counts_of_codes():
    rng = np.random.default_rng(0)
    codes, counted = rng.integers(0, 5, (3, 7, 2)), rng.random((3, 7)) < 0.6
    counts = q.count_codes(jnp.asarray(codes, jnp.int32), jnp.asarray(counted), 5)
    expected = [np.bincount(codes[counted][:, c], minlength=5) for c in range(2)]
    np.testing.assert_array_equal(counts, expected)


# Cross entropies


def test_cross_entropies():
    with jax.enable_x64(True):
        logits, scores = (jnp.asarray(normal(2, 3, 2, 5, seed=s), jnp.float64) for s in (0, 1))
        labels = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        log_p = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
        hard = q.hard_nats(logits, labels)
        picked = np.take_along_axis(log_p, np.asarray(labels)[..., None], -1)[..., 0]
        np.testing.assert_allclose(hard, -picked, rtol=1e-12)
        one_hot = jax.nn.one_hot(labels, 5, dtype=jnp.float64)
        np.testing.assert_allclose(q.soft_nats(logits, one_hot), hard, rtol=1e-12)
        soft = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        np.testing.assert_allclose(
            q.soft_nats(logits, jnp.asarray(soft)), -(soft * log_p).sum(-1), rtol=1e-12
        )


# Sums in chunks


@functools.partial(jax.jit, static_argnums=0)
def weighted_nats(entries, wanted, *args):
    """A soft cross entropy with a head, other sums, and the gradients of the first."""

    def loss(hidden, head, labels):
        def score(positions, wanted, hidden, labels):
            nats = q.soft_nats((hidden @ head)[:, :, None], labels[:, :, None])[..., 0]
            nats = jnp.where(wanted, nats * (1 + 0.1 * positions), 0)
            return jnp.sum(nats), {"frames": jnp.sum(wanted), "rows": jnp.sum(nats, axis=1)}

        return q.sum_over_frames(score, wanted, hidden, labels, width=6, entries=entries)

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*args)


@pytest.mark.parametrize("entries", [SMALL, 1])
@pytest.mark.parametrize("share", [0.5, 0.0, 1.0])
def test_chunked_sums_are_the_whole_ones(entries, share):
    """Values and gradients agree, for arguments and for what fn closes over; unwanted frames never
    matter."""
    wanted = np.random.default_rng(3).random((3, 11)) < share
    args = normal(3, 11, 4), normal(4, 6, seed=1), jax.nn.softmax(normal(3, 11, 6, seed=2))
    one, parts = (weighted_nats(n, wanted, *args) for n in (10**6, entries))
    # the same sums of 33 terms in another order
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), one, parts)
    assert np.all(np.asarray(parts[1][0])[~wanted] == 0)


@pytest.mark.parametrize(("wanted", "chunks"), [(0, 0), (1, 1), (3, 1), (4, 2), (11, 4)])
def test_chunks_are_as_few_as_the_wanted_frames_fill(wanted, chunks):
    """Chunks of 3 of 11 frames; the wanted ones are the last of a row. Each chunk adds 1."""
    last = jnp.arange(11)[None, :] >= 11 - wanted
    count = q.sum_over_frames(lambda *_: jnp.float32(1), last, width=1, entries=3)
    assert count == chunks


def test_chunks_hold_a_fraction_of_the_memory():
    frames, codes = 256, 1024
    hidden, head = normal(4, frames, 16), normal(16, codes, seed=1)
    labels = jnp.zeros((4, frames, 1), jnp.int32)
    wanted = jnp.ones((4, frames), bool)

    def temporary(entries):
        def score(positions, wanted, hidden, labels):
            nats = q.hard_nats((hidden @ head)[:, :, None], labels)[..., 0]
            return jnp.sum(jnp.where(wanted, nats, 0))

        def loss(hidden):
            how = {"width": codes, "entries": entries}
            return q.sum_over_frames(score, wanted, hidden, labels, **how)

        program = jax.jit(jax.grad(loss)).lower(hidden).compile()
        return program.memory_analysis().temp_size_in_bytes

    whole, chunked = temporary(10**9), temporary(4 * codes * frames // 16)
    assert whole >= 4 * frames * codes * 4  # the logits are there at least once
    assert chunked < 0.15 * whole
