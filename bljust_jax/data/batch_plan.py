"""Batch plan: the utterances of every batch, a pure function of durations, buckets, seed and epoch.

The number of batches per epoch and per bucket is that of epoch 0 for the whole run. The position in
the data is thus arithmetic on the step, and any batch can be computed without those before it.
"""

import collections
import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bljust_jax.common.errors import UserError
from bljust_jax.data import epoch_shares
from bljust_jax.data.buckets import Bucket
from bljust_jax.data.filters import describe_skipped
from bljust_jax.data.item_draws import ItemDraws, Speakers, ranks

SLACK = 1e-6  # seconds: sums of durations are rounded


class Item(NamedTuple):
    """One row of a batch: indices of the utterances that are concatenated, their speed factor, and
    crc32 of their ids."""

    members: tuple[int, ...]
    speed: float
    key: int


class Plan:
    """Epochs of batches of items over utterances 0..N-1.

    durations: seconds; labels: label lengths, None for an unlabelled plan; speakers, texts, ids,
    languages: one string per utterance; buckets: ascending.
    join: least and greatest number of utterances of one speaker that are joined into one item, with
    probability `join_share` and gaps of at most `max_gap` s.
    balance: share of draws that are uniform over the speaker's distinct texts.
    speed: range of the speed factor, drawn per item in hundredths.
    crop: longer utterances go into the last bucket, for the loader to crop; else they are skipped.
    temperature: an epoch holds as much audio as there is, divided among the languages by `shares`:
    utterances are repeated or skipped, other ones per epoch.
    sources, weights: that of each utterance, and {source: weight}; an epoch holds as much audio as
    there is, divided among the sources by their weights in the same way. None: all audio once.

    With balance 0, temperature 1 and no weights each utterance is in exactly one item per epoch
    (`items`). The bucket of an item is the first with seconds >= sum(durations) / speed + (n - 1) *
    max_gap and max_labels >= the labels of its texts joined by spaces; an utterance that fits only
    as recorded keeps speed 1. The last batch of a bucket is filled by repeating items; later
    epochs, whose draws differ, drop or repeat items to keep epoch 0's number of batches. A bucket
    without items in epoch 0 never occurs in the plan's own order; `nth_batch_of_bucket` takes items
    of the next shorter bucket, or with `crop` of the next longer.

    Raises UserError if no utterance fits. `excluded` lists (index, reason).
    """

    def __init__(
        self,
        durations: Sequence[float] | np.ndarray,
        labels: Sequence[int] | np.ndarray | None,
        speakers: Sequence[str],
        texts: Sequence[str],
        ids: Sequence[str],
        buckets: Sequence[Bucket],
        seed: int,
        *,
        join: tuple[int, int] = (1, 1),
        join_share: float = 0.0,
        max_gap: float = 0.15,
        balance: float = 0.0,
        speed: tuple[float, float] = (1.0, 1.0),
        crop: bool = False,
        languages: Sequence[str] = (),
        temperature: float = 1.0,
        sources: Sequence[str] = (),
        weights: Mapping[str, float] | None = None,
    ):
        if list(buckets) != sorted(buckets, key=lambda b: (b.seconds, b.max_labels)) or not buckets:
            raise UserError("data.buckets must be lengths in seconds in ascending order")
        if not 1 <= join[0] <= join[1] or not 0 < speed[0] <= speed[1]:
            raise UserError(f"data.join {join} and data.speed {speed} must be (low, high), low > 0")
        self.seed, self.crop, self.max_gap = seed, crop, max_gap
        self._join, self._join_share, self._speed = join, join_share, speed
        self._ids, self._size = ids, len(ids)
        drawing = {"join": join, "join_share": join_share, "max_gap": max_gap}
        drawing |= {"balance": balance, "speed": speed, "crop": crop}
        self._durations = np.asarray(durations, np.float64)
        self._labels = np.zeros(len(ids), np.int64) if labels is None else np.asarray(labels)
        self._labelled = labels is not None
        self._set_buckets(buckets)
        self.excluded = self._exclude()
        groups = Speakers.of(self._kept(), ranks(speakers), ranks(texts))
        self._draws = ItemDraws(groups, self._durations, self._labels, **drawing)
        groups = (self._kept(), self._durations)
        self.languages, self.sources = {}, {}
        if temperature != 1:
            names = ranks(languages), languages
            self.languages = epoch_shares.languages(*groups, *names, temperature)
        if weights:
            self.sources = epoch_shares.sources(*groups, ranks(sources), sources, weights)
        # Buckets led by another plan advance at rates of their own, each in an epoch of its own.
        self._epochs = functools.lru_cache(len(buckets) + 2)(self._make_epoch)
        self._orders = functools.lru_cache(3)(self._make_order)
        self._first = self._make_items(0)
        self._set_counts()

    # Arithmetic on positions

    def bucket_of(self, n: int) -> int:
        """The bucket of batch n."""
        epoch, position = divmod(n, self.batches_per_epoch)
        return int(self._orders(epoch)[0][position])

    def count(self, k: int, n: int) -> int:
        """Number of the batches 0..n-1 that are of bucket k."""
        epoch, position = divmod(n, self.batches_per_epoch)
        return epoch * self.counts[k] + int(self._orders(epoch)[1][position, k])

    def batch(self, n: int) -> tuple[int, list[Item]]:
        """Bucket and items of batch n: (k, nth_batch_of_bucket(k, count(k, n)))."""
        k = self.bucket_of(n)
        return k, self.nth_batch_of_bucket(k, self.count(k, n))

    def nth_batch_of_bucket(self, k: int, m: int) -> list[Item]:
        """Items of the m-th batch of bucket k over all epochs (m from 0); always a full batch."""
        if not self.has_items(k):
            seconds = self.buckets[k].seconds
            raise UserError(f"no utterance fits {seconds:g} s; drop it from data.buckets")
        epoch, position = divmod(m, self._supply[k][1])
        items, rows = self._epochs(epoch)
        if not len(rows[k]):  # this epoch's draws put no item in the bucket
            items, rows = self._epochs(0)
        size = self.buckets[k].batch_size
        chosen = rows[k][position * size : (position + 1) * size]
        return [self._item(items, i) for i in chosen.tolist()]

    @property
    def audio(self) -> tuple[float, float]:
        """(seconds of audio, padded seconds) of the batches of epoch 0, gaps between joined
        utterances included; cropped items count as cropped."""
        seconds = np.minimum(self._sizes(self._first)[0], self.buckets[-1].seconds)
        sizes = np.array([b.seconds * b.batch_size for b in self.buckets])
        items = np.bincount(self._first.buckets, seconds, len(self.buckets))
        rows = np.bincount(self._first.buckets, minlength=len(self.buckets))
        slots = np.array(self.counts) * [b.batch_size for b in self.buckets]
        repeated = slots / np.maximum(rows, 1)  # the last batch repeats items
        return float(items @ repeated), float(sizes @ self.counts)

    def items(self, epoch: int) -> list[Item]:
        """All items of an epoch, in no batches yet."""
        made = self._make_items(epoch)
        return [self._item(made, i) for i in range(len(made.speeds))]

    def has_items(self, k: int) -> bool:
        """Whether there are items for batches of bucket k."""
        return self._supply[k][0] >= 0

    # Lengths that follow from durations

    def needs(self, labels_per_second: float) -> np.ndarray:
        """Length in seconds of the shortest bucket that holds each item of epoch 0: [N], the
        larger of its seconds and, with labels, of their number / labels_per_second."""
        seconds, labels = self._sizes(self._first)
        return np.maximum(seconds, labels / labels_per_second) if self._labelled else seconds

    def longest_need(self, labels_per_second: float) -> float:
        """`needs` of the longest item of any epoch: at most the last bucket; that, if items are
        joined."""
        last = self.buckets[-1].seconds
        used = np.setdiff1d(np.arange(len(self._ids)), [i for i, _ in self.excluded])
        if not len(used) or (self._join[1] > 1 and self._join_share > 0):
            return last
        need = float(self._durations[used].max()) / self._speed[0]
        if self._labelled:
            need = max(need, float(self._labels[used].max()) / labels_per_second)
        return min(last, need)

    def replace_buckets(self, buckets: Sequence[Bucket]) -> None:
        """Put the same items into other buckets; the last must hold `longest_need`."""
        self._set_buckets(buckets)
        first = self._first
        self._first = self._bucket_items(first.members, first.starts[:-1], first.speeds)
        self._epochs.cache_clear()
        self._orders.cache_clear()
        self._set_counts()

    # Construction

    def _set_buckets(self, buckets: Sequence[Bucket]) -> None:
        self.buckets = tuple(buckets)
        self._seconds = np.array([b.seconds for b in buckets]) + SLACK
        unlimited = np.iinfo(np.int64).max
        most = [b.max_labels if self._labelled else unlimited for b in buckets]
        self._max_labels = np.array(most)
        self._limit = (float(self._seconds[-1]), int(self._max_labels[-1]))

    def _set_counts(self) -> None:
        self.counts, self._supply = self._count()
        self.batches_per_epoch = sum(self.counts)

    def _exclude(self) -> list[tuple[int, str]]:
        last = self.buckets[-1]
        long = (self._durations > self._seconds[-1]) & (not self.crop)
        dense = self._labels > self._max_labels[-1]
        return [(int(i), f"longer than {last.seconds:g} s") for i in np.flatnonzero(long)] + [
            (int(i), f"more than {last.max_labels} labels") for i in np.flatnonzero(dense & ~long)
        ]

    def _kept(self) -> np.ndarray:
        """Utterances that are not excluded, in order."""
        kept = np.ones(self._size, bool)
        kept[[i for i, _ in self.excluded]] = False
        return np.flatnonzero(kept).astype(np.int32)

    def _repeats(self, epoch: int) -> np.ndarray:
        """Times that an epoch holds each utterance, [N]."""
        if self.sources:
            return epoch_shares.repeats_of_sources(self.sources, self._durations, self.seed, epoch)
        if self.languages:
            return epoch_shares.repeats_of_languages(self.languages, self._size, self.seed, epoch)
        return np.ones(self._size, np.int64)

    def hours_of_sources(self) -> dict[str, tuple[float, float]]:
        """{source: (hours of it in epoch 0, hours that it has)} with weights; {} without."""
        if not self.sources:
            return {}
        seconds = self._repeats(0) * self._durations
        return {
            name: (float(seconds[found.utterances].sum()) / 3600, found.seconds / 3600)
            for name, found in self.sources.items()
        }

    def _make_items(self, epoch: int) -> "_Items":
        """Permute each speaker's utterances and cut them into items of one or several."""
        rng = np.random.default_rng([self.seed, epoch, 0])
        return self._bucket_items(*self._draws.draw(rng, self._repeats(epoch), self._limit))

    def _bucket_items(
        self, members: np.ndarray, starts: np.ndarray, speeds: np.ndarray
    ) -> "_Items":
        """The bucket of each item."""
        if not len(starts):
            return _Items(members, np.zeros(1, int), speeds, starts)
        items = _Items(members, np.append(starts, len(members)), speeds, starts)
        seconds, labels = self._sizes(items)
        by_seconds = self._seconds.searchsorted(seconds)
        first = np.maximum(by_seconds, self._max_labels.searchsorted(labels))
        return items._replace(buckets=np.minimum(first, len(self.buckets) - 1).astype(np.int16))

    def _sizes(self, items: "_Items") -> tuple[np.ndarray, np.ndarray]:
        """(seconds [N], labels [N]) of items, gaps and spaces between joined ones included."""
        if not len(items.speeds):
            return np.zeros(0), np.zeros(0, int)
        starts, sizes = items.starts[:-1], np.diff(items.starts)
        seconds = np.add.reduceat(self._durations[items.members], starts) / items.speeds
        seconds += (sizes - 1) * self.max_gap
        return seconds, np.add.reduceat(self._labels[items.members], starts) + sizes - 1

    def _count(self) -> tuple[list[int], list[tuple[int, int]]]:
        """Batches of each bucket per epoch; and per bucket (the bucket that its items come from, -1
        without one; batches that those items fill per epoch)."""
        items = np.bincount(self._first.buckets, minlength=len(self.buckets)).tolist()
        sizes = [bucket.batch_size for bucket in self.buckets]
        counts = [-(-n // size) for n, size in zip(items, sizes, strict=True)]
        if not sum(counts):
            counted = collections.Counter(reason for _, reason in self.excluded)
            reasons = describe_skipped(counted) if counted else "the set is empty"
            cure = "check config.data.buckets and config.data.labels_per_second"
            raise UserError(f"no utterance is left to train on: {reasons}; {cure}")
        supply = []
        for k, size in enumerate(sizes):
            shorter = [j for j in range(k, -1, -1) if items[j]]
            longer = [j for j in range(k + 1, len(sizes)) if items[j] and self.crop]
            source = (shorter + longer + [-1])[0]
            supply.append((source, -(-items[source] // size) if source >= 0 else 0))
        return counts, supply

    def _make_epoch(self, epoch: int) -> tuple["_Items", list[np.ndarray]]:
        """Items of an epoch and, per bucket, their order, cut or repeated to full batches."""
        items = self._make_items(epoch) if epoch else self._first
        rng = np.random.default_rng([self.seed, epoch, 1])
        rows = []
        for bucket, (source, per_epoch) in zip(self.buckets, self._supply, strict=True):
            order = rng.permutation(np.flatnonzero(items.buckets == source))
            rows.append(np.resize(order, per_epoch * bucket.batch_size) if len(order) else order)
        return items, rows

    def _make_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Bucket of each batch of an epoch [N]; batches per bucket before each [N + 1, K]."""
        rng = np.random.default_rng([self.seed, epoch, 2])
        order = rng.permutation(np.repeat(np.arange(len(self.buckets)), self.counts))
        hits = order[:, None] == np.arange(len(self.buckets))[None, :]
        return order, np.concatenate([np.zeros((1, hits.shape[1]), int), np.cumsum(hits, axis=0)])

    def _item(self, items: "_Items", i: int) -> Item:
        members = tuple(items.members[items.starts[i] : items.starts[i + 1]].tolist())
        key = zlib.crc32("+".join(self._ids[member] for member in members).encode())
        return Item(members, float(items.speeds[i]), key)


class _Items(NamedTuple):
    """Item i has members[starts[i]:starts[i + 1]]."""

    members: np.ndarray
    starts: np.ndarray
    speeds: np.ndarray
    buckets: np.ndarray
