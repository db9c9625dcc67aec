"""Long recordings in windows: where they are cut, and where what was heard in them is joined.

Windows begin at multiples of the frame hop, so frame n of a window that begins at frame m is frame
m + n of the recording. Neighbours overlap; they are joined where both hear nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from bljust_jax.inference.alignment import BLANK
from bljust_jax.inference.batching import Heard


class Window(NamedTuple):
    """Samples [start, stop) of a recording."""

    start: int
    stop: int


def cut(samples: int, length: int, overlap: int, hop: int) -> list[Window]:
    """Windows of `length` samples that cover a recording, each sharing 2 overlap with the next.

    The last one begins earlier, to be as long as the others within a hop; a recording of at most
    `length` is one window. Raises ValueError unless length and overlap are multiples of hop with
    length >= 4 overlap > 0.
    """
    if length % hop or overlap % hop or not 0 < 4 * overlap <= length:
        raise ValueError(f"no windows of {length} samples, overlap {overlap}, in hops of {hop}")
    if samples <= length:
        return [Window(0, samples)]
    starts = range(0, samples - length, length - 2 * overlap)
    last = -(-(samples - length) // hop) * hop
    return [*(Window(start, start + length) for start in starts), Window(last, samples)]


def divide(samples: int, length: int) -> list[Window]:
    """The fewest windows of at most `length` samples that part a recording, equal within one."""
    count = max(1, -(-samples // length))
    edges = [samples * n // count for n in range(count + 1)]
    return [Window(start, stop) for start, stop in itertools.pairwise(edges)]


def join(own: Sequence[Window], heard: Sequence[Heard], overlap: int, hop: int) -> list[Heard]:
    """The frames that each window adds to the recording; `overlap` and `hop` as in `cut`.

    Two windows are joined within overlap / 2 of the middle of what they share, so a frame that is
    kept is at least that far from a cut. The place is the middle of the longest stretch that both
    hear as blank: no label is lost there, or heard twice, where the windows place it a frame apart.
    Without such a stretch it is the middle of what they share.
    """
    begins, ends = [0], []
    reach = overlap // hop // 2
    pairs = zip(own, (piece.path for piece in heard), strict=True)
    for (left, path), (right, again) in itertools.pairwise(pairs):
        shift = (right.start - left.start) // hop
        middle = (len(path) - shift) // 2
        near = slice(middle - reach, middle + reach)
        begins.append(near.start + _seam(path[shift:][near], again[near]))
        ends.append(shift + begins[-1])
    ends.append(len(heard[-1].path))
    spans = (slice(begin, end) for begin, end in zip(begins, ends, strict=True))
    return [
        Heard(path[span], None if log_probs is None else log_probs[span])
        for (path, log_probs), span in zip(heard, spans, strict=True)
    ]


def _seam(left: Int[np.ndarray, "n"], right: Int[np.ndarray, "n"]) -> int:
    """The middle of the longest run of frames that both paths give to the blank, else of all."""
    silent = np.pad(((left == BLANK) & (right == BLANK)).astype(np.int8), 1)
    runs = np.flatnonzero(np.diff(silent)).reshape(-1, 2)
    begin, end = runs[np.argmax(runs[:, 1] - runs[:, 0])] if len(runs) else (0, len(left))
    return int(begin + end) // 2
