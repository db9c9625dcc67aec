"""Select training utterances: by length, by hours, and low-resource subsets of the labels."""

import dataclasses
import hashlib
import itertools
import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from bljust_jax.common.durations import in_hours
from bljust_jax.common.errors import UserError
from bljust_jax.data.strings import Strings
from bljust_jax.data.utterances import Utterance, Utterances, concatenated


def keep(
    utterances: Utterances, skipped: Counter, reason: str, mask: Bool[np.ndarray, "n"]
) -> Utterances:
    """The utterances of a mask [N]; the others are counted in `skipped` under `reason`."""
    if mask.all():
        return utterances
    skipped[reason] += len(utterances) - int(mask.sum())
    return utterances.select(mask)


def long_enough(utterances: Utterances, data: Any, skipped: Counter) -> Utterances:
    """Utterances of at least data.min_seconds."""
    reason = f"shorter than {data.min_seconds:g} s (config.data.min_seconds)"
    return keep(utterances, skipped, reason, utterances.durations >= data.min_seconds)


def short_enough(utterances: Utterances, data: Any, skipped: Counter) -> Utterances:
    """Utterances of at most data.max_seconds (0: no limit)."""
    high = data.max_seconds or math.inf
    reason = f"longer than {high:g} s (config.data.max_seconds)"
    return keep(utterances, skipped, reason, utterances.durations <= high)


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


def in_pieces(utterances: Utterances, over: float, longest: float) -> Utterances:
    """The utterances, in place of those longer than `over` their pieces of at most `longest`
    seconds."""
    long = utterances.durations > over
    if not long.any():
        return utterances
    cut = [cut_into_pieces(u, longest) for u in utterances.select(long)]
    numbers = np.ones(len(utterances), np.int64)
    numbers[long] = [len(pieces) for pieces in cut]
    rows = np.repeat(np.where(long, -1, np.arange(len(utterances))), numbers)
    rows[rows < 0] = len(utterances) + np.arange(sum(map(len, cut)))
    pieces = Utterances.of(itertools.chain.from_iterable(cut))
    return concatenated([utterances, pieces]).select(rows)


def subset_of_hours(
    utterances: Sequence[Utterance],
    hours: float,
    seed: int,
    skipped: Counter,
    source: str = "config.data.unlabelled",
) -> Utterances:
    """At least `hours` of the utterances (0: all), by one utterance at most more.

    They are the first in the order of a hash of (seed, id): the subset depends neither on the order
    of the source nor on the number of hosts, and fewer hours are part of more. `source` names it in
    the UserError for a source of fewer hours.
    """
    found = Utterances.of(utterances)
    if not hours:
        return found
    total = sum(found.durations.tolist()) / 3600
    if hours > total:
        wanted = f"{hours:g} h of the {in_hours(3600 * total, '.4g')} of {source}"
        raise UserError(f"config.data.unlabelled_hours: {wanted}; lower it, or set it to 0: all")
    drawn = (
        hashlib.blake2b(f"{seed}/{identity}".encode(), digest_size=8).digest()
        for identity in found.ids
    )
    drawn = np.frombuffer(b"".join(drawn), ">u8")
    offsets = found.column("offset")
    order = np.argsort(drawn, kind="stable")
    if np.any(np.diff(drawn[order]) == 0):  # ids that occur several times
        order = np.lexsort((offsets, Strings.of(found.paths()).ranks(), drawn))
    spent = np.cumsum(found.durations[order])
    number = int(np.searchsorted(spent, hours * 3600)) + 1
    mask = np.zeros(len(found), bool)
    mask[order[:number]] = True
    return keep(found, skipped, f"beyond config.data.unlabelled_hours={hours:g}", mask)


def describe_skipped(skipped: Mapping[str, int]) -> str:
    """ "3 longer than 40 s, 2 without a text"."""
    return ", ".join(f"{n} {reason}" for reason, n in skipped.items()) or "all are quarantined"


def labelled_subset(
    utterances: Sequence[Utterance], data: Any, seed: int, source: str = "config.data.train"
) -> Utterances:
    """Utterances of data.labelled_speakers speakers (0: all), data.labelled_fraction of them.

    Both are the first of a permutation by seed: a smaller subset is part of a larger one, and
    neither depends on the order of the source; data.labelled_draw, unless it is -1, replaces the
    seed. `source` names it in messages.
    """
    found = Utterances.of(utterances)
    if not data.labelled_speakers and data.labelled_fraction >= 1:
        return found
    draw = seed if data.labelled_draw < 0 else data.labelled_draw
    rng = np.random.default_rng([draw, zlib.crc32(b"labelled")])
    ranks = found.speakers.ranks()
    count = int(ranks.max(initial=-1)) + 1
    chosen = rng.permutation(count)
    if data.labelled_speakers > count:
        wanted = f"{data.labelled_speakers} of {count} speakers"
        raise UserError(f"config.data.labelled_speakers: {wanted} of {source}; lower it")
    if data.labelled_speakers:
        found = found.select(np.isin(ranks, chosen[: data.labelled_speakers]))
    order = rng.permutation(np.argsort(found.ids.ranks(), kind="stable"))
    return found.select(np.sort(order[: math.ceil(data.labelled_fraction * len(found))]))
