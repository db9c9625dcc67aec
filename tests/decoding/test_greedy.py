"""Greedy decoding against the definition of a CTC path."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.decoding.greedy import best_path, collapse, collapse_rows


@pytest.mark.parametrize("blank", [0, 1])
def test_collapse_of_every_short_path(blank):
    """A label is spelt exactly where a frame shows it and the frame before does not."""
    for frames in range(6):
        for path in itertools.product(range(3), repeat=frames):
            expected = [
                k for t, k in enumerate(path) if k != blank and (t == 0 or path[t - 1] != k)
            ]
            assert collapse(np.array(path, np.int32), blank) == expected
            assert collapse([*path, -1, -1], blank) == expected


def test_best_path_is_the_argmax_of_valid_frames():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7, 5)), jnp.float32)
    logits = logits.at[1, 4:].set(jnp.nan)
    lengths = jnp.array([7, 4, 0])
    path = jax.jit(best_path)(logits, lengths)
    assert path.dtype == jnp.int32
    for row, x, length in zip(np.asarray(path), np.asarray(logits), lengths, strict=True):
        np.testing.assert_array_equal(row[:length], x[:length].argmax(-1))
        assert (row[length:] == -1).all()


def test_collapsed_best_path_is_the_most_probable_labelling_of_a_confident_lattice():
    path = [0, 2, 2, 0, 2, 1, 1, 0]
    logits = 5.0 * jax.nn.one_hot(jnp.array([path]), 3)
    assert collapse(np.asarray(best_path(logits, jnp.array([8])))[0]) == [2, 2, 1]


@pytest.mark.parametrize("room", [6, 2])
def test_collapse_on_the_device_is_that_of_the_host(room):
    """Every path of five frames over three classes, with padding; more labels than fit are counted
    and left off."""
    paths = np.array([(*p, -1) for p in itertools.product(range(3), repeat=5)], np.int32)
    labels, counts = jax.jit(collapse_rows, static_argnums=1)(jnp.asarray(paths), room)
    assert labels.dtype == counts.dtype == jnp.int32
    for path, row, count in zip(paths, np.asarray(labels), counts, strict=True):
        expected = collapse(path)
        assert count == len(expected)
        assert row.tolist() == (expected + [0] * room)[:room]
