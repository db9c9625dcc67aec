"""Rotary positions: only distances matter; padding, causality and windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.models.attention import Attention
from bljust_jax.models.attention.rope import rotate
from tests.helpers.attention import attend, normal, randomised


def naive_attention(params, x, mask, heads):
    """Loops over queries and heads in float64; a pair of a head is a complex number, turned by
    exp(i t w)."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    batch, frames, dim = x.shape
    size = dim // heads
    rates = 10000.0 ** (-2 * np.arange(size // 2) / size)
    dense = lambda name, x: x @ p[name]["kernel"] + p[name].get("bias", 0.0)  # noqa: E731
    split = lambda y: y.reshape(batch, frames, heads, size)  # noqa: E731
    x = np.asarray(x, np.float64)
    q, k, v = (split(dense(name, x)) for name in ("query", "key", "value"))
    pairs = lambda y: y[..., : size // 2] + 1j * y[..., size // 2 :]  # noqa: E731
    q, k = pairs(q), pairs(k)
    context = np.zeros((batch, frames, heads, size))
    for b, h, i in np.ndindex(batch, heads, frames):
        keys = np.flatnonzero(mask[b, i])
        turned = k[b, keys, h] * np.exp(1j * (keys - i)[:, None] * rates)
        scores = (q[b, i, h].conj() * turned).real.sum(-1) / size**0.5
        weights = np.exp(scores - scores.max())
        context[b, i, h] = weights / weights.sum() @ v[b, keys, h]
    return dense("out", context.reshape(batch, frames, dim))


def band(frames, window, causal):
    distance = np.arange(frames)[:, None] - np.arange(frames)[None, :]
    reach = window // 2 if window else frames
    return (distance <= reach) & (distance >= (0 if causal else -reach))


@pytest.mark.daily("0-True", "2-False")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 2, 6])
def test_rope_equals_the_loop(window, causal):
    """A window of 2 is cut into blocks; 6, at most three blocks, is a mask on all keys."""
    x, heads, frames = normal(2, 7, 8), 2, 7
    valid = np.array([7, 4])[:, None] > np.arange(frames)[None, :]
    attention = Attention(heads, window, positions="rope")
    params = randomised(attention, x, jnp.asarray(valid))
    out = attend(attention, params, x, jnp.asarray(valid), causal)
    mask = valid[:, None, :] & band(frames, window, causal)[None]
    counted = mask.any(-1)  # rows whose whole window is padding are finite and meaningless
    expected = naive_attention(params, x, np.where(counted[..., None], mask, True), heads)
    np.testing.assert_allclose(out[counted], expected[counted], atol=1e-5)
    assert np.all(np.isfinite(out))


def test_there_is_no_parameter_for_positions():
    x, valid = normal(1, 1, 8), jnp.ones((1, 1), bool)
    params = jax.eval_shape(Attention(2, positions="rope").init, jax.random.key(0), x, valid)
    shapes = jax.tree.map(lambda leaf: leaf.shape, params["params"])
    biased, plain = {"kernel": (8, 8), "bias": (8,)}, {"kernel": (8, 8)}
    assert shapes == {"query": biased, "key": biased, "value": plain, "out": biased}


def test_a_rotation_keeps_norms_and_products_of_equal_distance():
    """Frame 0 is unchanged; <R_i q, R_j k> depends on i - j alone; turning is exact in float64."""
    with jax.enable_x64(True):
        q, k = (jnp.asarray(np.random.default_rng(n).normal(size=(1, 1, 1, 6))) for n in (0, 1))
        frames = lambda x: jnp.tile(x, (1, 9, 1, 1))  # noqa: E731
        turned_q, turned_k = rotate(frames(q))[0, :, 0], rotate(frames(k))[0, :, 0]
        np.testing.assert_array_equal(turned_q[0], q[0, 0, 0])
        np.testing.assert_allclose(jnp.linalg.norm(turned_q, axis=-1), jnp.linalg.norm(q))
        products = np.asarray(turned_q @ turned_k.T)
        for distance in range(-8, 9):
            diagonal = np.diagonal(products, -distance)
            np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-13)


def test_rotation_is_rounded_once_in_bfloat16():
    x = normal(1, 5, 2, 4).astype(jnp.bfloat16)
    expected = rotate(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(rotate(x), expected)


@pytest.mark.parametrize("window", [0, 2])
def test_a_padded_key_is_never_attended(window):
    x, valid = normal(1, 5, 8), jnp.array([[True, True, True, False, False]])
    attention = Attention(2, window, positions="rope")
    params = jax.jit(attention.init)(jax.random.key(0), x, valid)["params"]
    out, changed = attend(attention, params, x, valid), np.array(x)
    changed[:, 3:] = 1e4
    other = attend(attention, params, jnp.asarray(changed), valid)
    np.testing.assert_array_equal(out[:, :3], other[:, :3])
    none = jnp.zeros_like(valid)
    empty = jax.jit(jax.grad(lambda x: jnp.sum(attend(attention, params, x, none) ** 2)))(x)
    assert np.all(np.isfinite(empty))
