"""Labels and the frames they are of, and the words that they make."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bljust_jax.data.tokenizer import SPACE
from bljust_jax.decoding import greedy
from bljust_jax.ops.ctc.align import ctc_align

BLANK = 0


class Label(NamedTuple):
    """A class and its frames [start, end) on the most probable path of the labelling."""

    id: int
    start: int
    end: int


def best_labels(path: Int[np.ndarray, "t"]) -> list[Label]:
    """The labels of a best path, whose own frames are the CTC alignment of what it spells: no path
    is more probable."""
    edges = np.flatnonzero(np.diff(path, prepend=greedy.PADDING, append=greedy.PADDING))
    runs = itertools.pairwise(edges.tolist())
    return [Label(int(path[a]), a, b) for a, b in runs if path[a] != BLANK]


def aligned_labels(log_probs: Float[np.ndarray, "t k"], ids: Sequence[int]) -> list[Label]:
    """Labels placed by `ctc_align`, which is compiled for powers of two of frames; no more labels
    than frames can be spelt."""
    frames, classes = log_probs.shape
    size = power_of_two(frames)
    padded = np.zeros((1, size, classes), np.float32)
    padded[0, :frames] = log_probs
    labels = np.zeros((1, size), np.int32)
    labels[0, : len(ids)] = ids
    found = ctc_align(padded, np.array([frames]), labels, np.array([len(ids)]))
    starts, ends = np.asarray(found.starts)[0].tolist(), np.asarray(found.ends)[0].tolist()
    return [Label(*label) for label in zip(ids, starts, ends, strict=False)]


def words_of(labels: Iterable[Label], symbols: Sequence[str]) -> list[list[Label]]:
    """The labels of each word, spaces left out; `symbols` as in `Recogniser`."""
    groups: list[list[Label]] = [[]]
    for label in labels:
        symbol = symbols[label.id - 1]
        if symbol.startswith((" ", SPACE)):
            groups.append([])
        if symbol.strip(f" {SPACE}"):
            groups[-1].append(label)
    return [group for group in groups if group]


def power_of_two(count: int) -> int:
    """The least one that is not below `count`: few shapes, few programs."""
    return 1 << max(count - 1, 0).bit_length()
