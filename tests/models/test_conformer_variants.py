"""Laws of the Conformer with batch norm, a window of attention, and rotary positions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.models.encoders.conformer import Conformer

LENGTHS = jnp.array([61, 34, 0])
BATCH = Conformer(dim=16, layers=2, heads=2, kernel=5, n_mels=8, channels=4, norm="batch")
WINDOW = dataclasses.replace(BATCH, norm="layer", window=4)
ROPE = dataclasses.replace(WINDOW, window=0, positions="rope")
MODELS = {"batch": BATCH, "window": WINDOW, "rope": ROPE}
MODELS["rope_window"] = dataclasses.replace(ROPE, window=4)


def features(frames, padding):
    """The same valid frames, whatever the padding."""
    x = np.random.default_rng(0).normal(size=(3, 61, 8)).astype(np.float32)
    out = np.full((3, frames, 8), padding, np.float32)
    for row, n in enumerate(LENGTHS.tolist()):
        out[row, :n] = x[row, :n]
    return jnp.asarray(out)


X = features(61, 0.0)


@functools.cache
def weights(model):
    draw = np.random.default_rng(5)
    moved = lambda p: jnp.asarray(np.asarray(p) + draw.normal(0, 0.1, p.shape), p.dtype)  # noqa: E731
    return jax.tree.map(moved, jax.jit(model.init)(jax.random.key(0)))


def encode(model, x, **how):
    params, stats = weights(model)
    run = jax.jit(lambda p, s, x: model.apply(p, x, LENGTHS, stats=s, **how))
    return run(params, stats, x)


@pytest.mark.daily("batch-train", "rope-causal")
@pytest.mark.parametrize("how", [{"train": True}, {"context": "causal"}], ids=["train", "causal"])
@pytest.mark.parametrize("name", MODELS)
def test_padding_never_matters_nan_included(name, how):
    """Neither to the output nor to the statistics; 61 frames are 16 of output, 73 are 19."""
    short, lengths, _, stats = encode(MODELS[name], X, **how)
    out, _, _, other = encode(MODELS[name], features(73, np.nan), **how)
    assert lengths.tolist() == [16, 9, 0]
    np.testing.assert_allclose(out[:, :16], short, atol=1e-5)  # the law's bound
    assert not np.any(out[:, 16:])
    for a, b in zip(*map(jax.tree.leaves, (stats, other)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())  # a mean's terms cancel


def test_training_moves_the_moments_of_the_blocks_that_ran():
    _, before = weights(BATCH)
    _, _, _, stats = encode(BATCH, X, train=True, depth=1)
    for name in ("mean", "var"):
        assert np.all(stats[name][0] != before[name][0])
        np.testing.assert_array_equal(stats[name][1], before[name][1])


@pytest.mark.parametrize("how", [{}, {"train": True, "context": "causal"}], ids=["eval", "causal"])
def test_evaluation_and_causal_training_take_stored_moments(how):
    """Moments of the batch would make a causal frame depend on its future."""
    out, _, _, stats = encode(BATCH, X, **how)
    jax.tree.map(np.testing.assert_array_equal, stats, weights(BATCH)[1])
    alone = encode(BATCH, X.at[1].set(0.0), **how)[0]
    np.testing.assert_array_equal(alone[0], out[0])


@pytest.mark.slow
def test_batch_permutation_and_recomputation_agree():
    out, _, _, stats = encode(BATCH, X, train=True)
    params, before = weights(BATCH)
    order = jnp.array([2, 0, 1])
    remat = dataclasses.replace(BATCH, remat="full")
    run = jax.jit(lambda p, x, n: remat.apply(p, x, n, stats=before, train=True))
    other, _, _, moved = run(params, X[order], LENGTHS[order])
    np.testing.assert_allclose(other, out[order], atol=1e-5)  # sums over the batch, reordered
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), moved, stats)


@pytest.mark.daily("rope_window")
@pytest.mark.parametrize("name", ["window", "rope_window"])
def test_a_window_sees_as_far_as_its_blocks_and_no_further(name):
    """Two blocks of 2 frames of attention and 2 of convolution on either side: 8 output frames."""
    params, _ = weights(MODELS[name])
    run = jax.jit(lambda params, x: MODELS[name].apply(params, x, LENGTHS)[0])
    out = run(params, X)
    # feature frame 48 is in reach of frame 12 of the front end, that of output frames 4 and up
    changed = run(params, X.at[:, 48:].set(7.0))
    np.testing.assert_allclose(changed[0, :4], out[0, :4], atol=1e-6)
    assert np.any(np.abs(changed[0, 4:12] - out[0, 4:12]) > 1e-4)


@pytest.mark.slow
def test_weights_serve_with_and_without_a_window():
    whole = dataclasses.replace(WINDOW, window=0)
    shapes = [jax.eval_shape(m.init, jax.random.key(0))[0] for m in (WINDOW, whole)]
    assert shapes[0] == shapes[1]
    wide = dataclasses.replace(WINDOW, window=32)
    np.testing.assert_allclose(encode(wide, X)[0], encode(whole, X)[0], atol=1e-6)


@pytest.mark.parametrize("name", ["window", "rope", "rope_window"])
def test_a_causal_encoder_reads_no_future_frame(name):
    """Frame t of the output depends on the feature frames up to 4 t + 3; all of them matter."""
    params, _ = weights(MODELS[name])
    run = jax.jit(lambda params, x: MODELS[name].apply(params, x, LENGTHS, context="causal")[0])
    out, changed = run(params, X), run(params, X.at[:, 24:].set(7.0))
    np.testing.assert_allclose(changed[:, :6], out[:, :6], atol=1e-6)
    assert np.all(np.abs(changed[0, 6:] - out[0, 6:]).max(-1) > 1e-4)


def test_rope_has_no_parameter_for_positions_and_needs_even_heads():
    shapes = ROPE.shapes()["blocks"]["attention"]
    assert sorted(shapes) == ["key", "out", "query", "value"]
    with pytest.raises(UserError, match="heads of even width: dim/heads is 3"):
        dataclasses.replace(ROPE, dim=18, heads=6)


def test_flops_count_the_blocks_that_run_and_the_keys_in_the_window():
    whole = dataclasses.replace(WINDOW, window=0)
    front, one, two = (whole.flops(400, depth) for depth in (0, 1, 2))
    assert two == whole.flops(400) == front + 2 * (one - front)
    # 100 output frames; 5 keys of a window of 4 for 100, at 6 operations a key, channel and query
    assert two - WINDOW.flops(400) == 2 * 100 * 95 * 6 * 16
    assert WINDOW.flops(12) == whole.flops(12)
    # rope has no position scores
    assert whole.flops(400) - ROPE.flops(400) == 2 * 100 * 100 * 2 * 16


def test_batch_norm_needs_its_moments_and_starts_at_0_and_1():
    params, stats = jax.jit(BATCH.init)(jax.random.key(0))
    np.testing.assert_array_equal(stats["mean"], np.zeros((2, 16)))
    np.testing.assert_array_equal(stats["var"], np.ones((2, 16)))
    with pytest.raises(ValueError, match="needs stats"):
        BATCH.apply(params, X, LENGTHS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"norm": "group"}, "norm='group': .* There are: layer, batch"), ({"window": 1}, "window=1")],
)
def test_impossible_fields_are_the_users_error(fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(BATCH, **fields)
