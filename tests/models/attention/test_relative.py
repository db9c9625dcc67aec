"""Relative attention against its definition, its position scores, windows and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.models.attention import Attention
from bljust_jax.models.attention.relative import (
    CHUNK,
    MOST_CHUNKS,
    chunk_size,
    position_scores,
    relative_positions,
    skew,
)
from tests.helpers.attention import attend, normal, randomised


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
    attention = Attention(heads, window)
    params = randomised(attention, x, jnp.asarray(valid))
    out = attend(attention, params, x, jnp.asarray(valid), causal)
    mask = valid[:, None, :] & band(frames, window, causal)[None]
    # Rows whose whole window is padding are finite and meaningless.
    counted = mask.any(-1)
    assert counted.sum() >= 7 + 4
    expected = naive_attention(params, x, np.where(counted[..., None], mask, True), heads)
    np.testing.assert_allclose(out[counted], expected[counted], atol=1e-5)
    assert np.all(np.isfinite(out))


def test_a_window_of_all_frames_is_full_attention():
    x, valid = normal(1, 9, 8), jnp.ones((1, 9), bool)
    params = randomised(Attention(2), x, valid)
    for causal in (False, True):
        whole = attend(Attention(2), params, x, valid, causal)
        out = attend(Attention(2, 16), params, x, valid, causal)
        np.testing.assert_array_equal(out, whole)


@pytest.mark.parametrize("window", [0, 2])
def test_a_padded_key_is_never_attended(window):
    x, valid = normal(1, 5, 8), jnp.array([[True, True, True, False, False]])
    attention = Attention(2, window)
    params = jax.jit(attention.init)(jax.random.key(0), x, valid)["params"]
    out, changed = attend(attention, params, x, valid), np.array(x)
    changed[:, 3:] = 1e4
    other = attend(attention, params, jnp.asarray(changed), valid)
    np.testing.assert_array_equal(out[:, :3], other[:, :3])
    none = jnp.zeros_like(valid)
    empty = jax.jit(jax.grad(lambda x: jnp.sum(attend(attention, params, x, none) ** 2)))(x)
    assert np.all(np.isfinite(empty))


def test_positions_are_sinusoids_of_the_distance():
    table = relative_positions(2, -1, 4)
    expected = [[np.sin(r), np.sin(r / 100), np.cos(r), np.cos(r / 100)] for r in (2, 1, 0, -1)]
    np.testing.assert_allclose(table, expected, atol=1e-12)


@pytest.mark.parametrize(("frames", "chunk"), [(1, 1), (7, 1), (7, 3), (7, 7), (8, 4)])
def test_position_scores_are_products_with_the_row_of_the_distance(frames, chunk):
    """Chunks that divide the frames and that do not; one query per chunk; all in one."""
    count = -(-frames // chunk)
    query, position = normal(2, frames, 3, 4), normal(count * chunk + frames, 3, 4, seed=1)
    out = position_scores(query, position, chunk)
    distance = np.arange(frames)[:, None] - np.arange(frames)[None, :]
    rows = position[count * chunk - 1 - distance]  # [i, j, h, s]
    expected = jnp.einsum("bihs,ijhs->bhij", query, rows)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 39, 79, 80, 83, 400, 641, 4000])
def test_chunks_are_few_and_waste_less_than_one_row_each(frames):
    chunk = chunk_size(frames)
    count = -(-frames // chunk)
    assert count <= MOST_CHUNKS
    assert count == 1 or chunk >= CHUNK
    assert count * chunk - frames < count
    assert frames < 80 or chunk <= max(80, -(-frames // MOST_CHUNKS))
