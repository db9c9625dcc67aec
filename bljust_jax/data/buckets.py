"""Bucket table: the batch shapes of padded audio, and batches of a split for evaluation."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Bucket:
    """One batch shape: `batch_size` rows of `seconds` of audio and at most `max_labels` labels."""

    seconds: float
    batch_size: int
    max_labels: int


def bucket_table(
    seconds: Sequence[float], batch_seconds: float, labels_per_second: float, multiple: int = 1
) -> tuple[Bucket, ...]:
    """Buckets whose batches hold at most `batch_seconds` of padded audio.

    batch_size = batch_seconds / seconds, rounded down to a multiple of `multiple` (at least one);
    max_labels = ceil(seconds * labels_per_second).
    """
    table = []
    for length in seconds:
        labels = math.ceil(length * labels_per_second - 1e-9)
        rows = int(batch_rows(length, batch_seconds, multiple))
        table.append(Bucket(float(length), rows, labels))
    return tuple(table)


def batch_rows(seconds: Any, batch_seconds: float, multiple: int = 1) -> Any:
    """Rows of a batch for each length in seconds: batch_seconds / seconds, rounded down to a
    multiple of `multiple`, at least one."""
    rows = (batch_seconds / np.asarray(seconds, np.float64) + 1e-9).astype(np.int64)
    return np.maximum(rows // multiple * multiple, multiple)


def evaluation_batches(
    durations: Sequence[float],
    seconds: Sequence[float],
    batch_seconds: float,
    multiple: int = 1,
    labels_per_second: float = 0.0,
) -> list[tuple[Bucket, list[int]]]:
    """(bucket, at most batch_size indices) per batch; each utterance appears exactly once.

    An utterance goes to the first length of `seconds` that holds it; longer ones to the first of
    last * 1.5 ** n, n = 1, 2, ..., so that the number of shapes stays small.
    """
    lengths = [float(length) for length in seconds]
    while lengths[-1] < max(durations, default=0.0):
        lengths.append(1.5 * lengths[-1])
    first = np.searchsorted(lengths, durations)
    batches = []
    table = bucket_table(lengths, batch_seconds, labels_per_second, multiple)
    for k, bucket in enumerate(table):
        members = np.flatnonzero(first == k).tolist()
        starts = range(0, len(members), bucket.batch_size)
        batches += [(bucket, members[i : i + bucket.batch_size]) for i in starts]
    return batches
