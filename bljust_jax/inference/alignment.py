"""CTC labels with frame times, and their grouping into words."""

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
    """A class and its frames [start, end) on the most probable CTC path of the label sequence."""

    id: int
    start: int
    end: int


def best_labels(path: Int[np.ndarray, "t"]) -> list[Label]:
    """The labels of a best path with their frames. The best path is itself the CTC alignment of its
    label sequence, as no path is more probable."""
    edges = np.flatnonzero(np.diff(path, prepend=greedy.PADDING, append=greedy.PADDING))
    runs = itertools.pairwise(edges.tolist())
    return [Label(int(path[a]), a, b) for a, b in runs if path[a] != BLANK]


def aligned_labels(log_probs: Float[np.ndarray, "t k"], ids: Sequence[int]) -> list[Label]:
    """Labels `ids` aligned by `ctc_align`, compiled for frame counts that are powers of two. There
    must not be more labels than frames."""
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
    """The labels of each word, without spaces; `symbols` as in `Recognizer`."""
    groups: list[list[Label]] = [[]]
    for label in labels:
        symbol = symbols[label.id - 1]
        if symbol.startswith((" ", SPACE)):
            groups.append([])
        if symbol.strip(f" {SPACE}"):
            groups[-1].append(label)
    return [group for group in groups if group]


def power_of_two(count: int) -> int:
    """The smallest power of two >= `count`; rounding sizes up limits the number of programs."""
    return 1 << max(count - 1, 0).bit_length()
