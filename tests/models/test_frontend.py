"""Subsampling against `lax.conv`, its lengths and its receptive field."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bljust_jax.models.frontend import StridedConv, Subsampling, output_lengths, receptive_field


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(("frames", "bands"), [(8, 6), (7, 5), (1, 1), (2, 3)])
def test_strided_convolution_equals_lax_conv(frames, bands):
    x, conv = normal(2, frames, bands, 3), StridedConv(4)
    params = conv.init(jax.random.key(0), x)["params"]

    def reference(params, x):
        return params["bias"][None, None, None] + lax.conv_general_dilated(
            x,
            params["kernel"],
            (2, 2),
            [(1, 1), (1, 1)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    ours, pull = jax.vjp(lambda p, x: conv.apply({"params": p}, x), params, x)
    expected, reference_pull = jax.vjp(reference, params, x)
    np.testing.assert_allclose(ours, expected, atol=1e-5)  # 27 float32 terms
    seed = normal(*ours.shape, seed=3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), pull(seed), reference_pull(seed)
    )


def test_lengths_are_a_quarter_rounded_up():
    model = Subsampling(2, 4)
    lengths = jnp.arange(14)
    x = normal(14, 13, 8)
    out, out_lengths = model.apply(model.init(jax.random.key(0), x, lengths), x, lengths)
    assert out.shape == (14, 4, 4)
    assert out_lengths.tolist() == [-(-n // 4) for n in range(14)]
    assert out_lengths.tolist() == output_lengths(np.arange(14)).tolist()
    for row, n in zip(out, out_lengths.tolist(), strict=True):
        assert not np.any(row[n:])


def test_receptive_field_is_exactly_as_stated():
    model, frames = Subsampling(3, 8), 25
    x, lengths = normal(1, frames, 8), jnp.array([frames])
    params = model.init(jax.random.key(1), x, lengths)
    out = jax.jit(lambda x: model.apply(params, x, lengths)[0])
    stride, left, right = receptive_field()
    reached = np.stack([np.any(out(x.at[0, s].add(5.0)) != out(x), -1)[0] for s in range(frames)])
    for s, t in np.ndindex(*reached.shape):
        if not stride * t - left <= s <= stride * t + right:
            assert not reached[s, t]
    assert reached[stride * 3 - left, 3]
    assert reached[stride * 3 + right, 3]


def test_padding_holds_nothing_back():
    model = Subsampling(3, 8)
    x, lengths = normal(2, 9, 8), jnp.array([9, 6])
    params = model.init(jax.random.key(1), x, lengths)
    padded = jnp.full((2, 20, 8), jnp.nan).at[0, :9].set(x[0]).at[1, :6].set(x[1, :6])
    out, _ = model.apply(params, padded, lengths)
    expected, _ = model.apply(params, x, lengths)
    np.testing.assert_allclose(out[:, :3], expected, atol=1e-6)
    assert not np.any(out[:, 3:])
