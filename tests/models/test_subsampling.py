"""Subsampling against `lax.conv`, its lengths, its receptive field and its cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bljust_jax.models.subsampling import (
    StridedConv,
    Subsampling,
    depthwise_strided,
    output_lengths,
    rectify,
    strided_conv,
    subsampling_flops,
)
from tests.helpers.closed_forms import receptive_field
from tests.helpers.residuals import residuals

# Whole convolutions by 4, the separable ones by 4 and 8.
KINDS = [(4, False), (4, True), (8, True)]


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def begin(model, x, lengths):
    return jax.jit(model.init)(jax.random.key(1), x, lengths)


def compare(ours, reference, *given):
    """(output, gradients of one weighted sum of it) of both."""

    def run(f):
        out, pull = jax.vjp(f, *given)
        return out, pull(normal(*out.shape, seed=3))

    return jax.jit(lambda: (run(ours), run(reference)))()


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

    def ours(params, x):
        return conv.apply({"params": params}, x)

    (out, grads), (expected, others) = compare(ours, reference, params, x)
    np.testing.assert_allclose(out, expected, atol=1e-5)  # 27 float32 terms
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads, others)


@pytest.mark.parametrize(("frames", "bands"), [(8, 6), (7, 5), (1, 1), (2, 3)])
def test_depthwise_convolution_equals_lax_conv(frames, bands):
    x, kernel = normal(2, frames, bands, 4), normal(3, 3, 4, seed=1)

    def reference(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel[:, :, None],
            (2, 2),
            [(1, 1), (1, 1)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        )

    (out, grads), (expected, others) = compare(depthwise_strided, reference, x, kernel)
    np.testing.assert_allclose(out, expected, atol=1e-5)  # 9 float32 terms
    for grad, other in zip(grads, others, strict=True):
        np.testing.assert_allclose(grad, other, atol=2e-5)


@pytest.mark.parametrize(
    ("convolve", "kernel"),
    [(strided_conv, (3, 3, 3, 4)), (strided_conv, (3, 3, 1, 4)), (depthwise_strided, (3, 3, 3))],
)
@pytest.mark.parametrize(("frames", "bands"), [(8, 6), (7, 5), (1, 2)])
def test_cpus_and_accelerators_compute_the_same(monkeypatch, convolve, kernel, frames, bands):
    """Output and gradients of both ways, in float64."""
    with jax.enable_x64(True):
        x, weights = (
            jnp.asarray(np.random.default_rng(n).normal(size=shape))
            for n, shape in enumerate([(2, frames, bands, kernel[2]), kernel])
        )

        def run():
            out, pull = jax.vjp(convolve, x, weights)
            return out, *pull(jnp.sin(out))

        ours = run()
        monkeypatch.setattr(lax, "platform_dependent", lambda *args, cpu, default: default(*args))
        others = run()
        for a, b in zip(ours, others, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("convolve", "kernel", "dtype"),
    [
        (strided_conv, (3, 3, 3, 4), jnp.bfloat16),
        (depthwise_strided, (3, 3, 3), jnp.float32),
        (depthwise_strided, (3, 3, 3), jnp.bfloat16),
    ],
)
def test_gradients_in_bfloat16_are_those_of_float32_rounded(monkeypatch, convolve, kernel, dtype):
    """Each operand has a gradient of its own dtype, on CPUs and on accelerators."""
    x, weights = normal(2, 7, 5, 3).astype(jnp.bfloat16), normal(*kernel, seed=1).astype(dtype)
    grad = normal(*convolve(x, weights).shape, seed=2).astype(jnp.bfloat16)

    def run(*given):
        pull = jax.jit(lambda *xs: jax.vjp(convolve, *xs)[1](grad.astype(xs[0].dtype)))
        return pull(*given)

    exact = run(x.astype(jnp.float32), weights.astype(jnp.float32))
    ours = run(x, weights)
    monkeypatch.setattr(lax, "platform_dependent", lambda *args, cpu, default: default(*args))
    for found in (ours, run(x, weights)):
        assert [g.dtype for g in found] == [jnp.bfloat16, dtype]
        for a, b in zip(found, exact, strict=True):
            # one rounding of the sum, and one of each of its parts
            np.testing.assert_allclose(a.astype(jnp.float32), b, atol=2**-7 * np.abs(b).max())


@pytest.mark.parametrize(
    ("convolve", "kernel", "platform", "count"),
    [
        (strided_conv, (3, 3, 3, 4), "cpu", 1),  # forward
        (strided_conv, (3, 3, 3, 4), "cuda", 3),  # forward, input, kernel
        (depthwise_strided, (3, 3, 3), "cpu", 0),
        (depthwise_strided, (3, 3, 3), "tpu", 1),  # kernel
    ],
)
def test_convolutions_of_a_platform(convolve, kernel, platform, count):
    def step(x, kernel):
        out, pull = jax.vjp(convolve, x, kernel)
        return pull(jnp.sin(out))

    traced = jax.jit(step).trace(jnp.ones((1, 4, 4, 3)), jnp.ones(kernel))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == count


def test_rectify_masks_and_keeps_its_result_alone():
    """The gradient is that of where(valid, relu(x), 0), in float64; NaN in valid frames stays."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5)))
        x, grad = x.at[1, 2].set(jnp.nan), jnp.cos(jnp.arange(120.0)).reshape(x.shape)
        valid = jnp.array([[True, True, True], [True, True, False]])

        def plain(x):
            return jnp.where(valid[:, :, None, None], jax.nn.relu(x), 0)

        (y, pull), (z, other) = jax.vjp(lambda x: rectify(x, valid), x), jax.vjp(plain, x)
        np.testing.assert_array_equal(y, z)
        np.testing.assert_array_equal(pull(grad)[0], other(grad)[0])
    assert np.isnan(rectify(jnp.full((1, 1, 1, 1), jnp.nan), jnp.array([[True]]))).all()
    ones = jnp.ones((2, 3, 4, 5)), jnp.ones((2, 3), bool)
    assert [r.type for r in residuals(rectify, *ones)] == ["f32[2,3,4,5]"]


@pytest.mark.daily("8-True")
@pytest.mark.parametrize(("factor", "separable"), KINDS)
def test_lengths_are_divided_and_rounded_up(factor, separable):
    model = Subsampling(2, 4, factor, separable)
    lengths = jnp.arange(20)
    x = normal(20, 19, 8)
    out, out_lengths = jax.jit(model.apply)(begin(model, x, lengths), x, lengths)
    assert out.shape == (20, -(-19 // factor), 4)
    assert out_lengths.tolist() == [-(-n // factor) for n in range(20)]
    assert out_lengths.tolist() == output_lengths(np.arange(20), factor).tolist()
    for row, n in zip(out, out_lengths.tolist(), strict=True):
        assert not np.any(row[n:])


@pytest.mark.daily("8-True")
@pytest.mark.parametrize(("factor", "separable"), KINDS)
def test_receptive_field_is_exactly_as_stated(factor, separable):
    model, frames = Subsampling(6, 8, factor, separable), 6 * factor + 1
    x, lengths = normal(1, frames, 8), jnp.array([frames])
    params = begin(model, x, lengths)
    out = jax.jit(lambda x: model.apply(params, x, lengths)[0])
    stride, left, right = receptive_field(factor)
    still = out(x)
    reached = np.stack([np.any(out(x.at[0, s].add(5.0)) != still, -1)[0] for s in range(frames)])
    for s, t in np.ndindex(*reached.shape):
        if not stride * t - left <= s <= stride * t + right:
            assert not reached[s, t]
    assert reached[stride * 3 - left, 3]
    assert reached[stride * 3 + right, 3]


@pytest.mark.daily("8-True")
@pytest.mark.parametrize(("factor", "separable"), KINDS)
def test_padding_holds_nothing_back(factor, separable):
    model = Subsampling(3, 8, factor, separable)
    x, lengths = normal(2, 9, 8), jnp.array([9, 6])
    params = begin(model, x, lengths)
    padded = jnp.full((2, 20, 8), jnp.nan).at[0, :9].set(x[0]).at[1, :6].set(x[1, :6])
    run = jax.jit(model.apply)
    out, _ = run(params, padded, lengths)
    expected, _ = run(params, x, lengths)
    np.testing.assert_allclose(out[:, : expected.shape[1]], expected, atol=1e-6)
    assert not np.any(out[:, expected.shape[1] :])


def test_flops_by_hand():
    """16 x 8 inputs: 8 x 4, 4 x 2 and 2 x 1 outputs of 3 channels, then 5 numbers a frame."""
    whole = 2 * (8 * 4 * 9 * 3 + 4 * 2 * 9 * 3 * 3 + 4 * 2 * 3 * 5)
    assert subsampling_flops(16, 8, 3, 5, 4, False) == (whole, 4)
    stages = 8 * 4 * 9 * 3 + 4 * 2 * 3 * (9 + 3) + 2 * 1 * 3 * (9 + 3)
    assert subsampling_flops(16, 8, 3, 5, 8, True) == (2 * (stages + 2 * 3 * 5), 2)
