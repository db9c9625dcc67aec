"""Cut long recordings into overlapping windows, and join the CTC outputs of the windows.

Windows begin at multiples of the frame hop, so frame n of a window that begins at frame m is frame
m + n of the recording. Neighbours overlap; they are joined where both paths are blank.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from bljust_jax.inference.alignment import BLANK
from bljust_jax.inference.batching import DecodedRow


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
    """The fewest windows of at most `length` samples that partition a recording, equal within one
    sample."""
    count = max(1, -(-samples // length))
    edges = [samples * n // count for n in range(count + 1)]
    return [Window(start, stop) for start, stop in itertools.pairwise(edges)]


def join(
    own: Sequence[Window], outputs: Sequence[DecodedRow], overlap: int, hop: int
) -> list[DecodedRow]:
    """The frames that each window contributes; `overlap` and `hop` as in `cut`.

    Two windows are joined within overlap / 2 of the middle of their common part, so every frame
    kept is at least that far from a cut. The join is in the middle of the longest stretch that is
    blank in both paths: there no label is lost, or counted twice if the windows place it a frame
    apart. Without such a stretch it is in the middle of the common part.
    """
    begins, ends = [0], []
    reach = overlap // hop // 2
    pairs = zip(own, (piece.path for piece in outputs), strict=True)
    for (left, path), (right, again) in itertools.pairwise(pairs):
        shift = (right.start - left.start) // hop
        middle = (len(path) - shift) // 2
        near = slice(middle - reach, middle + reach)
        begins.append(near.start + _seam(path[shift:][near], again[near]))
        ends.append(shift + begins[-1])
    ends.append(len(outputs[-1].path))
    spans = (slice(begin, end) for begin, end in zip(begins, ends, strict=True))
    return [
        DecodedRow(path[span], None if log_probs is None else log_probs[span])
        for (path, log_probs), span in zip(outputs, spans, strict=True)
    ]


def _seam(left: Int[np.ndarray, "n"], right: Int[np.ndarray, "n"]) -> int:
    """The middle of the longest run of frames that are blank in both paths, else of all frames."""
    silent = np.pad(((left == BLANK) & (right == BLANK)).astype(np.int8), 1)
    runs = np.flatnonzero(np.diff(silent)).reshape(-1, 2)
    begin, end = runs[np.argmax(runs[:, 1] - runs[:, 0])] if len(runs) else (0, len(left))
    return int(begin + end) // 2
