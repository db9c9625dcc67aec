"""Speakers of the training data that are held back from training, and scored as dev.

Settings are tuned on them, so that the dev set of a comparison is scored once.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bljust_jax.common.errors import UserError
from bljust_jax.data.sources import open_source
from bljust_jax.data.utterances import Utterance, Utterances


class HeldBack(NamedTuple):
    """chosen: the speakers held back; speakers: all of the training data."""

    chosen: frozenset[str]
    speakers: frozenset[str]

    def training(self, utterances: Sequence[Utterance]) -> Utterances:
        """The utterances of the other speakers."""
        found = Utterances.of(utterances)
        return found.select(~self._are_chosen(found))

    def _are_chosen(self, utterances: Utterances) -> np.ndarray:
        held = (speaker in self.chosen for speaker in utterances.speakers)
        return np.fromiter(held, bool, len(utterances))

    def scored(self, utterances: Sequence[Utterance], uri: str) -> Utterances:
        """The utterances of config.data.dev by the speakers held back.

        UserError for a speaker of dev who is not of config.data.train: dev then has audio that is
        kept for the reported score. UserError if no utterance is left.
        """
        found = Utterances.of(utterances)
        other = sorted(set(found.speakers) - self.speakers)
        if other:
            raise UserError(
                f"config.data.dev={uri}: speaker {other[0]!r} is not of config.data.train, and"
                " config.data.held_back_speakers scores speakers of it alone: name the same"
                " recordings in config.data.dev"
            )
        kept = found.select(self._are_chosen(found))
        if not kept:
            names = ", ".join(sorted(self.chosen)[:5])
            raise UserError(f"config.data.dev={uri}: no utterance of a speaker held back ({names})")
        return kept


def check(data: Any) -> None:
    """UserError for fields that config.data.held_back_speakers excludes."""
    if not data.held_back_speakers:
        return
    field = f"config.data.held_back_speakers={data.held_back_speakers}"
    if data.streams or data.overfit:
        raise UserError(f"{field} is for a single stream, without config.data.overfit")
    if data.test:
        raise UserError(f"{field} is for tuning: clear config.data.test, which is for reports")


def choose(data: Any, opened: Mapping[str, Utterances]) -> HeldBack | None:
    """The speakers held back, None without any; opened: {URI: utterances} of config.data.train.

    They are the first of a permutation by `data.held_back_draw`. UserError if none remains.
    """
    count = data.held_back_speakers
    if not count:
        return None
    names = sorted({name for source in opened.values() for name in source.speakers})
    if count >= len(names):
        raise UserError(
            f"config.data.held_back_speakers={count}: config.data.train has {len(names)} speakers,"
            " and one at least must remain; lower it"
        )
    rng = np.random.default_rng([data.held_back_draw, zlib.crc32(b"held back")])
    return HeldBack(frozenset(rng.permutation(names)[:count].tolist()), frozenset(names))


def separate(
    data: Any, opened: Mapping[str, Utterances]
) -> tuple[HeldBack | None, dict[str, Utterances]]:
    """(`choose`, the sources without the speakers held back)."""
    apart = choose(data, opened)
    return apart, {uri: apart.training(us) if apart else us for uri, us in opened.items()}


def of_data(data: Any) -> HeldBack | None:
    """`choose`, from config.data.train."""
    return choose(data, {data.train: open_source(data.train, data.root)} if data.train else {})
