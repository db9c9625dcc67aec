"""Select training utterances: by length, by hours, and low-resource subsets of the labels."""

import dataclasses
import hashlib
import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bljust_jax.common.durations import in_hours
from bljust_jax.common.errors import UserError
from bljust_jax.data.sources import Utterance


def keep_if(
    utterances: list[Utterance], skipped: Counter, reason: str, condition: Callable
) -> list[Utterance]:
    """The utterances that meet a condition; the others are counted in `skipped` under `reason`."""
    kept = [u for u in utterances if condition(u)]
    if len(kept) < len(utterances):
        skipped[reason] += len(utterances) - len(kept)
    return kept


def of_usable_length(utterances: list[Utterance], data: Any, skipped: Counter) -> list[Utterance]:
    """Utterances of data.min_seconds to data.max_seconds (0: no limit)."""
    low, high = data.min_seconds, data.max_seconds or math.inf
    short = f"shorter than {low:g} s (config.data.min_seconds)"
    long = f"longer than {high:g} s (config.data.max_seconds)"
    kept = keep_if(utterances, skipped, short, lambda u: u.duration >= low)
    return keep_if(kept, skipped, long, lambda u: u.duration <= high)


PIECE = "#piece"  # in the id of a piece, before its number


def cut_into_pieces(u: Utterance, longest: float) -> list[Utterance]:
    """An utterance in the fewest equal pieces of at most `longest` seconds, without texts; itself
    if it is no longer."""
    number = math.ceil(u.duration / longest - 1e-9)
    if number <= 1:
        return [u]
    seconds, made = u.duration / number, []
    for n in range(number):
        span = {"offset": u.offset + n * seconds, "duration": seconds}
        own = {"id": f"{u.id}{PIECE}{n}", "text": None, "translation": None}
        made.append(dataclasses.replace(u, **span, **own))
    return made


def subset_of_hours(
    utterances: list[Utterance],
    hours: float,
    seed: int,
    skipped: Counter,
    source: str = "config.data.unlabelled",
) -> list[Utterance]:
    """At least `hours` of the utterances (0: all), by one utterance at most more.

    They are the first in the order of a hash of (seed, id): the subset depends neither on the order
    of the source nor on the number of hosts, and fewer hours are part of more. `source` names it in
    the UserError for a source of fewer hours.
    """
    if not hours:
        return utterances
    total = sum(u.duration for u in utterances) / 3600
    if hours > total:
        wanted = f"{hours:g} h of the {in_hours(3600 * total, '.4g')} of {source}"
        raise UserError(f"config.data.unlabelled_hours: {wanted}; lower it, or set it to 0: all")

    def order(u: Utterance) -> tuple[bytes, str, float]:
        drawn = hashlib.blake2b(f"{seed}/{u.id}".encode(), digest_size=8).digest()
        return drawn, u.path, u.offset

    ordered = sorted(utterances, key=order)
    spent = np.cumsum([u.duration for u in ordered])
    number = int(np.searchsorted(spent, hours * 3600)) + 1
    chosen = {(u.id, u.path, u.offset) for u in ordered[:number]}
    reason = f"beyond config.data.unlabelled_hours={hours:g}"
    return keep_if(utterances, skipped, reason, lambda u: (u.id, u.path, u.offset) in chosen)


def describe_skipped(skipped: Mapping[str, int]) -> str:
    """ "3 longer than 40 s, 2 without a text"."""
    return ", ".join(f"{n} {reason}" for reason, n in skipped.items()) or "all are quarantined"


def labelled_subset(
    utterances: list[Utterance], data: Any, seed: int, source: str = "config.data.train"
) -> list[Utterance]:
    """Utterances of data.labelled_speakers speakers (0: all), data.labelled_fraction of them.

    Both are the first of a permutation by seed: a smaller subset is part of a larger one, and
    neither depends on the order of the source; data.labelled_draw, unless it is -1, replaces the
    seed. `source` names it in messages.
    """
    draw = seed if data.labelled_draw < 0 else data.labelled_draw
    rng = np.random.default_rng([draw, zlib.crc32(b"labelled")])
    speakers = rng.permutation(sorted({u.speaker for u in utterances})).tolist()
    if data.labelled_speakers > len(speakers):
        wanted = f"{data.labelled_speakers} of {len(speakers)} speakers"
        raise UserError(f"config.data.labelled_speakers: {wanted} of {source}; lower it")
    chosen_speakers = set(speakers[: data.labelled_speakers or None])
    utterances = [u for u in utterances if u.speaker in chosen_speakers]
    ids = rng.permutation(sorted(u.id for u in utterances)).tolist()
    chosen = set(ids[: math.ceil(data.labelled_fraction * len(ids))])
    return [u for u in utterances if u.id in chosen]
