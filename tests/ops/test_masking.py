"""Masked spans: expected shares by enumeration, and draws that follow the utterance alone."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.ops.masking import start_spans, wav2vec2_spans
from tests.helpers.closed_forms import expected_share

ROWS = 4096
# The standard error of a frequency over 4096 rows is at most 0.008: five of them.
SPREAD = 0.04


def keys(n=ROWS, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def covered(starts, length, span):
    mask = np.zeros(length)
    for start in starts:
        mask[start : start + span] = 1
    return mask


def start_probability(length, probability, span):
    """P(frame is masked), summed over all sets of starts."""
    total = np.zeros(length)
    for pattern in itertools.product((0, 1), repeat=length):
        weight = math.prod(probability if one else 1 - probability for one in pattern)
        total += weight * covered(np.flatnonzero(pattern), length, span)
    return total


def whole_probability(length, probability, span):
    """The same of n whole spans at distinct starts, the mean over what n can be."""
    total, mean = np.zeros(length), probability * length / span
    for n, weight in ((math.floor(mean), 1 - mean % 1), (math.floor(mean) + 1, mean % 1)):
        n = min(n, length // span, length - span + 1)
        sets = list(itertools.combinations(range(length - span + 1), n))
        total += weight * np.mean([covered(s, length, span) for s in sets], axis=0)
    return total


@pytest.mark.parametrize(("length", "span"), [(9, 3), (7, 10), (8, 1)])
def test_share_of_started_spans_is_exact(length, span):
    expected = start_probability(length, 0.2, span)
    assert expected_share(length, 0.2, span) == pytest.approx(expected.mean(), abs=1e-12)
    draw = {"probability": 0.2, "span": span}
    mask = start_spans(keys(), jnp.full(ROWS, length), 10, **draw)
    np.testing.assert_allclose(mask.mean(0)[:length], expected, atol=SPREAD)
    assert not np.any(mask[:, length:])


def test_share_of_nothing():
    assert expected_share(0, 0.3, 4) == 0
    assert expected_share(5, 0.0, 4) == 0
    assert expected_share(5, 1.0, 4) == 1


@pytest.mark.parametrize("probability", [0.5, 0.65, 1.0])
def test_share_of_whole_spans_is_exact(probability):
    draw = {"probability": probability, "span": 3}
    mask = wav2vec2_spans(keys(), jnp.full(ROWS, 11), 13, **draw)
    expected = np.append(whole_probability(11, probability, 3), [0, 0])
    np.testing.assert_allclose(mask.mean(0), expected, atol=SPREAD)
    assert mask.sum(1).max() <= 11 // 3 * 3


def test_whole_spans_are_whole_and_short_utterances_have_none():
    lengths = jnp.asarray(np.arange(512) % 30)
    mask = np.asarray(wav2vec2_spans(keys(512), lengths, 30, probability=0.6, span=6))
    for row, length in zip(mask, np.asarray(lengths), strict=True):
        assert not row[length:].any()
        if length < 6:
            assert not row.any()
        runs = "".join("x" if m else " " for m in row).split()
        assert all(len(run) >= 6 for run in runs)


def test_least_spans_are_drawn_where_they_fit():
    draw = {"probability": 0.0, "span": 4}
    lengths = jnp.array([20, 9, 5, 3])
    assert not np.any(wav2vec2_spans(keys(4), lengths, 20, **draw))
    mask = wav2vec2_spans(keys(4), lengths, 20, **draw, least=2)
    assert np.all(mask.sum(1) >= np.array([5, 5, 4, 0]))
    assert np.all(mask.sum(1) <= np.array([8, 8, 4, 0]))


@pytest.mark.parametrize("draw", [start_spans, wav2vec2_spans])
def test_a_draw_follows_its_utterance(draw):
    """Neither a longer bucket, nor other rows, nor their order change a row; another key does."""
    k, lengths = keys(6), jnp.array([40, 35, 7, 30, 12, 5])
    how = {"probability": 0.4, "span": 5}
    mask = draw(k, lengths, 40, **how)
    assert mask.any()
    longer = draw(k, lengths, 57, **how)
    np.testing.assert_array_equal(longer[:, :40], mask)
    assert not longer[:, 40:].any()
    order = jnp.array([3, 1, 5, 0])
    np.testing.assert_array_equal(draw(k[order], lengths[order], 40, **how), mask[order])
    assert np.any(draw(keys(6, seed=1), lengths, 40, **how) != mask)
