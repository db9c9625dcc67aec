"""Relative attention against its definition, and windows against full attention under a band."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.models.attention import (
    MASKED_SCORE,
    RelativeAttention,
    full_attention,
    local_attention,
    masked_softmax,
    relative_positions,
    skew,
)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(("frames", "columns"), [(1, 2), (2, 4), (5, 10), (5, 6), (4, 4)])
def test_skew_picks_the_distance(frames, columns):
    scores = normal(2, 3, frames, columns)
    out = np.asarray(skew(scores, frames - 1, frames))
    assert out.shape == (2, 3, frames, frames)
    for i in range(frames):
        for j in range(frames):
            if frames - 1 - i + j < columns:
                np.testing.assert_array_equal(out[..., i, j], scores[..., i, frames - 1 - i + j])


def test_skew_of_a_band_that_starts_at_the_first_key():
    scores = normal(3, 7)
    out = skew(scores, 0, 9)
    for i in range(3):
        np.testing.assert_array_equal(out[i, i : i + 7], scores[i])


def naive_attention(params, x, mask, heads):
    """Loops over queries, keys and heads in float64, each distance with its own sinusoid."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    batch, frames, dim = x.shape
    size = dim // heads
    rates = 10000.0 ** (-np.arange(0, dim, 2) / dim)
    dense = lambda name, x: x @ p[name]["kernel"] + p[name].get("bias", 0.0)  # noqa: E731
    x = np.asarray(x, np.float64)
    q, k, v = dense("query", x), dense("key", x), dense("value", x)
    context = np.zeros_like(x)
    for b, h, i in np.ndindex(batch, heads, frames):
        part = slice(h * size, (h + 1) * size)
        keys = [j for j in range(frames) if mask[b, i, j]]
        scores = []
        for j in keys:
            angle = (i - j) * rates
            r = dense("position", np.concatenate([np.sin(angle), np.cos(angle)]))[part]
            content = (q[b, i, part] + p["content_bias"][h]) @ k[b, j, part]
            scores.append((content + (q[b, i, part] + p["position_bias"][h]) @ r) / size**0.5)
        weights = np.exp(scores - np.max(scores))
        context[b, i, part] = weights / weights.sum() @ v[b, keys, part]
    return dense("out", context)


def randomised(attention, x, valid):
    params = jax.eval_shape(attention.init, jax.random.key(0), x, valid)["params"]
    return jax.tree.map(lambda leaf: normal(*leaf.shape, seed=leaf.size) * 0.5, params)


@partial(jax.jit, static_argnums=(0, 4))
def attend(attention, params, x, valid, causal=False):
    return attention.apply({"params": params}, x, valid, causal)


def band(frames, window, causal):
    distance = np.arange(frames)[:, None] - np.arange(frames)[None, :]
    reach = window // 2 if window else frames
    return (distance <= reach) & (distance >= (0 if causal else -reach))


@pytest.mark.daily("0-True", "2-True", "5-False", "6-True")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 2, 5, 6])
def test_relative_attention_equals_the_loop(window, causal):
    """Windows 2 and 5 are cut into blocks; 6, at most three blocks, is a mask on all keys."""
    x, heads, frames = normal(2, 7, 8), 2, 7
    valid = np.array([7, 4])[:, None] > np.arange(frames)[None, :]
    attention = RelativeAttention(heads, window)
    params = randomised(attention, x, jnp.asarray(valid))
    out = attend(attention, params, x, jnp.asarray(valid), causal)
    mask = valid[:, None, :] & band(frames, window, causal)[None]
    # Rows whose whole window is padding are finite and meaningless.
    counted = mask.any(-1)
    assert counted.sum() >= 7 + 4
    expected = naive_attention(params, x, np.where(counted[..., None], mask, True), heads)
    np.testing.assert_allclose(out[counted], expected[counted], atol=1e-5)
    assert np.all(np.isfinite(out))


def through(attention, arrays, valid):
    """Output and gradients of a loss in which every valid output counts differently."""

    def loss(*arrays):
        out = jnp.where(valid[..., None, None], attention(*arrays), 0.0)
        return jnp.sum(out * jnp.sin(jnp.arange(out.size)).reshape(out.shape)), out

    run = jax.value_and_grad(loss, tuple(range(len(arrays))), has_aux=True)
    (_, out), grads = jax.jit(run)(*arrays)
    return out, grads


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("frames", [29, 32])
def test_windows_equal_full_attention_under_the_band(frames, causal):
    """A length that blocks of four frames divide, and one that they do not."""
    reach, ahead = 4, 0 if causal else 4
    arrays = [normal(2, frames, 2, 3, seed=n) for n in range(4)] + [normal(2 * frames, 2, 3)]
    valid = jnp.array([frames, frames - 9])[:, None] > jnp.arange(frames)[None, :]
    mask = valid[:, None, :] & jnp.asarray(band(frames, 2 * reach, causal))[None]
    first = frames - 1 - reach

    def local(*arrays):
        *arrays, position = arrays
        position = position[first : first + reach + ahead + 1]
        return local_attention(*arrays, position, valid, reach)

    out, grads = through(local, arrays, valid)
    expected, expected_grads = through(lambda *a: full_attention(*a, mask), arrays, valid)
    # The bound, and as much relative to the largest gradient.
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for grad, reference in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, reference, atol=1e-5 * np.abs(reference).max())
    assert np.any(grads[-1])


def test_a_window_of_all_frames_is_full_attention():
    x, valid = normal(1, 9, 8), jnp.ones((1, 9), bool)
    params = randomised(RelativeAttention(2), x, valid)
    for causal in (False, True):
        whole = attend(RelativeAttention(2), params, x, valid, causal)
        out = attend(RelativeAttention(2, 16), params, x, valid, causal)
        np.testing.assert_array_equal(out, whole)


@pytest.mark.parametrize("window", [0, 2])
def test_a_padded_key_is_never_attended(window):
    x, valid = normal(1, 5, 8), jnp.array([[True, True, True, False, False]])
    attention = RelativeAttention(2, window)
    params = jax.jit(attention.init)(jax.random.key(0), x, valid)["params"]
    out, changed = attend(attention, params, x, valid), np.array(x)
    changed[:, 3:] = 1e4
    other = attend(attention, params, jnp.asarray(changed), valid)
    np.testing.assert_array_equal(out[:, :3], other[:, :3])
    none = jnp.zeros_like(valid)
    empty = jax.jit(jax.grad(lambda x: jnp.sum(attend(attention, params, x, none) ** 2)))(x)
    assert np.all(np.isfinite(empty))


def test_memory_of_a_window_grows_with_the_frames_alone():
    """Forward and backward at 4000 frames, 100 on either side: at most a fifth of full attention's.

    Scores of 3 x 100 keys for 4000 are 0.075; the rest is queries, keys and values.
    """

    def temporary(attention, frames, mask, distances):
        arrays = [jax.ShapeDtypeStruct((1, frames, 4, 8), jnp.float32)] * 4
        arrays.append(jax.ShapeDtypeStruct((distances, 4, 8), jnp.float32))
        valid = jax.ShapeDtypeStruct(mask, bool)
        loss = lambda mask, *arrays: jnp.sum(attention(*arrays, mask) ** 2)  # noqa: E731
        lowered = jax.jit(jax.grad(loss, (1, 2, 3, 4, 5))).lower(valid, *arrays)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    local = partial(local_attention, reach=100)
    at_4000 = temporary(local, 4000, (1, 4000), 201)
    assert at_4000 <= 0.2 * temporary(full_attention, 4000, (1, 1, 4000), 8000)
    assert at_4000 <= 2.2 * temporary(local, 2000, (1, 2000), 201)


def test_positions_are_sinusoids_of_the_distance():
    table = relative_positions(2, -1, 4)
    expected = [[np.sin(r), np.sin(r / 100), np.cos(r), np.cos(r / 100)] for r in (2, 1, 0, -1)]
    np.testing.assert_allclose(table, expected, atol=1e-12)


def random_scores(dtype, seed=0):
    """[2, 3, 5, 7] with masked keys and, in the first row, no key at all."""
    rng = np.random.default_rng(seed)
    mask = rng.random((2, 1, 5, 7)) < 0.7
    mask[0, 0, 0] = False
    return jnp.asarray(3 * rng.normal(size=(2, 3, 5, 7)), dtype), jnp.asarray(mask)


def test_the_softmax_of_attention_has_the_values_and_slopes_of_jax_in_float64():
    with jax.enable_x64(True):
        scores, mask = random_scores(jnp.float64)
        slopes = jnp.asarray(np.random.default_rng(1).normal(size=scores.shape))
        plain = lambda x: jax.nn.softmax(jnp.where(mask, x, MASKED_SCORE))  # noqa: E731
        ours = partial(masked_softmax, mask=mask, dtype=jnp.float64)
        (a, back), (b, expected) = (jax.vjp(f, scores) for f in (ours, plain))
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(*back(slopes), *expected(slopes), atol=1e-15)


def test_the_softmax_of_attention_keeps_nothing_wider_than_its_result():
    scores, mask = random_scores(jnp.bfloat16)
    _, back = jax.vjp(lambda x: masked_softmax(x, mask, jnp.bfloat16), scores)
    kept = [x for x in jax.tree.leaves(back) if getattr(x, "shape", None) == scores.shape]
    assert [x.dtype for x in kept] == [jnp.bfloat16]
    (slope,) = back(jnp.ones_like(scores))
    assert slope.dtype == jnp.bfloat16
    np.testing.assert_allclose(slope.astype(np.float32).sum(-1), 0.0, atol=2**-7)
