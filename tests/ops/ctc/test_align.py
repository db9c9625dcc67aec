"""Forced alignment against the best of all paths, and identities of what it returns."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.ops.ctc import ctc_align, ctc_loss


def align(logits, logit_lengths, labels, label_lengths, blank=0):
    ints = (jnp.asarray(a, jnp.int32) for a in (logit_lengths, labels, label_lengths))
    return jax.tree.map(np.asarray, ctc_align(jnp.asarray(logits), *ints, blank=blank))


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def collapse(symbols, blank):
    return [k for k, _ in itertools.groupby(symbols) if k != blank]


def best_score(logits, labels, blank):
    """The largest log-probability over all K**T paths that spell the labels, -inf if none."""
    log_probs = log_softmax(logits)
    frames, classes = log_probs.shape
    spelt = (
        path
        for path in itertools.product(range(classes), repeat=frames)
        if collapse(path, blank) == list(labels)
    )
    return max((log_probs[np.arange(frames), list(p)].sum() for p in spelt), default=-np.inf)


def check(found, i, logits, labels, frames, blank=0):
    """Row i is a path that spells the labels, and every field agrees with the path."""
    path = found.path[i]
    log_probs = log_softmax(logits[i, :frames])
    assert (path[frames:] == -1).all()
    symbols = np.where(path[:frames] < 0, blank, np.append(labels, blank)[path[:frames]])
    assert collapse(symbols, blank) == list(labels)
    on_path = log_probs[np.arange(frames), symbols]
    np.testing.assert_allclose(found.score[i], on_path.sum(), rtol=1e-5, atol=1e-6)
    for u in range(len(labels)):
        (at,) = np.nonzero(path == u)
        assert at.tolist() == list(range(found.starts[i, u], found.ends[i, u]))
        expected = np.exp(on_path[at].mean())
        np.testing.assert_allclose(found.confidence[i, u], expected, rtol=1e-5)
    for field in (found.starts, found.ends, found.confidence):
        assert not field[i, len(labels) :].any()


def assert_no_path(found, i):
    assert found.score[i] == -np.inf
    assert (found.path[i] == -1).all()
    for field in (found.starts, found.ends, found.confidence):
        assert not field[i].any()


@pytest.mark.parametrize(("frames", "classes", "blank"), [(1, 4, 0), (4, 4, 2), (6, 3, 0)])
def test_is_the_best_of_all_paths(frames, classes, blank):
    """Every labelling of up to 4 labels, repeats and infeasible ones included."""
    alphabet = [k for k in range(classes) if k != blank]
    labellings = [y for n in range(5) for y in itertools.product(alphabet, repeat=n)]
    labels = np.zeros((len(labellings), 4), int)
    for row, labelling in zip(labels, labellings, strict=True):
        row[: len(labelling)] = labelling
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(len(labellings), frames, classes), scale=2).astype(np.float32)
    lengths = [len(y) for y in labellings]
    found = align(logits, [frames] * len(labellings), labels, lengths, blank)
    assert (found.path.dtype, found.starts.dtype, found.ends.dtype) == (np.int32,) * 3
    for i, labelling in enumerate(labellings):
        best = best_score(logits[i], labelling, blank)
        if np.isinf(best):
            assert_no_path(found, i)
            continue
        np.testing.assert_allclose(found.score[i], best, rtol=1e-5, atol=1e-6)
        check(found, i, logits, np.array(labelling, int), frames, blank)


def test_padding_never_matters_and_the_best_path_is_below_the_sum_over_paths():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4, 40, 9)).astype(np.float32)
    labels = rng.integers(1, 9, size=(4, 10))
    labels[2, :4] = 5
    frames, counts = np.array([40, 25, 33, 0]), np.array([10, 7, 4, 0])
    clean = align(logits, frames, labels, counts)
    loss = ctc_loss(*map(jnp.asarray, (logits, frames, labels, counts)))
    assert (-clean.score >= np.asarray(loss) - 1e-4).all()
    for i in range(4):
        check(clean, i, logits, labels[i, : counts[i]], frames[i])
        logits[i, frames[i] :] = np.nan
        labels[i, counts[i] :] = [-1, 999, 2**31 - 1, 3][i]
    jax.tree.map(np.testing.assert_array_equal, align(logits, frames, labels, counts), clean)
    longer = np.pad(logits, ((0, 0), (0, 7), (0, 0)), constant_values=np.inf)
    padded = align(longer, frames, np.pad(labels, ((0, 0), (0, 2))), counts)
    np.testing.assert_array_equal(padded.path[:, :40], clean.path)
    np.testing.assert_array_equal(padded.starts[:, :10], clean.starts)
    assert (padded.path[:, 40:] == -1).all()


def test_planted_path_is_found_with_its_confidence():
    planted = np.array([0, 1, 1, 0, 1, 2, 2, 2, 0, 3])
    logits = 6.0 * np.eye(4, dtype=np.float32)[planted][None]
    found = align(logits, [10], [[1, 1, 2, 3]], [4])
    assert found.path.tolist() == [[-1, 0, 0, -1, 1, 2, 2, 2, -1, 3]]
    assert found.starts.tolist() == [[1, 4, 5, 9]]
    assert found.ends.tolist() == [[3, 5, 8, 10]]
    posterior = np.exp(6.0) / (np.exp(6.0) + 3)
    np.testing.assert_allclose(found.confidence, posterior, rtol=1e-5)
    np.testing.assert_allclose(found.score, 10 * np.log(posterior), rtol=1e-5)


def test_no_labels_no_frames_and_probability_zero():
    logits = np.zeros((3, 4, 3), np.float32)
    logits[1:, 1:3, 0] = -np.inf
    found = align(logits, [4, 4, 4], np.zeros((3, 0), int), [0, 0, 0])
    assert found.starts.shape == found.confidence.shape == (3, 0)
    np.testing.assert_allclose(found.score, [-4 * np.log(3), -np.inf, -np.inf], rtol=1e-6)
    logits[1, :, 1] = -np.inf  # frames 1 and 2 must be label 2 there
    found = align(logits, [4, 4, 1], np.array([[1], [1], [2]]), [1, 1, 1])
    assert_no_path(found, 1)
    check(found, 0, logits, np.array([1]), 4)
    check(found, 2, logits, np.array([2]), 1)
    empty = align(np.zeros((2, 0, 3), np.float32), [0, 0], np.ones((2, 1), int), [0, 1])
    assert empty.score.tolist() == [0, -np.inf]
    assert empty.path.shape == (2, 0)
