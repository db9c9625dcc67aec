"""From `config.data` to batches: streams, their plans, and arrays of fixed shapes through grain.

The step alone says where the data stand: a batch is a function of (config, seed, step), whatever
the number of threads, of hosts, and of restarts.
"""

import dataclasses
import functools
import hashlib
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bljust_jax.data import augment, normalise, settings, summary, text
from bljust_jax.data.plan import Item, Plan, bucket_table
from bljust_jax.data.quarantine import Quarantine
from bljust_jax.data.sources import Utterance, open_source
from bljust_jax.data.splits import Batch, Splits, empty_batch, fill, open_split, reasons
from bljust_jax.data.subset import keep, low_resource, timely
from bljust_jax.data.text import Tokenizer
from bljust_jax.errors import UserError

GAP = (0.02, 0.15)  # seconds between joined utterances
GAIN_DB = (-3.0, 3.0)  # of each joined utterance

STREAMS = ("labelled", "unlabelled")


class Segment(NamedTuple):
    """Steps start..start + length - 1 need these streams ("labelled", "unlabelled")."""

    start: int
    length: int
    streams: tuple[str, ...]


class Corpus(Splits):
    """Streams for training, and splits for evaluation; made by `load`.

    plans: {"labelled": Plan, "unlabelled": Plan}. A stream's batch is that of `empty_batch`, filled
    from its first row to its last; only a labelled one has labels.
    """

    def __init__(
        self,
        data: Any,
        seed: int,
        multiple: int,
        tokenizer: Tokenizer,
        utterances: dict[str, list[Utterance]],
        left_out: dict[str, Counter],
        quarantined: Quarantine,
    ):
        super().__init__(data, multiple, tokenizer, utterances, left_out, quarantined)
        self._seed = seed
        self._unjoinable: list[str] = []
        encoded = [tokenizer.encode(u.text or "") for u in utterances["labelled"]]
        self._labels = np.array([len(ids) for ids in encoded], np.int64)
        self._repeats = np.array([np.sum(ids[1:] == ids[:-1]) for ids in encoded], np.int64)
        self.plans = {}
        for stream in STREAMS:
            try:
                self.plans[stream] = self._plan(stream)
            except UserError as error:
                raise UserError(f"{stream}: {error}") from error
        lengths = [[b.seconds for b in plan.buckets] for plan in self.plans.values()]
        if lengths[0] != lengths[1] and len(lengths[1]) > 1:
            raise UserError(
                "config.data.unlabelled_buckets must be empty (those of data.buckets) or one length"
            )

    def _plan(self, stream: str) -> Plan:
        data, utterances = self._data, self._utterances[stream]
        paired = stream == "labelled"
        table = bucket_table(
            tuple(data.buckets) if paired else tuple(data.unlabelled_buckets or data.buckets),
            data.batch_seconds if paired else data.unlabelled_batch_seconds or data.batch_seconds,
            data.labels_per_second,
            self._multiple,
        )
        join = tuple(data.join if paired else data.unlabelled_join)
        share = float(data.join_share if paired else data.unlabelled_join_share)
        if share > 0 and join[1] > 1:
            self._check_speakers(stream, share)
        return Plan(
            [u.duration for u in utterances],
            self._labels.tolist() if paired else None,
            [u.speaker for u in utterances],
            self.references(stream) if paired else [""] * len(utterances),
            [u.id for u in utterances],
            table,
            zlib.crc32(f"{self._seed}/{stream}".encode()),
            join=join,
            join_share=share,
            max_gap=GAP[1],
            balance=float(data.balance if paired else 0.0),
            speed=tuple(data.speed),
            crop=not paired,
        )

    def _check_speakers(self, stream: str, share: float) -> None:
        """Strings are of one speaker: notes where there can be none; raises if nothing else is."""
        utterances = self._utterances[stream]
        if len({u.speaker for u in utterances}) < max(1, len(utterances)):
            return
        problem = "strings cannot be joined: no two utterances share a speaker"
        if share >= 1:
            setting = "join_share" if stream == "labelled" else "unlabelled_join_share"
            raise UserError(
                f'{problem}; add "speaker" to the manifest or set config.data.{setting} to 0'
            )
        self._unjoinable.append(f"{stream}: {problem}")

    def digest(self) -> str:
        """Sixteen hexadecimal digits that a run must share with a checkpoint to resume exactly.

        They are of the tokenizer and, for each plan, ids, durations, bucket table and seed.
        """
        facts: list[Any] = [self.tokenizer.to_json()]
        for stream, plan in self.plans.items():
            utterances = [(u.id, u.duration) for u in self._utterances[stream]]
            table = [dataclasses.astuple(bucket) for bucket in plan.buckets]
            facts.append([stream, utterances, table, plan.seed])
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    # Training

    def draws(self, segments: Sequence[Segment], step: int) -> dict[str, tuple[int, int]]:
        """{stream: (bucket, batch number within the bucket)} of a step.

        The driver is the labelled stream where the step needs it, else the unlabelled; n is the
        number of earlier steps that it drove. The other stream takes its own batches of the
        driver's bucket, by the driver's count, or batch n where it has one bucket.
        """
        n = 0
        for segment in segments:
            if segment.start <= step < segment.start + segment.length:
                break
        else:
            raise ValueError(f"step {step} is in no segment")
        leader = driver(segment.streams)
        for earlier in segments:
            if driver(earlier.streams) == leader:
                n += min(max(step - earlier.start, 0), earlier.length)
        k = self.plans[leader].bucket_of(n)
        m = self.plans[leader].count(k, n)
        return {s: (0, n) if self._alone(s, leader) else (k, m) for s in segment.streams}

    def _alone(self, stream: str, leader: str) -> bool:
        """Whether a stream has one bucket of its own, whatever the leader's."""
        return stream != leader and len(self.plans[stream].buckets) == 1

    def names_at(self, segments: Sequence[Segment], step: int) -> list[str]:
        """ "id (file:line)" of each utterance that a step hears, once, by stream and row."""
        heard = [
            self._utterances[stream][i]
            for stream, (k, m) in self.draws(segments, step).items()
            for item in self.plans[stream].batch_in_bucket(k, m)
            for i in item.members
        ]
        return list(dict.fromkeys(f"{u.id} ({u.line or u.path})" for u in heard))

    def buckets_in_use(self, streams: Sequence[str]) -> list[int]:
        """Indices of the buckets that steps of these streams have, the largest last."""
        counts = self.plans[driver(streams)].counts
        return [k for k, count in enumerate(counts) if count]

    def blank_batch(
        self, streams: Sequence[str], k: int, *, shard: tuple[int, int] = (0, 1)
    ) -> dict[str, Batch]:
        """{stream: batch of empty rows} of the shapes that a step has in the driver's bucket k."""
        rate = self._data.sample_rate
        blank = {}
        for stream in streams:
            alone = self._alone(stream, driver(streams))
            bucket = self.plans[stream].buckets[0 if alone else k]
            labelled = stream == "labelled"
            rows = bucket.batch_size // shard[1]
            blank[stream] = empty_batch(bucket, rows, rate, labelled=labelled)
        return blank

    def shape_at(self, segments: Sequence[Segment], step: int) -> dict[str, tuple[int, float]]:
        """{stream: (rows, seconds a row)} of a step, padding included; reads no audio."""
        buckets = {s: self.plans[s].buckets[k] for s, (k, _) in self.draws(segments, step).items()}
        return {stream: (b.batch_size, b.seconds) for stream, b in buckets.items()}

    def train_batches(
        self, segments: Sequence[Segment], start: int, *, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[dict[str, Batch]]:
        """{stream: batch} of each step from `start` to the end of the segments.

        shard: (index, count): only the index-th of `count` equal runs of rows is loaded. A row with
        audio that cannot be read is quarantined when its step comes: it has no audio and no labels,
        and so no part in any loss. UserError once more than `data.max_bad_fraction` of a stream's
        utterances proved bad.
        """
        if self._multiple % shard[1]:
            raise ValueError(f"batches of a multiple of {self._multiple} rows in {shard[1]} shards")
        total = max((s.start + s.length for s in segments), default=0)

        def load_step(step: int) -> dict[str, _Loaded]:
            return {
                stream: self._train_batch(stream, k, m, shard)
                for stream, (k, m) in self.draws(segments, step).items()
            }

        def admit(loaded: dict[str, _Loaded]) -> dict[str, Batch]:
            return {stream: self._admit(stream, made) for stream, made in loaded.items()}

        return map(admit, self._parallel(load_step, start, total))

    def sample_audio(self, batches: int) -> Iterator[Batch]:
        """The first batches of the unlabelled plan's own order, for feature statistics."""
        plan = self.plans["unlabelled"]

        def load_batch(n: int) -> _Loaded:
            k = plan.bucket_of(n)
            return self._train_batch("unlabelled", k, plan.count(k, n), (0, 1))

        loaded = self._parallel(load_batch, 0, batches)
        return map(functools.partial(self._admit, "unlabelled"), loaded)

    def _admit(self, stream: str, loaded: "_Loaded") -> Batch:
        """The batch, its bad utterances quarantined: in order of steps, whatever the threads."""
        for u, reason in loaded.bad:
            self.quarantined.add(stream, u, reason)
        return loaded.batch

    def _train_batch(self, stream: str, k: int, m: int, shard: tuple[int, int]) -> "_Loaded":
        plan, utterances = self.plans[stream], self._utterances[stream]
        bucket, items = plan.buckets[k], plan.batch_in_bucket(k, m)
        rows = len(items) // shard[1]
        items = items[shard[0] * rows : (shard[0] + 1) * rows]
        labelled = stream == "labelled"
        batch = empty_batch(bucket, rows, self._data.sample_rate, labelled=labelled)
        bad = []
        for row, item in enumerate(items):
            members = [utterances[i] for i in item.members]
            try:
                audio = self._waveform(members, item, bucket.seconds, m)
            except _BadAudio as error:
                bad.append(error.args)
                batch["ids"][row] = item.key
                continue
            texts = " ".join(u.text or "" for u in members)
            fill(batch, row, item.key, audio, self.tokenizer.encode(texts) if labelled else None)
        return _Loaded(batch, bad)

    def _waveform(
        self, members: Sequence[Utterance], item: Item, seconds: float, draw: int
    ) -> np.ndarray:
        """The augmented audio of an item, at most `seconds` long; raises _BadAudio."""
        rate = self._data.sample_rate
        rng = augment.generator(self._seed, item.key, draw)
        parts = []
        for u in members:
            stretch, excess = u, u.duration - seconds * item.speed
            if excess > 0:  # crop before decoding
                start = u.offset + rng.uniform(0.0, excess)
                stretch = dataclasses.replace(u, offset=start, duration=seconds * item.speed)
            try:
                parts.append(augment.speed(self._audio(stretch), item.speed))
            except UserError as error:
                raise _BadAudio(u, str(error)) from error
        gaps = (round(GAP[0] * rate), math.floor(GAP[1] * rate))
        audio = augment.join(parts, gaps, GAIN_DB, rng) if len(parts) > 1 else parts[0]
        audio = audio[: round(seconds * rate)]  # speed rounds lengths
        if self._data.noise_snr:
            audio = augment.noise(audio, rng.uniform(*self._data.noise_snr), rng)
        return audio

    # Words for people

    def summary(self) -> list[str]:
        """Lines on sizes, what was left out and why, bucket tables, how labels cover the texts."""
        sizes, plans = summary.sizes(self), summary.plans(self.plans)
        return [*self._unjoinable, *sizes, *plans, *summary.texts(self, ("dev", "test"))]

    def infeasible(self, frames: Callable[[int], int]) -> list[str]:
        """A line on labelled utterances that CTC cannot align, none where it can align them all.

        They have fewer frames than labels and repeats: T < U + repeats, which costs them any part
        in the loss. frames: samples -> frames of the encoder's output, at the speed as recorded.
        """
        needed = (self._labels + self._repeats).tolist()
        utterances = self._utterances["labelled"]
        lengths = [frames(round(u.duration * self._data.sample_rate)) for u in utterances]
        short = [i for i, (t, n) in enumerate(zip(lengths, needed, strict=True)) if t < n]
        if not short:
            return []
        u, t, n = utterances[short[0]], lengths[short[0]], needed[short[0]]
        return [
            f"labelled: {len(short)} of {len(utterances)} utterances have fewer frames than CTC"
            f" needs for their {self.tokenizer.unit}s and add nothing to it, first"
            f" {u.id} ({u.line or u.path}) with {t} for {n}: look for wrong texts or durations, or"
            " use larger units"
        ]


class _Loaded(NamedTuple):
    """A batch, and the utterances that it had to do without, with the reasons."""

    batch: Batch
    bad: list[tuple[Utterance, str]]


class _BadAudio(Exception):
    """(utterance, reason)"""


def driver(streams: Sequence[str]) -> str:
    """The stream whose plan decides the bucket of a step."""
    return "labelled" if "labelled" in streams else "unlabelled"


def load(data: Any, *, seed: int, multiple: int = 1, tokenizer: Tokenizer | None = None) -> Corpus:
    """The corpus that `config.data` describes; batch sizes are multiples of `multiple`.

    `tokenizer` replaces the one made from the labelled training texts (resumed and exported runs).
    Raises UserError for sources that cannot be read and settings that leave nothing to train on or
    to score.
    """
    if seed < 0:
        raise UserError(f"config.seed is {seed}; it must be 0 or above")
    settings.check(data)
    bad = Quarantine(data.max_bad_fraction)
    train = open_source(data.train, data.root)
    audio = open_source(data.unlabelled, data.root) if data.unlabelled else train
    train, audio = bad.sift("labelled", train), bad.sift("unlabelled", audio)
    left_out = {stream: Counter() for stream in STREAMS}
    utterances, tokenizer = _label(train, data, seed, tokenizer, left_out["labelled"])
    if data.overfit:
        few = [u for u in utterances if u.duration <= data.buckets[-1]][: data.overfit]
        streams = dict.fromkeys((*STREAMS, "dev"), few) | {"test": []}
        return Corpus(data, seed, multiple, tokenizer, streams, left_out, bad)
    streams = {
        "labelled": utterances,
        "unlabelled": timely(audio, data, left_out["unlabelled"]),
    }
    _require(streams["unlabelled"], left_out["unlabelled"], "unlabelled")
    for split in ("dev", "test"):
        streams[split], left_out[split] = open_split(split, data[split], data, bad)
    return Corpus(data, seed, multiple, tokenizer, streams, left_out, bad)


def _label(
    train: list[Utterance], data: Any, seed: int, tokenizer: Tokenizer | None, left_out: Counter
) -> tuple[list[Utterance], Tokenizer]:
    """The utterances that train with labels, and what spells those."""
    spell = normalise.make(data.text.normalise)
    found = keep(train, left_out, "without a text", lambda u: spell(u.text or ""))
    found = _require(timely(found, data, left_out), left_out, "train")
    found = low_resource(found, data, seed)
    joins = data.join_share > 0 and data.join[1] > 1
    if tokenizer is None:
        tokenizer = text.make(data.text, (u.text or "" for u in found), joined=joins)
    covers = tokenizer.covers
    found = keep(found, left_out, "with unknown characters", lambda u: covers(u.text or ""))
    found = _require(found, left_out, "train")
    if joins and not covers(f"{found[0].text} {found[0].text}"):
        raise UserError("config.data.join_share joins texts by a space, which the tokenizer lacks")
    return found, tokenizer


def _require(utterances: list[Utterance], left_out: Counter, source: str) -> list[Utterance]:
    if not utterances:
        raise UserError(
            f"config.data.{source}: no utterance is left to train on: {reasons(left_out)}"
        )
    return utterances
