"""Which utterances of a source train (those of usable length, low-resource subsets by seed), and
which are scored.
"""

import collections
import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from bljust_jax.data.sources import Utterance, open_source
from bljust_jax.errors import UserError


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
    kept = keep(utterances, left_out, f"shorter than {low:g} s", lambda u: u.duration >= low)
    return keep(kept, left_out, f"longer than {high:g} s (max)", lambda u: u.duration <= high)


def low_resource(utterances: list[Utterance], data: Any, seed: int) -> list[Utterance]:
    """data.labelled_speakers (0: all) speakers, then data.labelled_fraction of their utterances.

    Both are the first of a permutation by seed, so a smaller set is part of a larger one, and
    neither depends on the order of the source.
    """
    if not 0 < data.labelled_fraction <= 1:
        raise UserError("config.data.labelled_fraction must be above 0 and at most 1")
    if data.labelled_speakers < 0:
        raise UserError("config.data.labelled_speakers must be a number of speakers, or 0 for all")
    rng = np.random.default_rng([seed, zlib.crc32(b"labelled")])
    speakers = rng.permutation(sorted({u.speaker for u in utterances})).tolist()
    if data.labelled_speakers > len(speakers):
        raise UserError(
            f"config.data.labelled_speakers: {data.labelled_speakers} of {len(speakers)} speakers"
        )
    heard = set(speakers[: data.labelled_speakers or None])
    utterances = [u for u in utterances if u.speaker in heard]
    ids = rng.permutation(sorted(u.id for u in utterances)).tolist()
    chosen = set(ids[: math.ceil(data.labelled_fraction * len(ids))])
    return [u for u in utterances if u.id in chosen]


def scorable(uri: str, root: str, normalise: Callable[[str], str]) -> list[Utterance]:
    """The utterances of a split to score, none for "".

    Raises UserError if the texts of the split, or of one of the sources that it joins, are all
    blank.
    """
    utterances = open_source(uri, root) if uri else []
    silent: dict[str, Utterance] = {}
    for u in utterances:
        silent.setdefault(u.part, u)
    for part in {u.part for u in utterances if normalise(u.text or "")}:
        del silent[part]
    for part, u in silent.items():
        where = f"{part} in {uri}" if part else uri
        raise UserError(f"{u.line or uri}: no utterance of {where} has a text to score")
    return utterances
