"""k-means against a loop, and its seeds: by distance, deterministic."""

import itertools

import numpy as np
import pytest

from bljust_jax.ops import kmeans


def blobs(n=60, centres=((0, 0), (9, 0), (0, 9)), seed=0):
    rng = np.random.default_rng(seed)
    parts = [rng.normal(c, 0.3, (n, 2)) for c in centres]
    return rng.permutation(np.concatenate(parts)).astype(np.float32)


def test_frames_are_assigned_to_the_nearest_of_all(monkeypatch):
    monkeypatch.setattr(kmeans, "BLOCK", 40)  # several blocks
    rng = np.random.default_rng(1)
    frames, centroids = (rng.normal(size=(n, 5)).astype(np.float32) for n in (101, 7))
    labels, squares = kmeans.assign(frames, centroids)
    for frame, label, square in zip(frames, labels, squares, strict=True):
        distances = np.square(frame - centroids).sum(1)
        assert label == distances.argmin()
        assert square == pytest.approx(distances.min(), rel=1e-3, abs=1e-5)
    assert kmeans.assign(frames[:0], centroids)[0].shape == (0,)


def test_centroids_are_the_means_of_their_frames():
    frames = blobs()
    centroids, error = kmeans.learn(frames, 3, seed=0)
    labels, squares = kmeans.assign(frames, centroids)
    assert np.bincount(labels).tolist() == [60, 60, 60]
    for k in range(3):
        np.testing.assert_allclose(centroids[k], frames[labels == k].mean(0), atol=1e-5)
    assert error == pytest.approx(squares.mean())
    assert error == pytest.approx(2 * 0.3**2, rel=0.2)


def test_an_iteration_never_raises_the_error():
    frames = np.random.default_rng(2).normal(size=(400, 4)).astype(np.float32)
    errors = [kmeans.learn(frames, 20, seed=3, iterations=n)[1] for n in range(8)]
    assert all(b <= a + 1e-6 for a, b in itertools.pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


def test_the_seed_decides_all():
    frames = np.random.default_rng(2).normal(size=(400, 4)).astype(np.float32)
    one, again, other = (kmeans.learn(frames, 20, seed=n)[0] for n in (0, 0, 1))
    assert one.tobytes() == again.tobytes()
    assert one.tobytes() != other.tobytes()


def test_seeds_are_far_apart():
    """Of three distant groups of unequal size, each has one, whatever the seed."""
    frames = np.concatenate([np.zeros((500, 1)), np.full((5, 1), 50.0), np.full((1, 1), 99.0)])
    for seed in range(20):
        chosen = kmeans.seeds(frames.astype(np.float32), 3, np.random.default_rng(seed))
        assert sorted(chosen.ravel()) == [0, 50, 99]


def test_a_class_without_frames_takes_the_farthest(monkeypatch):
    frames = blobs()
    far = np.full((3, 2), 100.0, np.float32) + np.arange(3, dtype=np.float32)[:, None]
    monkeypatch.setattr(kmeans, "seeds", lambda *_: np.concatenate([frames[:1], far[1:]]).copy())
    centroids, error = kmeans.learn(frames, 3, seed=0)
    assert np.bincount(kmeans.assign(frames, centroids)[0], minlength=3).min() > 0
    assert error < 1


def test_fewer_frames_than_classes_are_refused():
    with pytest.raises(ValueError, match="2 distinct frames for 3 classes"):
        kmeans.learn(np.array([[0.0], [1.0], [1.0], [0.0]], np.float32), 3, seed=0)
