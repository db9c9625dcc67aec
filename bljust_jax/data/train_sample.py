"""Training utterances that are scored beside dev: the gap is what a model learns by heart."""

import numpy as np

from bljust_jax.data.splits import Splits
from bljust_jax.data.streams import split_name

NAME = "train_sample"


def add(splits: Splits, count: int) -> None:
    """Add the split `train_sample` of each labelled stream: `count` of its training utterances, or
    as many as dev has if fewer; none without dev.

    They are spread evenly over those with a text and of a length for which dev has a batch, so that
    no further program is compiled.
    """
    for stream in splits.streams:
        dev = split_name("dev", stream)
        found = splits.utterances(stream)
        number = min(count, len(splits.utterances(dev)))
        lengths = sorted(bucket.seconds for bucket in splits.eval_buckets(dev)) if number else []
        known = np.zeros(len(found), bool)
        for low, high in _spans(splits.streams[stream].buckets, lengths):
            known |= (found.durations > low) & (found.durations <= high)
        known = np.flatnonzero(known & ~splits.references(stream).empty)
        chosen = np.linspace(0, len(known) - 1, min(number, len(known))).round().astype(int)
        found = found.select(known[np.unique(chosen)])
        splits.add(split_name(NAME, stream), stream, found)


def _spans(table: tuple[float, ...], used: list[float]) -> list[tuple[float, float]]:
    """(low, high) in seconds of the audio that batches of the lengths `used` hold; `table` has all
    lengths of training."""
    below = [0.0, *table]
    return [(max(s for s in below if s < length), length) for length in used]
