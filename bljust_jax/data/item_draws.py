"""Items of an epoch: the utterances of each speaker in random order, single or joined.

The draws are those of a loop over speakers, in the order of their names; speakers of one utterance,
of which a corpus may have millions, are drawn together.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bljust_jax.data.strings import Coded, Strings


def ranks(strings: Sequence[str]) -> np.ndarray:
    """Number of distinct smaller strings of each, in the order of code points: int32 [N]."""
    return (strings if isinstance(strings, Coded) else Strings.of(strings)).ranks()


class _Speaker(NamedTuple):
    """Utterance indices ordered by text; the first position and the number of each text."""

    utterances: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray


class Speakers(NamedTuple):
    """Utterance indices ordered by speaker and text: those of speaker k are
    utterances[ends[k]:ends[k + 1]], of the texts `runs[first[k]:first[k + 1]]`, the positions at
    which a text begins."""

    utterances: np.ndarray
    ends: np.ndarray
    runs: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, kept: np.ndarray, speakers: np.ndarray, texts: np.ndarray) -> "Speakers":
        """The utterances `kept` [M], grouped by the ranks [N] of their speakers and texts."""
        speakers, texts = speakers[kept], texts[kept]
        order = np.lexsort((texts, speakers))
        speakers, texts = speakers[order], texts[order]
        new = np.append(True, speakers[1:] != speakers[:-1])[: len(kept)]
        run = new | np.append(True, texts[1:] != texts[:-1])[: len(kept)]
        starts, runs = np.flatnonzero(new), np.flatnonzero(run)
        ends = np.append(starts, len(kept))
        return cls(kept[order], ends, np.append(runs, len(kept)), runs.searchsorted(ends))

    def speaker(self, k: int) -> _Speaker:
        runs = self.runs[self.first[k] : self.first[k + 1] + 1] - self.ends[k]
        utterances = self.utterances[self.ends[k] : self.ends[k + 1]]
        return _Speaker(utterances, runs[:-1], np.diff(runs))


class ItemDraws:
    """Draws the items of an epoch; see `batch_plan.Plan` for the arguments."""

    def __init__(
        self,
        speakers: Speakers,
        durations: np.ndarray,
        labels: np.ndarray,
        *,
        join: tuple[int, int],
        join_share: float,
        max_gap: float,
        balance: float,
        speed: tuple[float, float],
        crop: bool,
    ):
        self._speakers, self._durations, self._labels = speakers, durations, labels
        self._join, self._join_share, self._max_gap = join, join_share, max_gap
        self._balance, self._speed, self._crop = balance, speed, crop

    def draw(
        self, rng: np.random.Generator, times: np.ndarray, limit: tuple[float, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(members, starts, speeds) of the items of an epoch: item i has the utterances
        members[starts[i]:starts[i + 1]].

        times: how often the epoch holds each utterance, [N]; limit: seconds and labels of an item.
        """
        members = self._speakers.utterances
        times = times[members]
        bounds = np.append(0, np.cumsum(times))[self._speakers.ends]
        members = np.repeat(members, times)
        wanted, speeds = self._draw(members, bounds, rng)
        # (-gap) + (d / speed + gap), as `_count_fitting` adds them
        seconds = -self._max_gap + (self._durations[members] / speeds + self._max_gap)
        fits = (seconds <= limit[0]) & (self._labels[members] <= limit[1])
        single = np.where(fits | self._crop, speeds, 1.0)
        first = np.ones(len(members), bool)
        for k in np.unique(bounds.searchsorted(np.flatnonzero(wanted > 1), "right") - 1).tolist():
            span = slice(bounds[k], bounds[k + 1])
            first[span], single[span] = self._join_in_order(
                members[span].tolist(), wanted[span].tolist(), speeds[span].tolist(), limit
            )
        starts = np.flatnonzero(first)
        return members, starts.astype(np.int32), single[starts]

    def _draw(
        self, members: np.ndarray, bounds: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Permute the utterances of each speaker, members[bounds[k]:bounds[k + 1]], in place.

        Returns per position in a speaker the wanted size of the item of that number, and its speed.
        """
        (low, high), share = self._join, self._join_share
        joined, uniform = np.empty(len(members)), np.empty(len(members))
        sizes = np.full(len(members), low, np.int32)
        several = np.flatnonzero(np.diff(bounds) > 1)
        if self._balance or low != high:  # single utterances draw more than two numbers
            several = np.flatnonzero(np.diff(bounds))
        done = 0
        for k, start, end in zip(
            several.tolist(), bounds[several].tolist(), bounds[several + 1].tolist(), strict=True
        ):
            # speakers of one utterance draw one number of each kind
            pairs = rng.random((start - done, 2))
            joined[done:start], uniform[done:start] = pairs[:, 0], pairs[:, 1]
            span, n = slice(start, end), end - start
            members[span] = self._order(k, members[span], rng)
            joined[span] = rng.random(n)
            if low != high:
                sizes[span] = rng.integers(low, high + 1, size=n)
            uniform[span] = rng.random(n)
            done = end
        pairs = rng.random((len(members) - done, 2))
        joined[done:], uniform[done:] = pairs[:, 0], pairs[:, 1]
        slowest, fastest = self._speed
        drawn = np.round(slowest + (fastest - slowest) * uniform, 2).clip(*self._speed)
        return np.where(joined < share, sizes, 1), drawn

    def _order(self, k: int, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A speaker's utterances in random order, a share of them uniform over its texts."""
        order = rng.permutation(order)
        if not self._balance:
            return order
        n, speaker = len(order), self._speakers.speaker(k)
        text = rng.integers(len(speaker.sizes), size=n)
        uniform = speaker.utterances[speaker.starts[text] + rng.integers(speaker.sizes[text])]
        return np.where(rng.random(n) < self._balance, uniform, order)

    def _join_in_order(
        self,
        order: list[int],
        wanted: list[int],
        drawn: list[float],
        limit: tuple[float, int],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which utterances of a speaker begin an item, and the item's speed there: [N] each."""
        first, speeds = np.zeros(len(order), bool), np.ones(len(order))
        position = piece = 0
        while position < len(order):
            joined, factor = order[position : position + wanted[piece]], drawn[piece]
            fit = self._count_fitting(joined, factor, limit)
            if fit == 0:  # fits only as recorded, or is cropped
                fit, factor = 1, factor if self._crop else 1.0
            first[position], speeds[position] = True, factor
            position += fit
            piece += 1
        return first, speeds

    def _count_fitting(self, members: list[int], speed: float, limit: tuple[float, int]) -> int:
        """Number of the first members that fit the last bucket together."""
        seconds, length = -self._max_gap, -1
        for n, i in enumerate(members):
            seconds += float(self._durations[i]) / speed + self._max_gap
            length += int(self._labels[i]) + 1
            if seconds > limit[0] or length > limit[1]:
                return n
        return len(members)
