"""Layer norm against its formula; batch norm against numpy, over devices, in causal use."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from bljust_jax.models.norms import BatchNorm, LayerNorm, layer_norm
from tests.helpers.residuals import residuals

SCALE, BIAS = np.array([1.5, -0.5, 2.0], np.float32), np.array([0.1, 0.0, -1.0], np.float32)
PARAMS = {"params": {"scale": SCALE, "bias": BIAS}}
STATS = {"mean": jnp.array([1.0, 0.0, -1.0]), "var": jnp.array([0.5, 1.0, 2.0])}


def batch(seed=0, rows=8):
    draw = np.random.default_rng(seed)
    x = draw.normal(5, 2, (rows, 6, 3)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(np.arange(6)[None] < draw.integers(0, 7, rows)[:, None])


def test_training_takes_the_moments_of_valid_frames_and_moves_the_stored_ones():
    x, valid = batch()
    y, stats = BatchNorm().apply(PARAMS, x, valid, STATS, True)
    frames = np.asarray(x[valid], np.float64)
    expected = (frames - frames.mean(0)) / np.sqrt(frames.var(0) + 1e-5) * SCALE + BIAS
    np.testing.assert_allclose(y[valid], expected, atol=1e-5)  # float32 sums of about 24 frames
    np.testing.assert_allclose(stats["mean"], 0.9 * STATS["mean"] + 0.1 * frames.mean(0), rtol=1e-6)
    var = 0.9 * STATS["var"] + 0.1 * frames.var(0, ddof=1)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-6)


def test_evaluation_takes_the_stored_moments_and_keeps_them():
    x, valid = batch()
    y, stats = BatchNorm().apply(PARAMS, x, valid, STATS)
    expected = (np.asarray(x) - np.asarray(STATS["mean"])) / np.sqrt(STATS["var"] + 1e-5)
    np.testing.assert_allclose(y, expected * SCALE + BIAS, rtol=1e-5, atol=1e-5)
    assert stats is STATS


def test_padded_frames_never_matter():
    x, valid = batch()
    other = jnp.where(valid[..., None], x, 1e6)
    run = jax.jit(lambda x: BatchNorm().apply(PARAMS, x, valid, STATS, True))
    (y, stats), (other_y, other_stats) = run(x), run(other)
    np.testing.assert_array_equal(y[valid], other_y[valid])
    jax.tree.map(np.testing.assert_array_equal, stats, other_stats)


@pytest.mark.parametrize("frames", [0, 1])
def test_no_frame_moves_nothing_and_one_is_finite(frames):
    x, valid = batch()[0], jnp.zeros((8, 6), bool).at[2, :frames].set(True)
    run = lambda x: BatchNorm().apply(PARAMS, x, valid, STATS, True)  # noqa: E731
    y, stats = run(x)
    assert np.all(np.isfinite(y[valid]))
    if not frames:
        jax.tree.map(np.testing.assert_array_equal, stats, STATS)
    grad = jax.grad(lambda x: jnp.sum(jnp.where(valid[..., None], run(x)[0], 0.0) ** 2))(x)
    assert np.all(np.isfinite(grad))


def test_gradients_go_through_the_moments():
    """Against finite differences in float64."""
    with jax.enable_x64(True):
        x, valid = batch(rows=2)
        run = lambda x: BatchNorm(dtype=jnp.float64).apply(PARAMS, x, valid, STATS, True)[0]  # noqa: E731
        loss = jax.jit(lambda x: jnp.where(valid[..., None], jnp.sin(run(x)), 0.0))
        check_grads(loss, (jnp.asarray(x, jnp.float64),), 1, ["rev"], atol=1e-6, rtol=1e-6)


def test_moments_of_a_batch_on_eight_devices_are_global():
    x, valid = batch()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    run = jax.jit(lambda x, valid: BatchNorm().apply(PARAMS, x, valid, STATS, True))
    y, stats = run(jax.device_put(x, rows), jax.device_put(valid, rows))
    whole, expected = run(x, valid)
    np.testing.assert_allclose(y, whole, atol=1e-5)  # partial sums in another order
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), stats, expected)


def test_half_precision_keeps_float32_moments():
    x, valid = batch()
    x, half = x.astype(jnp.bfloat16), BatchNorm(dtype=jnp.bfloat16)
    _, exact = BatchNorm().apply(PARAMS, x.astype(jnp.float32), valid, STATS, True)
    y, stats = half.apply(PARAMS, x, valid, STATS, True)
    assert y.dtype == jnp.bfloat16
    jax.tree.map(np.testing.assert_array_equal, stats, exact)


def plain_layer_norm(x, scale, bias, axis):
    mean, var = jnp.mean(x, axis, keepdims=True), jnp.var(x, axis, keepdims=True)
    others = [n for n in range(x.ndim) if n != axis % x.ndim]
    scale, bias = (jnp.expand_dims(v, others) for v in (scale, bias))
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


@pytest.mark.parametrize("axis", [-1, -2])
def test_layer_norm_and_its_gradients_are_those_of_the_formula(axis):
    """In float64, against autodiff of the formula and finite differences."""
    draw = np.random.default_rng(0)
    size = (2, 5, 4, 3)[axis]
    with jax.enable_x64(True):
        args = [jnp.asarray(draw.normal(3, 2, shape)) for shape in ((2, 5, 4, 3), size, size)]
        weight = jnp.asarray(draw.normal(size=(2, 5, 4, 3)))
        ours = lambda *args: layer_norm(*args, axis)  # noqa: E731

        def grads(norm):
            return jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(norm(*a)) * weight), (0, 1, 2))

        expected = grads(lambda *args: plain_layer_norm(*args, axis))(*args)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
            grads(ours)(*args), expected,
        )  # fmt: skip
        check_grads(jax.jit(ours), args, 1, ["rev"], atol=1e-6, rtol=1e-6)


def test_layer_norm_of_bfloat16_is_rounded_once_and_keeps_x_and_two_numbers_per_row():
    x = jnp.asarray(np.random.default_rng(0).normal(100, 1, (2, 6, 8)), jnp.bfloat16)
    scale, bias = jnp.ones(8), jnp.zeros(8)
    half = lambda x, scale, bias: layer_norm(x, scale, bias, dtype=jnp.bfloat16)  # noqa: E731
    y, pull = jax.vjp(half, x, scale, bias)
    exact, exact_pull = jax.vjp(
        lambda *a: plain_layer_norm(*a, -1), x.astype(jnp.float32), scale, bias
    )
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.bfloat16)
    for got, want in zip(pull(weight), exact_pull(weight.astype(jnp.float32)), strict=True):
        np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=2**-7, atol=1e-3)
    kept = {residual.type for residual in residuals(half, x, scale, bias)}
    assert kept <= {"f32[2,6,1]", "f32[]"}


def test_layer_norm_has_the_parameters_of_flax():
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    params = LayerNorm().init(jax.random.key(1), x)
    theirs = nn.LayerNorm(epsilon=1e-5)
    jax.tree.map(np.testing.assert_array_equal, params, theirs.init(jax.random.key(1), x))
    np.testing.assert_allclose(LayerNorm().apply(params, x), theirs.apply(params, x), atol=1e-5)
