"""Which utterances of a source train: those of usable length, low-resource subsets by seed."""

import collections
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bljust_jax.common.errors import UserError
from bljust_jax.data.sources import Utterance


def keep(
    utterances: list[Utterance],
    left_out: collections.Counter,
    reason: str,
    condition: Callable[[Utterance], object],
) -> list[Utterance]:
    """The utterances that meet a condition; the others are counted in `left_out` under `reason`."""
    kept = [u for u in utterances if condition(u)]
    if len(kept) < len(utterances):
        left_out[reason] += len(utterances) - len(kept)
    return kept


def timely(
    utterances: list[Utterance], data: Any, left_out: collections.Counter
) -> list[Utterance]:
    """Those of data.min_seconds to data.max_seconds (0: no limit)."""
    low, high = data.min_seconds, data.max_seconds or math.inf
    short = f"shorter than {low:g} s (config.data.min_seconds)"
    long = f"longer than {high:g} s (config.data.max_seconds)"
    kept = keep(utterances, left_out, short, lambda u: u.duration >= low)
    return keep(kept, left_out, long, lambda u: u.duration <= high)


def reasons(left_out: Mapping[str, int]) -> str:
    """ "3 longer than 40 s, 2 without a text"."""
    return ", ".join(f"{n} {reason}" for reason, n in left_out.items()) or "all are quarantined"


def low_resource(
    utterances: list[Utterance], data: Any, seed: int, source: str = "config.data.train"
) -> list[Utterance]:
    """data.labelled_speakers (0: all) speakers, then data.labelled_fraction of their utterances.

    Both are the first of a permutation by seed, so a smaller set is part of a larger one, and
    neither depends on the order of the source. `source` names it in messages.
    """
    rng = np.random.default_rng([seed, zlib.crc32(b"labelled")])
    speakers = rng.permutation(sorted({u.speaker for u in utterances})).tolist()
    if data.labelled_speakers > len(speakers):
        raise UserError(
            f"config.data.labelled_speakers: {data.labelled_speakers} of {len(speakers)} speakers"
            f" of {source}"
        )
    heard = set(speakers[: data.labelled_speakers or None])
    utterances = [u for u in utterances if u.speaker in heard]
    ids = rng.permutation(sorted(u.id for u in utterances)).tolist()
    chosen = set(ids[: math.ceil(data.labelled_fraction * len(ids))])
    return [u for u in utterances if u.id in chosen]
