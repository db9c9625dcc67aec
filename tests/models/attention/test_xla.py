"""Attention in plain XLA: its VJP against autodiff and finite differences, masks, windows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.models.attention import Task, xla
from bljust_jax.models.attention.relative import chunk_size, position_scores
from bljust_jax.models.platform import compile_for


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


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
    task = Task(3, jnp.float32, True, causal, reach)
    first = frames - 1 - reach

    def local(query, position_query, key, value, position):
        position = position[first : first + reach + ahead + 1]
        return xla.local_attention(query, key, value, position_query, position, valid, task)

    def full(query, position_query, key, value, position):
        bias = position_scores(position_query, position, frames)
        return xla.attend(query, key, value, bias, valid, task)

    out, grads = through(local, arrays, valid)
    expected, expected_grads = through(full, arrays, valid)
    # The bound, and as much relative to the largest gradient.
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for grad, reference in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, reference, atol=1e-5 * np.abs(reference).max())
    assert np.any(grads[-1])


def test_memory_of_a_window_grows_with_the_frames_alone():
    """Forward and backward at 4000 frames, 100 on either side: at most a fifth of full attention's.

    Scores of 3 x 100 keys for 4000 are 0.075; the rest is queries, keys and values.
    """

    def temporary(attention, frames, distances):
        arrays = [jax.ShapeDtypeStruct((1, frames, 4, 8), jnp.float32)] * 4
        arrays.append(jax.ShapeDtypeStruct((distances, 4, 8), jnp.float32))
        valid = jax.ShapeDtypeStruct((1, frames), bool)
        loss = lambda valid, *arrays: jnp.sum(attention(*arrays, valid) ** 2)  # noqa: E731
        lowered = jax.jit(jax.grad(loss, (1, 2, 3, 4, 5))).lower(valid, *arrays)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    local = partial(xla.local_attention, task=Task(8, jnp.float32, True, reach=100))

    def full(query, key, value, position_query, position, valid):
        bias = position_scores(position_query, position, chunk_size(4000))
        return xla.attend(query, key, value, bias, valid, Task(8, jnp.float32, True))

    at_4000 = temporary(local, 4000, 201)
    assert at_4000 <= 0.2 * temporary(full, 4000, 8000)
    assert at_4000 <= 2.2 * temporary(local, 2000, 201)


def plain(query, key, value, bias, mask):
    """The formula, by jax's own softmax and derivative."""
    scores = jnp.einsum("bqhs,bkhs->bhqk", query, key) + (0.0 if bias is None else bias)
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, xla.MASKED_SCORE))
    return jnp.einsum("bhqk,bkhs->bqhs", jnp.where(mask[:, None], weights, 0.0), value)


def inputs(queries, keys, dtype, biased=True, seed=0):
    """Arrays with two heads of three; masked keys and, in the first row, no key at all."""
    rng = np.random.default_rng(seed)
    shapes = [(2, queries, 2, 3), (2, keys, 2, 3), (2, keys, 2, 3), (2, 2, queries, keys)]
    arrays = [jnp.asarray(1.5 * rng.normal(size=shape), dtype) for shape in shapes]
    mask = rng.random((2, queries, keys)) < 0.7
    mask[0, 0] = False
    mask[1, 0, 0] = True
    return arrays[: 3 + biased], jnp.asarray(mask)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 7)])
def test_value_and_slopes_are_those_of_jax_in_float64(queries, keys, biased):
    with jax.enable_x64(True):
        arrays, mask = inputs(queries, keys, jnp.float64, biased)
        run = lambda f: lambda *a: f(*a, *[None] * (4 - len(a)), mask)  # noqa: E731
        (a, back), (b, expected) = (jax.vjp(run(f), *arrays) for f in (xla.masked_attention, plain))
        np.testing.assert_allclose(a, b, atol=1e-14)
        cotangent = jnp.asarray(np.random.default_rng(1).normal(size=a.shape))
        for slope, other in zip(back(cotangent), expected(cotangent), strict=True):
            np.testing.assert_allclose(slope, other, atol=1e-13)
        assert not np.any(a[0, 0])  # no key
        assert not np.any(back(cotangent)[0][0, 0])


def test_the_softmax_for_tpus_is_that_of_other_platforms():
    with jax.enable_x64(True):
        scores = jnp.asarray(30 * np.random.default_rng(0).normal(size=(3, 7)))
        scores = scores.at[0, 6].set(xla.MASKED_SCORE).at[1, :6].set(xla.MASKED_SCORE)
        with compile_for("tpu"):
            found = xla.softmax(scores)
        np.testing.assert_allclose(found, xla.softmax(scores), atol=1e-14)


def test_slopes_are_finite_differences_in_float64():
    with jax.enable_x64(True):
        arrays, mask = inputs(3, 5, jnp.float64)
        rng = np.random.default_rng(2)
        ways = [jnp.asarray(rng.normal(size=a.shape)) for a in arrays]
        weight = jnp.asarray(rng.normal(size=arrays[0].shape))
        loss = lambda *a: jnp.sum(weight * xla.masked_attention(*a, mask))  # noqa: E731
        slope = sum(
            jnp.vdot(g, way)
            for g, way in zip(jax.grad(loss, (0, 1, 2, 3))(*arrays), ways, strict=True)
        )
        moved = lambda h: loss(*[a + h * w for a, w in zip(arrays, ways, strict=True)])  # noqa: E731
        step = 1e-5
        np.testing.assert_allclose((moved(step) - moved(-step)) / (2 * step), slope, rtol=1e-8)


def test_no_array_of_all_pairs_is_kept_besides_the_weights_in_bfloat16():
    arrays, mask = inputs(5, 7, jnp.bfloat16)
    out, back = jax.vjp(lambda *a: xla.masked_attention(*a, mask), *arrays)
    kept = [x for x in jax.tree.leaves(back) if getattr(x, "shape", ())[-2:] == (5, 7)]
    assert [(x.shape, x.dtype) for x in kept] == [((2, 2, 5, 7), jnp.bfloat16)]
    slopes = back(jnp.ones_like(out))
    assert {slope.dtype for slope in slopes} == {jnp.dtype(jnp.bfloat16)}
    of_bias = slopes[3].astype(np.float32)
    np.testing.assert_allclose(of_bias.sum(-1), 0.0, atol=2**-6)


def test_bfloat16_is_float32_up_to_its_rounding():
    arrays, mask = inputs(9, 9, jnp.bfloat16)
    wide = [a.astype(jnp.float32) for a in arrays]

    def run(arrays):
        loss = lambda *a: jnp.sum(xla.masked_attention(*a, mask).astype(jnp.float32) ** 2)  # noqa: E731
        return jax.value_and_grad(loss, (0, 1, 2, 3))(*arrays)

    (value, slopes), (expected, references) = run(arrays), run(wide)
    np.testing.assert_allclose(value, expected, rtol=2**-6)
    for slope, reference in zip(slopes, references, strict=True):
        error = np.abs(np.asarray(slope, np.float32) - reference)
        assert error.max() <= 2**-5 * np.abs(reference).max()
