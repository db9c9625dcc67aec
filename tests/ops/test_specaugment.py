"""SpecAugment: exact expected share, keys that follow the row, and limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.ops import specaugment as ops

LIMITS = ("freq_masks", "freq_width", "time_masks", "time_width", "max_time_share")
specaugment = functools.partial(jax.jit, static_argnames=LIMITS)(ops.specaugment)


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def spared(cap, extent):
    """P(one mask leaves position p alone), by enumeration of widths and starts."""
    out = np.zeros(extent)
    for width in range(cap + 1):
        starts = extent - width + 1
        for start in range(starts):
            free = np.ones(extent)
            free[start : start + width] = 0
            out += free / starts / (cap + 1)
    return out


def test_masked_share_is_the_enumerated_one():
    rows, frames, bands, length = 4096, 12, 9, 10
    out = specaugment(
        jnp.ones((rows, frames, bands)), jnp.full(rows, length), keys(rows),
        freq_masks=2, freq_width=4, time_masks=3, time_width=8, max_time_share=0.35,
    )  # fmt: skip
    time = np.concatenate([spared(3, length) ** 3, np.ones(2)])  # cap = floor(0.35 * 10)
    expected = time[:, None] * (spared(4, bands) ** 2)[None, :]
    # The standard error of a frequency over 4096 rows is at most 0.008; 108 cells: five of them.
    np.testing.assert_allclose(np.mean(out, axis=0), expected, atol=0.04)


def test_masks_follow_the_row_and_repeat_with_the_key():
    x = jax.random.normal(jax.random.key(1), (6, 40, 20))
    lengths, k = jnp.array([40, 35, 30, 20, 10, 5]), keys(6)
    out = specaugment(x, lengths, k)
    order = jnp.array([3, 1, 5, 0, 2, 4])
    np.testing.assert_array_equal(specaugment(x[order], lengths[order], k[order]), out[order])
    np.testing.assert_array_equal(specaugment(x, lengths, k), out)
    assert np.any(specaugment(x, lengths, keys(6, seed=2)) != out)


def test_masked_cells_are_zero_and_others_untouched():
    x = 1.0 + jax.random.uniform(jax.random.key(1), (4, 30, 20))
    out = specaugment(x, jnp.full(4, 30), keys(4), freq_width=6)
    assert np.all((out == 0) | (out == x))
    assert np.any(out == 0)


def test_time_masks_keep_their_share_and_their_utterance():
    x = jnp.ones((512, 50, 3))
    lengths = jnp.asarray(np.arange(512) % 51)
    out = specaugment(x, lengths, keys(512), freq_masks=0, time_masks=1, max_time_share=0.2)
    masked = np.asarray(out[:, :, 0] == 0)
    assert np.all(masked.sum(1) <= np.floor(0.2 * np.asarray(lengths) + 1e-6))
    assert not np.any(masked & (np.arange(50)[None] >= np.asarray(lengths)[:, None]))


@pytest.mark.parametrize("masks", [0, 2])
def test_empty_rows_and_no_masks_are_safe(masks):
    x = jnp.zeros((2, 8, 4))
    out = specaugment(x, jnp.array([0, 0]), keys(2), freq_masks=masks, time_masks=masks)
    np.testing.assert_array_equal(out, x)
