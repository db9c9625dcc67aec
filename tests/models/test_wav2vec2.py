"""Laws of wav2vec 2.0: padding, masks, skipped blocks, positions, sizes, and its waveforms."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bljust_jax.common.errors import UserError
from bljust_jax.models.encoders.wav2vec2 import SIZES, Wav2Vec2
from bljust_jax.models.wav2vec2_blocks import grouped_conv
from bljust_jax.ops.masking import InputMask
from tests.helpers.finite_difference import check_slope
from tests.helpers.parameters import randomised
from tests.helpers.rounding import assert_close_in_bfloat16

# Three convolutions, 30 samples a frame and 20 between frames: they compile fast.
LARGE = Wav2Vec2(
    dim=16,
    layers=2,
    heads=2,
    ff_dim=32,
    conv_dim=(8, 12, 8),
    conv_kernel=(5, 4, 2),
    conv_stride=(5, 2, 2),
    conv_bias=True,
    feat_norm="layer",
    stable_layer_norm=True,
    pos_kernel=6,
    pos_groups=2,
)
BASE = dataclasses.replace(LARGE, conv_bias=False, feat_norm="group", stable_layer_norm=False)
MODELS = {"base": BASE, "large": LARGE}
SAMPLES, LENGTHS = 700, jnp.array([700, 480, 0])
FRAMES = [34, 23, 0]


@functools.cache
def parameters(kind):
    return randomised(jax.jit(MODELS[kind].init)(jax.random.key(0))[0])


@functools.cache
def audio():
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, SAMPLES)), jnp.float32)


@functools.cache
def input_mask():
    draw = np.random.default_rng(2)
    time, channels = draw.random((3, FRAMES[0])) < 0.4, draw.random((3, 16)) < 0.2
    return InputMask(jnp.asarray(time), jnp.asarray(channels))


@functools.cache
def runner(model, **options):
    """`model.apply` compiled once per set of options."""
    return jax.jit(
        lambda p, x, n, input_mask=None: model.apply(p, x, n, input_mask=input_mask, **options)
    )


def encoded(kind):
    return runner(MODELS[kind])(parameters(kind), audio(), LENGTHS)


@functools.cache
def differentiated(model, **options):
    """(the outputs of `apply`, gradients of a loss in which every valid output counts
    differently), compiled once per set of options."""

    def loss(params, x):
        results = model.apply(params, x, LENGTHS, **options)
        out = results[0][:, :9]  # valid in the rows that are not empty
        weights = jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
        return jnp.sum(out * weights), results

    return jax.jit(jax.grad(loss, has_aux=True))


@functools.cache
def gradients(kind):
    return differentiated(MODELS[kind])(parameters(kind), audio())[0]


def assert_trees_close(a, b, rtol):
    """Each leaf within rtol of its own largest value, or of 0.1: a key's bias has gradient 0."""

    def check(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.max(np.abs(a - b)) <= rtol * max(np.max(np.abs(b)), 0.1)

    jax.tree.map(check, a, b)


@pytest.mark.daily("base")
@pytest.mark.parametrize("kind", MODELS)
def test_shapes_lengths_and_zeros_in_padded_frames(kind):
    out, lengths, hidden, stats = encoded(kind)
    assert lengths.tolist() == FRAMES == [MODELS[kind].frames(n) for n in LENGTHS.tolist()]
    assert out.shape == (3, 34, 16)
    assert hidden["latents"].shape == hidden["conv"].shape == (3, 34, 8)
    assert stats == {}
    for values in (out, hidden["latents"], hidden["conv"]):
        assert values.dtype == jnp.float32
        for row, n in zip(values, FRAMES, strict=True):
            assert np.all(np.isfinite(row))
            assert np.all(np.any(row[:n], axis=-1))
            assert not np.any(row[n:])


@pytest.mark.daily("large")
@pytest.mark.parametrize("kind", MODELS)
def test_padding_never_matters_nan_included(kind):
    padded = jnp.full((3, 900), jnp.nan)
    for row, n in enumerate(LENGTHS.tolist()):
        padded = padded.at[row, :n].set(audio()[row, :n])
    grads, (out, _, hidden, _) = differentiated(MODELS[kind])(parameters(kind), padded)
    expected, _, features, _ = encoded(kind)
    # The law's bound: sums of other lengths round differently in float32.
    np.testing.assert_allclose(out[:, :34], expected, atol=1e-5)
    for name in ("latents", "conv"):
        np.testing.assert_allclose(hidden[name][:, :34], features[name], atol=1e-5)
    assert not np.any(out[:, 34:])
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


def test_the_group_norm_of_transformers_depends_on_padding():
    model = dataclasses.replace(BASE, hf_compat=True)
    out = runner(model)(parameters("base"), audio(), LENGTHS)[0]
    np.testing.assert_allclose(out[0], encoded("base")[0][0], atol=1e-5)  # the row without padding
    assert np.max(np.abs(out[1] - encoded("base")[0][1])) > 1e-3


def test_batch_permutation_is_equivariant():
    order = jnp.array([2, 0, 1])
    out = runner(BASE)(parameters("base"), audio()[order], LENGTHS[order])[0]
    np.testing.assert_allclose(out, encoded("base")[0][order], atol=1e-6)


def test_masks_replace_frames_and_channels_before_the_transformer():
    params = parameters("large")

    def run(x, input_mask, params=params):
        return runner(LARGE)(params, x, LENGTHS, input_mask)

    out, _, hidden, _ = run(audio(), input_mask())
    assert np.max(np.abs(out - encoded("large")[0])) > 1e-2
    for name in ("latents", "conv"):
        np.testing.assert_allclose(hidden[name], encoded("large")[2][name], atol=1e-6)
    whole = InputMask(jnp.ones_like(input_mask().time), input_mask().channels)
    np.testing.assert_array_equal(run(audio(), whole)[0], run(2 * audio(), whole)[0])
    silent = InputMask(input_mask().time, jnp.ones_like(input_mask().channels))
    np.testing.assert_array_equal(run(audio(), silent)[0], run(2 * audio(), silent)[0])
    other = params | {"masked_embedding": params["masked_embedding"] + 1}
    assert np.any(run(audio(), input_mask(), other)[0] != out)
    # channels are masked last
    np.testing.assert_array_equal(run(audio(), silent, other)[0], run(audio(), silent)[0])


@pytest.mark.slow
def test_recomputed_and_unrolled_blocks_agree():
    model = dataclasses.replace(BASE, scan_unroll=2, remat="full")
    grads, results = differentiated(model)(parameters("base"), audio())
    np.testing.assert_allclose(results[0], encoded("base")[0], atol=1e-5)
    assert_trees_close(grads, gradients("base"), 1e-4)  # float32 sums, fused differently


@pytest.mark.slow
def test_upto_runs_the_first_blocks_and_leaves_out_the_last_norm_of_a_stable_encoder():
    params = parameters("large")
    grads, results = differentiated(LARGE, depth=1)(params, audio())
    assert all(not np.any(g[1:]) for g in jax.tree.leaves(grads["blocks"]))
    assert all(np.any(g[:1]) for g in jax.tree.leaves(grads["blocks"]))
    assert not np.any(grads["norm"]["scale"])
    short = dataclasses.replace(LARGE, layers=1)
    first = jax.tree.map(lambda leaf: leaf[:1], params["blocks"])
    out = runner(short)({**params, "blocks": first}, audio(), LENGTHS)[0]
    x, norm = results[0], params["norm"]
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    deviation = jnp.sqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-5)
    normed = centred / deviation * norm["scale"][None, None, :] + norm["bias"][None, None, :]
    np.testing.assert_allclose(out[0], normed[0], atol=1e-5)


@pytest.mark.slow
def test_bfloat16_is_close_and_its_gradients_are_finite():
    half, params = dataclasses.replace(LARGE, dtype="bfloat16"), parameters("large")
    grads, (out, *_) = differentiated(half)(params, audio())
    assert out.dtype == jnp.float32
    # 3 convolutions of 3 operations, 5 up to the blocks, 2 blocks of 12
    assert_close_in_bfloat16(out, encoded("large")[0], 3 * 3 + 5 + 2 * 12)
    for grad, leaf in zip(jax.tree.leaves(grads), jax.tree.leaves(params), strict=True):
        assert grad.dtype == leaf.dtype
        assert np.all(np.isfinite(grad))


def test_gradient_matches_a_finite_difference_in_float64():
    model = dataclasses.replace(BASE, dtype="float64")
    with jax.enable_x64(True):
        x = jnp.asarray(audio(), jnp.float64)

        def output(moved):
            return model.apply(moved, x, LENGTHS, input_mask=input_mask())[0]

        check_slope(output, parameters("base"))


@pytest.mark.slow
def test_the_gradient_of_the_convolutions_is_scaled_and_no_other():
    def grads(scale):
        model = dataclasses.replace(BASE, feature_grad_scale=scale)

        def loss(params):
            hidden = model.apply(params, audio(), LENGTHS)[2]
            return sum(jnp.sum(jnp.sin(h)) for h in hidden.values())

        return jax.jit(jax.grad(loss))(parameters("base"))

    expected, tenth = grads(1.0), grads(0.1)
    assert any(map(np.any, jax.tree.leaves(expected["frontend"])))
    scaled = jax.tree.map(lambda g: 0.1 * g, expected["frontend"])
    assert_trees_close(tenth, {**expected, "frontend": scaled}, 1e-4)  # compiled apart


def test_dropout_needs_a_key_acts_in_training_only_and_repeats():
    model, params = dataclasses.replace(BASE, dropout=0.5), parameters("base")
    with pytest.raises(ValueError, match="rng"):
        model.apply(params, audio(), LENGTHS, train=True)
    run = jax.jit(lambda key: model.apply(params, audio(), LENGTHS, train=True, rng=key)[0])
    first = run(jax.random.key(1))
    assert np.any(np.abs(first - encoded("base")[0]) > 1e-3)
    np.testing.assert_array_equal(run(jax.random.key(1)), first)
    assert np.any(run(jax.random.key(2)) != first)
    assert not np.any(first[1, 23:])


@pytest.mark.slow
def test_skipped_blocks_leave_the_others_in_training_only():
    """Two blocks: four outputs occur, that of both and that of none among them."""
    model, params = dataclasses.replace(BASE, layerdrop=0.5), parameters("base")
    run = jax.jit(lambda key: model.apply(params, audio(), LENGTHS, train=True, rng=key)[0])
    outputs = np.stack([run(jax.random.key(seed)) for seed in range(20)])
    assert len(np.unique(outputs, axis=0)) == 4
    none = runner(BASE, depth=0)(params, audio(), LENGTHS)[0]
    for expected in (encoded("base")[0], none):
        assert min(np.max(np.abs(out - expected)) for out in outputs) < 1e-5  # compiled apart
    evaluated = dataclasses.replace(model, dropout=0.5)
    np.testing.assert_array_equal(
        runner(evaluated)(params, audio(), LENGTHS)[0], encoded("base")[0]
    )


@pytest.mark.parametrize("taps", [5, 6])
def test_grouped_convolution_is_that_of_lax(taps):
    draw = np.random.default_rng(3)
    with jax.enable_x64(True):
        x = jnp.asarray(draw.normal(size=(2, 9, 6)))
        kernel = jnp.asarray(draw.normal(size=(taps, 2, 6)))

        def reference(x, kernel):
            axes, pads = ("NWC", "WIO", "NWC"), [(taps // 2, taps - 1 - taps // 2)]
            return lax.conv_general_dilated(
                x, kernel, (1,), pads, dimension_numbers=axes, feature_group_count=3
            )

        weights = jnp.asarray(draw.normal(size=x.shape))

        def run(f):
            value = jax.vjp(f, x, kernel)
            return value[0], value[1](weights)

        results = [jax.jit(functools.partial(run, f))() for f in (grouped_conv, reference)]
        # float64 sums of 12 products of size 1
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), *results)


def test_positions_depend_on_the_direction_of_each_tap_alone():
    params = parameters("base")
    lengths = 1.0 + jnp.arange(6.0)[:, None, None]
    longer = params["positions"] | {"kernel": params["positions"]["kernel"] * lengths}
    out = runner(BASE)({**params, "positions": longer}, audio(), LENGTHS)[0]
    np.testing.assert_allclose(out, encoded("base")[0], atol=1e-5)


@pytest.mark.slow
def test_initial_scales_and_determinism():
    params, stats = LARGE.init(jax.random.key(0))
    again, _ = jax.jit(LARGE.init)(jax.random.key(0))
    assert stats == {}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params, again)
    up = params["blocks"]["up"]["kernel"]
    assert up.shape == (2, 16, 32)
    np.testing.assert_allclose(np.std(up), 16**-0.5, rtol=0.08)  # 1024 draws: 2.2 % standard error
    assert np.any(up[0] != up[1])
    assert np.all((params["masked_embedding"] >= 0) & (params["masked_embedding"] < 1))
    kernel, gain = params["positions"]["kernel"], params["positions"]["gain"]
    norms = np.sqrt(np.sum(np.square(kernel), axis=(1, 2)))
    np.testing.assert_allclose(gain, norms * np.sqrt(2), rtol=1e-5)


# `sum(p.numel() for p in model.parameters())` of transformers' Wav2Vec2Model.
@pytest.mark.slow
@pytest.mark.parametrize(("size", "total"), [("base", 94371712), ("large", 315438720)])
def test_published_sizes_have_as_many_parameters_as_theirs(size, total):
    shapes = Wav2Vec2(**SIZES[size]).shapes()
    leaves = jax.tree.leaves(shapes, is_leaf=lambda node: isinstance(node, tuple))
    assert sum(int(np.prod(shape)) for shape in leaves) == total


def test_a_frame_is_400_samples_and_the_next_begins_320_later():
    model = Wav2Vec2(**SIZES["base"])
    assert [model.frames(n) for n in (0, 399, 400, 719, 720, 16000)] == [0, 0, 1, 1, 2, 49]
    counts = model.frames(jnp.array([399, 720]))
    np.testing.assert_array_equal(counts, [0, 2])


@pytest.mark.slow
def test_flops_are_those_the_compiler_counts_in_the_products():
    """XLA adds element-wise work and Fourier transforms: ours is below, by less than a third."""
    wide = {"dim": 64, "ff_dim": 256, "conv_dim": (64,) * 3, "pos_groups": 32}
    model = dataclasses.replace(LARGE, layers=1, **wide)
    shapes = jax.eval_shape(model.init, jax.random.key(0))[0]
    x = jax.ShapeDtypeStruct((1, 4000), jnp.float32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    compiled = jax.jit(lambda p, x, n: model.apply(p, x, n)[0]).lower(shapes, x, lengths).compile()
    counted = compiled.cost_analysis()["flops"]
    assert 0.67 * counted < model.flops(4000) < counted
    deep = dataclasses.replace(model, layers=3)
    assert deep.flops(4000, depth=1) == model.flops(4000) < deep.flops(4000)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 3}, "dim=16 must be a multiple of heads=3"),
        ({"pos_groups": 5}, "pos_groups=5"),
        ({"conv_dim": (8, 8)}, "conv_dim, conv_kernel and conv_stride"),
        ({"feat_norm": "batch"}, "feat_norm='batch': .* There are: group, layer"),
        ({"dtype": "bf16"}, "dtype='bf16'"),
    ],
)
def test_impossible_fields_are_the_users_error(fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(BASE, **fields)


def test_another_context_and_an_unknown_depth_are_refused():
    with pytest.raises(UserError, match="'causal'"):
        BASE.apply(parameters("base"), audio(), LENGTHS, context="causal")
    with pytest.raises(ValueError, match="depth=3"):
        BASE.apply(parameters("base"), audio(), LENGTHS, depth=3)
