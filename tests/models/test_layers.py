"""Depthwise convolution and relative attention against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from bljust_jax.models.layers import (
    ConvModule,
    RelativeAttention,
    depthwise_conv,
    relative_positions,
    relative_shift,
)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def lax_depthwise(x, kernel, causal):
    taps = kernel.shape[0]
    centre = (taps - 1) // 2
    if causal:
        kernel = kernel * (jnp.arange(taps) <= centre)[:, None]
    return lax.conv_general_dilated(
        x, kernel[:, None, :], (1,), [(centre, centre)],
        dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=x.shape[-1],
    )  # fmt: skip


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("frames", "taps"), [(9, 5), (3, 7), (1, 1)])
def test_depthwise_value_and_gradients_equal_a_grouped_convolution(frames, taps, causal):
    x, kernel, weight = normal(2, frames, 3), normal(taps, 3, seed=1), normal(2, frames, 3, seed=2)

    def loss(conv):
        return lambda x, kernel: jnp.sum(jnp.sin(conv(x, kernel, causal)) * weight)

    value, grads = jax.value_and_grad(loss(depthwise_conv), (0, 1))(x, kernel)
    expected, expected_grads = jax.value_and_grad(loss(lax_depthwise), (0, 1))(x, kernel)
    # A dozen float32 additions in another order.
    np.testing.assert_allclose(value, expected, atol=1e-5)
    for grad, reference in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, reference, atol=1e-5)


def test_depthwise_gradients_match_finite_differences_in_float64():
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(a, jnp.float64) for a in (normal(1, 6, 2), normal(5, 2, seed=1)))
        check_grads(jax.jit(depthwise_conv), (x, kernel), 1, ["rev"], atol=1e-6, rtol=1e-6)


def test_depthwise_in_bfloat16_sums_in_float32():
    x, kernel = normal(2, 20, 4).astype(jnp.bfloat16), normal(15, 4, seed=1)
    out, pull = jax.vjp(depthwise_conv, x, kernel)
    grad_x, grad_kernel = pull(jnp.ones_like(out))
    assert (out.dtype, grad_x.dtype, grad_kernel.dtype) == (x.dtype, x.dtype, kernel.dtype)
    exact = depthwise_conv(x.astype(jnp.float32), kernel)
    # Only the result is rounded: half an ulp of bfloat16 is 2^-9 relative.
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_relative_shift_picks_the_distance(frames, causal):
    columns = frames + 1 if causal else 2 * frames
    scores = normal(2, 3, frames, columns)
    out = np.asarray(relative_shift(scores))
    assert out.shape == (2, 3, frames, frames)
    assert relative_positions(frames, 4, causal).shape == (columns, 4)
    for i in range(frames):
        for j in range(i + 1 if causal else frames):
            np.testing.assert_array_equal(out[..., i, j], scores[..., i, frames - 1 - i + j])


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


@pytest.mark.parametrize("causal", [False, True])
def test_relative_attention_equals_the_loop(causal):
    x, heads, frames = normal(2, 6, 8), 2, 6
    mask = np.array([6, 4])[:, None, None] > np.arange(frames)[None, None, :]
    attention = RelativeAttention(heads)
    params = attention.init(jax.random.key(0), x, jnp.asarray(mask))["params"]
    params = jax.tree.map(lambda leaf: normal(*leaf.shape, seed=leaf.size) * 0.5, params)
    if causal:
        mask = mask & np.tri(frames, dtype=bool)[None]
    out = attention.apply({"params": params}, x, jnp.asarray(mask), causal)
    expected = naive_attention(params, x, np.broadcast_to(mask, (2, frames, frames)), heads)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_a_padded_key_is_never_attended():
    x, mask = normal(1, 5, 8), jnp.array([[[True, True, True, False, False]]])
    attention = RelativeAttention(2)
    params = attention.init(jax.random.key(0), x, mask)
    out = attention.apply(params, x, mask)
    other = attention.apply(params, x.at[:, 3:].set(1e4), mask)
    np.testing.assert_array_equal(out[:, :3], other[:, :3])
    empty = jax.grad(lambda x: jnp.sum(attention.apply(params, x, mask & False) ** 2))(x)
    assert np.all(np.isfinite(empty))


def test_conv_module_ignores_padded_frames():
    x, valid = normal(1, 8, 4), jnp.arange(8)[None] < 5
    module = ConvModule(5)
    params = module.init(jax.random.key(0), x, valid)
    out = module.apply(params, x, valid)
    np.testing.assert_array_equal(
        out[:, :5], module.apply(params, x * valid[..., None], valid)[:, :5]
    )
