"""k-means clustering of frames: k-means++ seeds, then Lloyd's iterations, deterministic by seed.

Sources: Lloyd, "Least squares quantization in PCM", 1982; Arthur and Vassilvitskii, "k-means++: the
advantages of careful seeding", SODA 2007.
"""

import numpy as np
from jaxtyping import Float, Int

BLOCK = 1 << 24  # distances in memory at a time


def learn(
    frames: Float[np.ndarray, "n d"], classes: int, seed: int, iterations: int = 50
) -> tuple[Float[np.ndarray, "k d"], float]:
    """(centroids, mean squared distance of a frame to its own) after at most `iterations`.

    It ends once no frame changes its class. A class without frames takes the frame that is farthest
    from its centroid. Raises ValueError for fewer distinct frames than classes.
    """
    frames, rng = frames.astype(np.float32), np.random.default_rng(seed)
    centroids, labels = seeds(frames, classes, rng), np.full(len(frames), -1)
    for _ in range(iterations):
        before, (labels, squares) = labels, assign(frames, centroids)
        if np.array_equal(before, labels):
            break
        counts = np.bincount(labels, minlength=classes)
        order = np.argsort(labels, kind="stable")
        starts = np.cumsum(counts) - counts
        used = counts > 0
        sums = np.add.reduceat(frames[order].astype(np.float64), starts[used])
        centroids[used] = (sums / counts[used, None]).astype(np.float32)
        farthest = np.argsort(-squares, kind="stable")[: int(np.sum(~used))]
        centroids[~used] = frames[farthest]
    return centroids, float(np.mean(assign(frames, centroids)[1]))


def seeds(
    frames: Float[np.ndarray, "n d"], classes: int, rng: np.random.Generator
) -> Float[np.ndarray, "k d"]:
    """k-means++: each seed is a frame drawn in proportion to its squared distance to the nearest
    earlier one."""
    chosen = [int(rng.integers(len(frames)))]
    nearest = np.sum(np.square(frames - frames[chosen[0]]), axis=1, dtype=np.float64)
    while len(chosen) < classes:
        total = np.cumsum(nearest)
        if not total[-1]:
            raise ValueError(f"{len(chosen)} distinct frames for {classes} classes")
        chosen.append(int(np.searchsorted(total, rng.random() * total[-1], side="right")))
        squares = np.sum(np.square(frames - frames[chosen[-1]]), axis=1, dtype=np.float64)
        nearest = np.minimum(nearest, squares)
    return frames[chosen]


def assign(
    frames: Float[np.ndarray, "n d"], centroids: Float[np.ndarray, "k d"]
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """(nearest centroid, squared distance to it) of each frame; the first of equally near ones."""
    size = max(1, BLOCK // len(centroids))
    norms = np.sum(np.square(centroids), axis=1)
    labels, squares = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for start in range(0, len(frames), size):
        part = frames[start : start + size]
        scores = norms[None, :] - 2 * part @ centroids.T
        labels.append(np.argmin(scores, axis=1))
        least = np.min(scores, axis=1) + np.sum(np.square(part), axis=1)
        squares.append(np.maximum(least, 0))
    return np.concatenate(labels), np.concatenate(squares)
