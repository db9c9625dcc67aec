"""From `config.data` to batches: streams, their plans, and arrays of fixed shapes through grain.

The step alone says where the data stand: a batch is a function of (config, seed, step), whatever
the number of threads, of hosts, and of restarts.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bljust_jax.common.errors import UserError
from bljust_jax.data import augment, settings, streams, summary
from bljust_jax.data.batch_plan import Item, Plan, bucket_table, shares
from bljust_jax.data.filters import timely
from bljust_jax.data.quarantine import Quarantine
from bljust_jax.data.sources import Utterance, hours, open_source
from bljust_jax.data.splits import Batch, Splits, empty_batch, fill, open_split
from bljust_jax.data.streams import UNLABELLED
from bljust_jax.data.tokenizer import Tokenizer

GAP = (0.02, 0.15)  # seconds between joined utterances
GAIN_DB = (-3.0, 3.0)  # of each joined utterance


class Segment(NamedTuple):
    """Steps start..start + length - 1 need these streams, by name."""

    start: int
    length: int
    streams: tuple[str, ...]


class Corpus(Splits):
    """Streams for training, and splits for evaluation; made by `load`.

    plans: {stream: Plan}, the labelled ones in the order of their names, then "unlabelled". A
    stream's batch is that of `empty_batch`, filled from its first row to its last; only a labelled
    one has labels. All streams have as many buckets, or the unlabelled one has one.
    """

    def __init__(
        self,
        data: Any,
        seed: int,
        multiple: int,
        tokenizers: Mapping[str, Tokenizer],
        utterances: dict[str, list[Utterance]],
        left_out: dict[str, Counter],
        quarantined: Quarantine,
    ):
        super().__init__(data, multiple, tokenizers, utterances, left_out, quarantined)
        self._seed = seed
        self._unjoinable: list[str] = []
        self._labels = {name: self._count_labels(name) for name in self.streams}
        sizes = [hours(utterances[name]) for name in self.streams]
        parts = shares(sizes, data.temperature) * len(sizes) * data.batch_seconds
        audio = dict(zip(self.streams, parts.tolist(), strict=True))
        audio[UNLABELLED] = data.unlabelled_batch_seconds or data.batch_seconds
        self.plans = {}
        for name, seconds in audio.items():
            with streams.blaming(name):
                self.plans[name] = self._plan(name, seconds)
        self._check_buckets()

    def _count_labels(self, stream: str) -> np.ndarray:
        """Labels, and repeats of one label after itself, of each utterance: [2, N]."""
        encode = self.tokenizers[stream].encode
        encoded = (encode(u.text or "") for u in self._utterances[stream])
        counts = [(len(ids), np.sum(ids[1:] == ids[:-1])) for ids in encoded]
        return np.array(counts, np.int64).T

    def _plan(self, stream: str, batch_seconds: float) -> Plan:
        data, utterances = self._data, self._utterances[stream]
        paired = stream in self.streams
        lengths = tuple(data.unlabelled_buckets or data.buckets)
        if paired:
            lengths = self.streams[stream].buckets
        multiple = data.rows_multiple * self._multiple
        table = bucket_table(lengths, batch_seconds, data.labels_per_second, multiple)
        join = tuple(data.join if paired else data.unlabelled_join)
        share = float(data.join_share if paired else data.unlabelled_join_share)
        # names of speakers are of one source, and streams together have several
        speakers = [f"{u.lang}/{u.speaker}" if data.streams else u.speaker for u in utterances]
        if share > 0 and join[1] > 1:
            self._check_speakers(stream, share, len(set(speakers)))
        return Plan(
            [u.duration for u in utterances],
            self._labels[stream][0].tolist() if paired else None,
            speakers,
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
            languages=[u.lang for u in utterances],
            temperature=1.0 if paired else float(data.unlabelled_temperature),
        )

    def _check_buckets(self) -> None:
        """UserError where a stream has nothing for a bucket that another may lead it to."""
        for leader, name in itertools.permutations(self.streams, 2):
            led = self.buckets_in_use([leader]) if self.driver([leader, name]) == leader else []
            for k in (k for k in led if not self.plans[name].supplies(k)):
                own, other = self.streams[name], self.streams[leader]
                raise UserError(
                    f"{own.where}.buckets: no utterance of {name} is within {own.buckets[k]:g} s,"
                    f" which goes with {leader}'s {other.buckets[k]:g} s: make it longer"
                )

    def _check_speakers(self, stream: str, share: float, speakers: int) -> None:
        """Strings are of one speaker: notes where there can be none; raises if nothing else is."""
        if speakers < max(1, len(self._utterances[stream])):
            return
        problem = "strings cannot be joined: no two utterances share a speaker"
        if share >= 1:
            setting = "unlabelled_join_share" if stream == UNLABELLED else "join_share"
            raise UserError(
                f'{problem}; add "speaker" to the manifest or set config.data.{setting} to 0'
            )
        self._unjoinable.append(f"{stream}: {problem}")

    def digest(self) -> str:
        """Sixteen hexadecimal digits that a run must share with a checkpoint to resume exactly.

        They are of the tokenizers and, for each plan, ids, durations, bucket table and seed; of the
        labels too where streams may differ in them alone.
        """
        facts: list[Any] = [tokenizer.to_json() for tokenizer in self.tokenizers.values()]
        for stream, plan in self.plans.items():
            utterances = [(u.id, u.duration) for u in self._utterances[stream]]
            table = [dataclasses.astuple(bucket) for bucket in plan.buckets]
            facts.append([stream, utterances, table, plan.seed])
            if self._data.streams and stream in self.streams:
                facts.append(self.references(stream))
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    # Training

    def driver(self, needed: Sequence[str]) -> str:
        """The stream whose plan decides the bucket of a step that needs these.

        It is the labelled one with the most batches an epoch, the first of them by name, or else
        the unlabelled one.
        """
        labelled = [name for name in self.streams if name in needed]
        batches = {name: self.plans[name].batches_per_epoch for name in labelled}
        return max(labelled, key=lambda name: batches[name], default=UNLABELLED)

    def draws(self, segments: Sequence[Segment], step: int) -> dict[str, tuple[int, int]]:
        """{stream: (bucket, batch number within the bucket)} of a step.

        The driver's n-th batch is the step's, n the number of earlier steps that it drove. Every
        other stream takes its own batches of the driver's bucket, by the driver's count, or batch n
        where it has one bucket.
        """
        n = 0
        for segment in segments:
            if segment.start <= step < segment.start + segment.length:
                break
        else:
            raise ValueError(f"step {step} is in no segment")
        leader = self.driver(segment.streams)
        for earlier in segments:
            if self.driver(earlier.streams) == leader:
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

    def buckets_in_use(self, needed: Sequence[str]) -> list[int]:
        """Indices of the buckets that steps of these streams have, the largest last."""
        counts = self.plans[self.driver(needed)].counts
        return [k for k, count in enumerate(counts) if count]

    def blank_batch(
        self, needed: Sequence[str], k: int, *, shard: tuple[int, int] = (0, 1)
    ) -> dict[str, Batch]:
        """{stream: batch of empty rows} of the shapes that a step has in the driver's bucket k."""
        rate = self._data.sample_rate
        blank = {}
        for stream in needed:
            alone = self._alone(stream, self.driver(needed))
            bucket = self.plans[stream].buckets[0 if alone else k]
            rows = bucket.batch_size // shard[1]
            blank[stream] = empty_batch(bucket, rows, rate, labelled=stream in self.streams)
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
        plan = self.plans[UNLABELLED]

        def load_batch(n: int) -> _Loaded:
            k = plan.bucket_of(n)
            return self._train_batch(UNLABELLED, k, plan.count(k, n), (0, 1))

        loaded = self._parallel(load_batch, 0, batches)
        return map(functools.partial(self._admit, UNLABELLED), loaded)

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
        tokenizer = self.tokenizers.get(stream)
        batch = empty_batch(bucket, rows, self._data.sample_rate, labelled=tokenizer is not None)
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
            fill(batch, row, item.key, audio, tokenizer.encode(texts) if tokenizer else None)
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
        return [*self._unjoinable, *sizes, *plans, *summary.texts(self)]

    def infeasible(
        self, frames: Callable[[int], int], needed: Sequence[str] | None = None
    ) -> list[str]:
        """A line a labelled stream on utterances that CTC cannot align, none where it can.

        They have fewer frames than labels and repeats: T < U + repeats, which costs them any part
        in the loss. frames: samples -> frames of the encoder's output, at the speed as recorded;
        needed: the streams that CTC is to learn, by default all.
        """
        lines = []
        for stream in self.streams if needed is None else needed:
            utterances, spans = self._utterances[stream], self._labels[stream].sum(axis=0).tolist()
            lengths = [frames(round(u.duration * self._data.sample_rate)) for u in utterances]
            short = [i for i, (t, n) in enumerate(zip(lengths, spans, strict=True)) if t < n]
            if short:
                u, t, n = utterances[short[0]], lengths[short[0]], spans[short[0]]
                lines.append(
                    f"{stream}: {len(short)} of {len(utterances)} utterances have fewer frames than"
                    f" CTC needs for their {self.tokenizers[stream].unit}s and add nothing to it,"
                    f" first {u.id} ({u.line or u.path}) with {t} for {n}: look for wrong texts or"
                    " durations, or use larger units"
                )
        return lines


class _Loaded(NamedTuple):
    """A batch, and the utterances that it had to do without, with the reasons."""

    batch: Batch
    bad: list[tuple[Utterance, str]]


class _BadAudio(Exception):
    """(utterance, reason)"""


def load_corpus(
    data: Any, *, seed: int, multiple: int = 1, tokenizers: Mapping[str, Tokenizer] | None = None
) -> Corpus:
    """The corpus that `config.data` describes; batch sizes are multiples of `multiple`.

    `tokenizers` {labelled stream: Tokenizer} replace those made from the training texts (resumed
    and exported runs). Raises UserError for sources that cannot be read and settings that leave
    nothing to train on or to score.
    """
    if seed < 0:
        raise UserError(f"config.seed is {seed}; it must be 0 or above")
    settings.check(data)
    bad, described = Quarantine(data.max_bad_fraction), streams.described(data)
    opened = streams.open_once(described.values(), data.root)
    audio = streams.all_audio(opened.values())
    if data.unlabelled:
        audio = open_source(data.unlabelled, data.root)
    found = {name: bad.sift(name, opened[s.uris["train"]]) for name, s in described.items()}
    audio = bad.sift(UNLABELLED, audio)
    left_out = {name: Counter() for name in (*described, UNLABELLED)}
    spelt = {}
    for name, stream in described.items():
        given = tokenizers[name] if tokenizers else None
        found[name], spelt[name] = streams.label(
            stream, found[name], data, seed, given, left_out[name]
        )
    if data.overfit:
        found = streams.few(found, described, data.overfit, bad)
        return Corpus(data, seed, multiple, spelt, found, left_out, bad)
    audio = timely(audio, data, left_out[UNLABELLED])
    found[UNLABELLED] = streams.required(audio, left_out[UNLABELLED], "config.data.unlabelled")
    for split in ("dev", "test"):
        for name, stream in described.items():
            part = streams.split_name(split, name)
            uri = stream.uris[split]
            found[part], left_out[part] = open_split(part, uri, stream, data, bad)
    return Corpus(data, seed, multiple, spelt, found, left_out, bad)
