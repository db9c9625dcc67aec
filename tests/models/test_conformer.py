"""Laws of the encoder: padding, permutation, causality, execution modes, published sizes."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.models.encoders.conformer import SIZES, Conformer
from tests.helpers.closed_forms import receptive_field
from tests.helpers.finite_difference import check_slope
from tests.helpers.parameters import randomised
from tests.helpers.rounding import assert_close_in_bfloat16

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SMALL = Conformer(dim=16, layers=3, heads=2, kernel=5, n_mels=8, channels=4)
PARAKEET = dataclasses.replace(SMALL, subsampling="parakeet", layers=1)
LENGTHS = jnp.array([29, 18, 0])


@functools.cache
def initial():
    """(parameters, statistics) of SMALL."""
    return jax.jit(SMALL.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def params():
    return randomised(initial()[0])


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, 29, 8)), jnp.float32)


@functools.cache
def forward(model, **options):
    return jax.jit(lambda p, x, n: model.apply(p, x, n, **options))


def encode(model, params, x, lengths, **options):
    return forward(model, **options)(params, x, lengths)


@functools.cache
def backward(model, **options):
    def loss(params, x, lengths):
        outputs = model.apply(params, x, lengths, **options)
        weights = jnp.sin(jnp.arange(outputs[0].size, dtype=outputs[0].dtype))
        return jnp.sum(outputs[0] * weights.reshape(outputs[0].shape)), outputs

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def encode_and_grads(model, params, x, lengths, **options):
    """What `encode` gives, a loss in which every valid output counts differently, its gradients."""
    (value, outputs), grads = backward(model, **options)(params, x, lengths)
    return outputs, value, grads


def assert_trees_close(a, b, rtol):
    """Each leaf within rtol of its own largest value."""

    def check(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.max(np.abs(a - b)) <= rtol * max(np.max(np.abs(b)), 1e-3)

    jax.tree.map(check, a, b)


def test_shapes_lengths_and_zeros_in_padded_frames(params, x):
    out, lengths, hidden, stats = encode(SMALL, params, x, LENGTHS)
    assert out.shape == hidden["latents"].shape == (3, 8, 16)
    assert lengths.tolist() == [8, 5, 0]
    assert stats == {}
    assert out.dtype == hidden["latents"].dtype == jnp.float32
    for row, latents, n in zip(out, hidden["latents"], lengths.tolist(), strict=True):
        assert np.all(np.isfinite(row))
        assert not np.any(row[n:])
        assert not np.any(latents[n:])


def nan_padded(x):
    """[3, 41, 8], NaN in padded frames."""
    padded = np.full((3, 41, 8), np.nan, np.float32)
    for row, n in enumerate(LENGTHS.tolist()):
        padded[row, :n] = x[row, :n]
    return jnp.asarray(padded)


@pytest.mark.daily("full")
@pytest.mark.parametrize("context", ["full", "causal"])
def test_padding_never_matters_nan_included(params, x, context):
    padded = nan_padded(x)
    outputs, _, grads = encode_and_grads(SMALL, params, padded, LENGTHS, context=context)
    out, _, hidden, _ = outputs
    expected, _, latents, _ = encode(SMALL, params, x, LENGTHS, context=context)
    # The law's bound: sums of other lengths round differently in float32.
    np.testing.assert_allclose(out[:, :8], expected, atol=1e-5)
    np.testing.assert_allclose(hidden["latents"][:, :8], latents["latents"], atol=1e-5)
    assert not np.any(out[:, 8:])
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "lengths"), [(0, [4, 3, 0]), (4, [8, 5, 0])])
def test_parakeet_subsampling_keeps_the_laws(x, factor, lengths):
    """Frames, zeros and NaN in padding, and how far a causal encoder looks ahead."""
    model = dataclasses.replace(PARAKEET, subsampling_factor=factor)
    params = randomised(jax.jit(model.init)(jax.random.key(0))[0])
    padded = nan_padded(x)
    out, out_lengths, _, _ = encode(model, params, padded, LENGTHS, context="causal")
    assert out_lengths.tolist() == lengths == [model.frames(n) for n in LENGTHS.tolist()]
    assert out.shape == (3, model.frames(41), 16)
    expected = encode(model, params, x, LENGTHS, context="causal")[0]
    np.testing.assert_allclose(out[:, : expected.shape[1]], expected, atol=1e-5)  # as above
    assert not np.any(out[:, expected.shape[1] :])
    stride, _, right = receptive_field(model.factor)
    after = stride * 2 + right + 1
    changed = encode(model, params, sevens_from(padded, after), LENGTHS, context="causal")[0]
    np.testing.assert_array_equal(changed[:, :3], out[:, :3])
    assert np.any(changed[0, 3] != out[0, 3])
    _, _, grads = encode_and_grads(model, params, padded, LENGTHS)
    assert all(np.all(np.isfinite(g)) and np.any(g) for g in jax.tree.leaves(grads["frontend"]))


def test_batch_permutation_is_equivariant(params, x):
    order = jnp.array([2, 0, 1])
    out = encode(SMALL, params, x, LENGTHS)[0]
    np.testing.assert_allclose(
        encode(SMALL, params, x[order], LENGTHS[order])[0], out[order], atol=1e-6
    )


def sevens_from(x, frame):
    changed = np.array(x)
    changed[:, frame:] = 7
    return jnp.asarray(changed)


def test_causal_output_sees_nothing_after_its_receptive_field(params, x):
    stride, _, right = receptive_field()
    out = encode(SMALL, params, x, LENGTHS, context="causal")[0]
    for t in (0, 3, 6):
        after = stride * t + right + 1
        changed = encode(SMALL, params, sevens_from(x, after), LENGTHS, context="causal")[0]
        np.testing.assert_array_equal(changed[:, : t + 1], out[:, : t + 1])
        assert np.any(changed[0, t + 1] != out[0, t + 1])


def test_a_single_frame_has_the_same_output_in_both_contexts(params, x):
    lengths = jnp.array([4, 3, 1])
    full = encode(SMALL, params, x, lengths)[0]
    causal = encode(SMALL, params, x, lengths, context="causal")[0]
    np.testing.assert_allclose(causal, full, atol=1e-5)  # one frame, summed with other zeros


def test_full_context_sees_the_future(params, x):
    out = encode(SMALL, params, x, LENGTHS)[0]
    changed = encode(SMALL, params, sevens_from(x, 20), LENGTHS)[0]
    assert np.any(np.abs(changed[0, 0] - out[0, 0]) > 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"remat": "full"}, {"scan_unroll": 2, "remat": "full"}, {"remat": "dots"}]
)
def test_execution_modes_agree(params, x, options):
    _, value, grads = encode_and_grads(SMALL, params, x, LENGTHS)
    model = dataclasses.replace(SMALL, **options)
    _, other, other_grads = encode_and_grads(model, params, x, LENGTHS)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    assert_trees_close(other_grads, grads, 1e-4)  # float32 sums, fused differently


@pytest.mark.slow
def test_upto_runs_the_first_blocks(params, x):
    short = dataclasses.replace(SMALL, layers=2)
    first = jax.tree.map(lambda leaf: leaf[:2], params["blocks"])
    expected = encode(short, {**params, "blocks": first}, x, LENGTHS)[0]
    unrolled = dataclasses.replace(SMALL, scan_unroll=3)
    np.testing.assert_allclose(
        encode(unrolled, params, x, LENGTHS, depth=2)[0], expected, atol=1e-6
    )
    none, _, hidden, _ = encode(SMALL, params, x, LENGTHS, depth=0)
    np.testing.assert_array_equal(none, hidden["latents"])
    _, _, grads = encode_and_grads(SMALL, params, x, LENGTHS, depth=2)
    assert all(not np.any(g[2:]) for g in jax.tree.leaves(grads["blocks"]))
    assert all(np.any(g[:2]) for g in jax.tree.leaves(grads["blocks"]))


@pytest.mark.slow
def test_bfloat16_is_close_and_its_gradients_are_finite(params, x):
    half = dataclasses.replace(SMALL, dtype="bfloat16")
    (out, *_), _, grads = encode_and_grads(half, params, x, LENGTHS)
    expected = encode(SMALL, params, x, LENGTHS)[0]
    assert out.dtype == jnp.float32
    # 4 of the subsampling, 3 blocks of 22: norm, two products, activation and sum per branch
    assert_close_in_bfloat16(out, expected, 4 + 3 * 22)
    for grad, leaf in zip(jax.tree.leaves(grads), jax.tree.leaves(params), strict=True):
        assert grad.dtype == leaf.dtype
        assert np.all(np.isfinite(grad))


def test_gradient_matches_a_finite_difference_in_float64(params, x):
    model = dataclasses.replace(SMALL, dtype="float64")
    with jax.enable_x64(True):
        features = jnp.asarray(np.asarray(x, np.float64))
        check_slope(lambda moved: model.apply(moved, features, LENGTHS)[0], params)


@pytest.mark.slow
def test_dropout_needs_a_key_acts_in_training_only_and_repeats(params, x):
    model = dataclasses.replace(SMALL, dropout=0.5)
    with pytest.raises(ValueError, match="rng"):
        model.apply(params, x, LENGTHS, train=True)
    out = encode(SMALL, params, x, LENGTHS)[0]
    np.testing.assert_array_equal(encode(model, params, x, LENGTHS)[0], out)
    run = jax.jit(lambda key: model.apply(params, x, LENGTHS, train=True, rng=key)[0])
    first = run(jax.random.key(1))
    assert np.any(np.abs(first - out) > 1e-3)
    np.testing.assert_array_equal(run(jax.random.key(1)), first)
    assert np.any(run(jax.random.key(2)) != first)
    assert not np.any(first[1, 5:])


def test_initial_scale_and_determinism():
    params, stats = initial()
    again, _ = jax.jit(SMALL.init)(jax.random.key(0))
    assert stats == {}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, again)
    up = params["blocks"]["ff1"]["up"]["kernel"]
    assert up.shape == (3, 16, 64)
    np.testing.assert_allclose(np.std(up), 16**-0.5, rtol=0.05)  # 3072 draws: 1.3 % standard error
    assert np.any(up[0] != up[1])
    np.testing.assert_array_equal(params["blocks"]["norm"]["scale"], 1.0)


@pytest.mark.daily("L", "tiny_parakeet")
@pytest.mark.parametrize("size", [*SIZES, "tiny_parakeet"])
def test_parameters_are_the_golden_ones(size):
    name, _, kind = size.partition("_")
    model = Conformer(**SIZES[name], n_mels=40 if name == "tiny" else 80)
    model = dataclasses.replace(model, subsampling=kind or "conv2d")
    shapes = jax.eval_shape(model.init, jax.random.key(0))[0]
    leaves = jax.tree_util.tree_flatten_with_path(shapes)[0]
    table = {
        "/".join(k.key for k in path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in leaves
    }
    total = sum(leaf.size for _, leaf in leaves)
    golden = json.loads((GOLDEN / f"conformer_{size}.json").read_text())
    assert {"total": total, "parameters": table} == golden


@pytest.mark.slow
@pytest.mark.parametrize("subsampling", ["conv2d", "parakeet"])
def test_flops_are_those_the_compiler_counts_in_the_products(subsampling):
    """XLA adds element-wise work and unused distances: ours is below, by less than a third."""
    model = dataclasses.replace(SMALL, dim=64, layers=1, channels=32, n_mels=40)
    model = dataclasses.replace(model, subsampling=subsampling)
    shapes = jax.eval_shape(model.init, jax.random.key(0))[0]
    x = jax.ShapeDtypeStruct((1, 128, 40), jnp.float32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    compiled = jax.jit(lambda p, x, n: model.apply(p, x, n)[0]).lower(shapes, x, lengths).compile()
    counted = compiled.cost_analysis()["flops"]
    assert 0.67 * counted < model.flops(128) < counted


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 15}, "dim=15"),
        ({"kernel": 4}, "kernel=4"),
        ({"dtype": "bf16"}, "dtype='bf16'"),
        ({"subsampling": "conv1d"}, "subsampling='conv1d': .* There are: conv2d, parakeet"),
        ({"subsampling_factor": 6}, "subsampling_factor=6"),
    ],
)
def test_impossible_fields_are_the_users_error(fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **fields)


def test_unknown_context_and_depth_are_refused(params, x):
    with pytest.raises(ValueError, match="depth=4"):
        SMALL.apply(params, x, LENGTHS, depth=4)
