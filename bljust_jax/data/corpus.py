"""Training corpus: batches of fixed shapes from `config.data`, loaded by grain.

A batch is a function of (config, seed, step), for any number of threads, hosts and restarts.
"""

import dataclasses
import functools
import itertools
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bljust_jax.common.errors import UserError
from bljust_jax.data import bucket_lengths, frame_labels, held_back, split_checks, streams, summary
from bljust_jax.data.augment import chain, waveform
from bljust_jax.data.batch_plan import Item, Plan
from bljust_jax.data.buckets import Bucket, bucket_table
from bljust_jax.data.epoch_shares import shares
from bljust_jax.data.fingerprint import digest_of
from bljust_jax.data.frame_labels import FrameLabels
from bljust_jax.data.quarantine import Quarantine
from bljust_jax.data.replay import Replay
from bljust_jax.data.scripts import measure_of
from bljust_jax.data.splits import Batch, Splits, empty_batch, fill_row, open_split
from bljust_jax.data.step_draws import Segment, StepDraws
from bljust_jax.data.streams import UNLABELLED
from bljust_jax.data.strings import Strings
from bljust_jax.data.tokenizer import Tokenizer
from bljust_jax.data.utterances import Utterance, concatenated, hours

GAP = (0.02, 0.15)  # seconds between joined utterances
GAIN_DB = (-3.0, 3.0)  # of each joined utterance


class Corpus(StepDraws, Splits):
    """Streams for training, and splits for evaluation; made by `load_corpus`.

    plans: {stream: Plan}, the labelled ones sorted by name, then "unlabelled". A batch has the
    arrays of `empty_batch`, all rows filled; only labelled streams have labels. All streams have
    equally many buckets, with equal shares of their batches, or the unlabelled one has one.
    frame_labels: of the unlabelled stream, whose batches then have them; None without.
    """

    def __init__(
        self,
        seed: int,
        phases: Any,
        notes: Iterable[str],
        *parts: Any,
        frame_labels: FrameLabels | None = None,
    ):
        """phases: `config.phases`; notes: lines of the summary; parts: the arguments of `Splits`"""
        super().__init__(*parts)
        data, self._seed, self._notes = self._data, seed, list(notes)
        self.frame_labels, self._augment = frame_labels, chain.Chain(data, seed)
        # order of the unlabelled batches of steps without labelled ones; None: that of the plan
        self.replay: Replay | None = None
        self._labels = {name: self._count_labels(name) for name in self.streams}
        sizes = [hours(self.utterances(name)) for name in self.streams]
        parts = shares(sizes, data.temperature) * len(sizes) * data.batch_seconds
        audio = dict(zip(self.streams, parts.tolist(), strict=True))
        audio[UNLABELLED] = data.unlabelled_batch_seconds or data.batch_seconds
        self.plans = {}
        for name, seconds in audio.items():
            with streams.error_prefix(name):
                self.plans[name] = self._plan(name, seconds)
        leader, multiple = self.driver(tuple(self.streams)), data.rows_multiple * self._multiple
        total = 0.0
        if data.num_buckets:
            size = [hours(self.utterances(name)) for name in (leader, UNLABELLED)]
            total = bucket_lengths.hours_of_run(phases, audio[leader], *size)
        self._notes += bucket_lengths.settle(self.plans, leader, audio, multiple, data, total)
        for name, lengths in self.chosen_lengths.items():  # evaluation has those of training
            self.streams[name] = self.streams[name]._replace(buckets=lengths)

    @property
    def chosen_lengths(self) -> dict[str, tuple[float, ...]]:
        """{labelled stream: lengths of its batches} chosen from durations; {} without."""
        if not self._data.num_buckets:
            return {}
        plans = {name: self.plans[name] for name in self.streams}
        return {name: tuple(b.seconds for b in plan.buckets) for name, plan in plans.items()}

    @property
    def suited_measure(self) -> str:
        """The error rate that suits the training texts of a single stream."""
        return "wer" if self._data.streams else measure_of(self.references(streams.LABELLED))

    def _count_labels(self, stream: str) -> np.ndarray:
        """Number of labels, and of labels equal to the one before, per utterance: [2, N]."""
        return self.tokenizers[stream].count_labels(self.references(stream))

    def _plan(self, stream: str, batch_seconds: float) -> Plan:
        data, utterances = self._data, self._utterances[stream]
        paired = stream in self.streams
        alone = tuple(data.unlabelled_buckets or data.buckets)
        lengths = self.streams[stream].buckets if paired else alone
        multiple = data.rows_multiple * self._multiple
        table = bucket_table(lengths, batch_seconds, data.labels_per_second, multiple)
        join = tuple(data.join if paired else data.unlabelled_join)
        share = float(data.join_share if paired else data.unlabelled_join_share)
        speakers, languages = utterances.speakers, utterances.column("lang")
        if data.streams:  # names are unique within one source, and several streams have several
            pairs = zip(languages, speakers, strict=True)
            speakers = Strings.of(f"{language}/{speaker}" for language, speaker in pairs)
        if share > 0 and join[1] > 1:
            self._notes += streams.check_joinable(stream, share, speakers.ranks())
        return Plan(
            utterances.durations,
            self._labels[stream][0] if paired else None,
            speakers,
            self.references(stream) if paired else Strings.blank(len(utterances)),
            utterances.ids,
            table,
            zlib.crc32(f"{self._seed}/{stream}".encode()),
            join=join,
            join_share=share,
            max_gap=GAP[1],
            balance=float(data.balance if paired else 0.0),
            speed=tuple(data.speed),
            crop=not paired,
            languages=languages,
            temperature=1.0 if paired else float(data.unlabelled_temperature),
            sources=utterances.column("part"),
            weights=streams.weights(data) if paired else {},
        )

    def digest(self) -> str:
        """Fingerprint of the training data, 16 hexadecimal digits: equal in a checkpoint and in the
        run that resumes from it.

        It covers the tokenizers and, per plan, ids, durations, bucket table and seed; with several
        streams also the labels, as streams may differ in them alone.
        """
        facts: list[Any] = [tokenizer.to_json() for tokenizer in self.tokenizers.values()]
        for stream, plan in self.plans.items():
            own = self._utterances[stream]
            utterances = zip(own.ids, own.durations.tolist(), strict=True)
            table = [dataclasses.astuple(bucket) for bucket in plan.buckets]
            facts.append([stream, utterances, table, plan.seed])
            if self._data.streams and stream in self.streams:
                facts.append(self.references(stream))
        if self.frame_labels:
            facts.append(self.frame_labels.digest())
        return digest_of(facts)

    # Training

    def utterances_at(self, segments: Sequence[Segment], step: int) -> list[str]:
        """ "id (file:line)" of each utterance in the batches of a step, by stream and row."""
        read = [
            self._utterances[stream][i]
            for stream, (k, m) in self.draws(segments, step).items()
            for item in self.plans[stream].nth_batch_of_bucket(k, m)
            for i in item.members
        ]
        return list(dict.fromkeys(f"{u.id} ({u.line or u.path})" for u in read))

    def empty_batches(
        self, buckets: Mapping[str, int], *, shard: tuple[int, int] = (0, 1)
    ) -> dict[str, Batch]:
        """{stream: batch of empty rows} in the shapes of these buckets."""
        tables = {stream: self.plans[stream].buckets[k] for stream, k in buckets.items()}
        return {s: self._empty(s, b, b.batch_size // shard[1]) for s, b in tables.items()}

    def _empty(self, stream: str, bucket: Bucket, rows: int) -> Batch:
        """`empty_batch` of a stream, with room for frame labels in the unlabelled one."""
        labelled, found = stream in self.streams, self.frame_labels
        frames = found.room(bucket.seconds) if found and stream == UNLABELLED else 0
        rate = self._data.sample_rate
        made = empty_batch(bucket, rows, rate, labelled=labelled, frame_labels=frames)
        if self.replay and stream == UNLABELLED:  # of the whole batch, the same in every row
            made |= {key: np.zeros(rows, np.int32) for key in ("cache_slot", "cache_fresh")}
        return made

    def with_frame_labels(self, batch: Batch, members: Sequence[Utterance]) -> Batch:
        """A batch of `eval_batches` with its frame labels, if the corpus has some."""
        found = self.frame_labels
        return found.added_to(batch, members, self._data.sample_rate) if found else batch

    def train_batches(
        self, segments: Sequence[Segment], start: int, *, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[dict[str, Batch]]:
        """{stream: batch} of each step from `start` to the end of the segments.

        shard: (index, count): only the index-th of `count` equal runs of rows is loaded. A row with
        corrupt audio has no audio and no labels, so no loss, and its utterance is quarantined at
        that step. UserError once more than `data.max_bad_fraction` of a stream is quarantined.
        """
        if self._multiple % shard[1]:
            raise ValueError(f"batches of a multiple of {self._multiple} rows in {shard[1]} shards")
        total = max((s.start + s.length for s in segments), default=0)

        def load_step(step: int) -> dict[str, _Loaded]:
            draws = self.draws(segments, step).items()
            loaded = {stream: self._train_batch(stream, k, m, shard) for stream, (k, m) in draws}
            leader, n, _ = self._count(segments, step)
            if self.replay and leader == UNLABELLED:
                _, slot, fresh = self.replay[n]
                loaded[UNLABELLED].batch["cache_slot"][:] = slot
                loaded[UNLABELLED].batch["cache_fresh"][:] = fresh
            return loaded

        def admit(loaded: dict[str, _Loaded]) -> dict[str, Batch]:
            return {stream: self._quarantine_bad(stream, made) for stream, made in loaded.items()}

        return map(admit, self._parallel(load_step, start, total))

    def unlabelled_batches(self, batches: int) -> Iterator[Batch]:
        """The first batches of the unlabelled plan, for feature statistics."""
        plan = self.plans[UNLABELLED]

        def load_batch(n: int) -> _Loaded:
            k = plan.bucket_of(n)
            return self._train_batch(UNLABELLED, k, plan.count(k, n), (0, 1))

        loaded = self._parallel(load_batch, 0, batches)
        return map(functools.partial(self._quarantine_bad, UNLABELLED), loaded)

    def _quarantine_bad(self, stream: str, loaded: "_Loaded") -> Batch:
        """The batch, its corrupt utterances quarantined: in order of steps, in the main thread."""
        for u, reason in loaded.bad:
            self.quarantined.add(stream, u, reason)
        return loaded.batch

    def _train_batch(self, stream: str, k: int, m: int, shard: tuple[int, int]) -> "_Loaded":
        plan, utterances = self.plans[stream], self._utterances[stream]
        bucket, items = plan.buckets[k], plan.nth_batch_of_bucket(k, m)
        rows = len(items) // shard[1]
        items = items[shard[0] * rows : (shard[0] + 1) * rows]
        tokenizer = self.tokenizers.get(stream)
        batch, bad = self._empty(stream, bucket, rows), []
        for row, item in enumerate(items):
            members = [utterances[i] for i in item.members]
            try:
                audio, start = self._waveform(members, item, bucket.seconds, m)
            except _BadAudio as error:
                bad.append(error.args)
                batch["ids"][row] = item.key
                continue
            texts = " ".join(u.text or "" for u in members)
            fill_row(batch, row, item.key, audio, tokenizer.encode(texts) if tokenizer else None)
            if "frame_labels" in batch:
                seconds = len(audio) / self._data.sample_rate
                self.frame_labels.fill_row(batch, row, members[0], seconds, start, item.speed)
        return _Loaded(batch, bad)

    def _waveform(
        self, members: Sequence[Utterance], item: Item, seconds: float, draw: int
    ) -> tuple[np.ndarray, float]:
        """(augmented audio of an item, int16 [S], at most `seconds` long; seconds that a crop skips
        before it). Raises _BadAudio."""
        rate, skipped = self._data.sample_rate, 0.0
        rng = waveform.generator(self._seed, item.key, draw)
        parts = []
        for u in members:
            stretch, excess = u, u.duration - seconds * item.speed
            if excess > 0:  # crop before decoding
                skipped = rng.uniform(0.0, excess)
                cropped = {"offset": u.offset + skipped, "duration": seconds * item.speed}
                stretch = dataclasses.replace(u, **cropped)
            try:
                parts.append(waveform.speed(self._audio(stretch), item.speed))
            except UserError as error:
                raise _BadAudio(u, str(error)) from error
        gaps = (round(GAP[0] * rate), math.floor(GAP[1] * rate))
        audio = waveform.join(parts, gaps, GAIN_DB, rng) if len(parts) > 1 else parts[0]
        audio = audio[: round(seconds * rate)]  # resampling rounds lengths
        return self._augment(audio, item.key, draw, rng), skipped

    def summary(self) -> list[str]:
        """Lines on sizes, skipped utterances, bucket tables, and how labels cover the texts."""
        sizes, plans = summary.sizes(self), summary.plans(self.plans)
        checks = [] if self._data.overfit else split_checks.describe(self)
        return [*self._notes, *sizes, *plans, *summary.texts(self), *checks]

    def infeasible(
        self, frames: Callable[[int], int], needed: Sequence[str] | None = None
    ) -> list[str]:
        """See `summary.infeasible`; needed: the streams with a CTC loss, by default all."""
        labels = {name: self._labels[name] for name in (self.streams if needed is None else needed)}
        return summary.infeasible(self, labels, frames, self._data.sample_rate)


class _Loaded(NamedTuple):
    """A batch, and its utterances of corrupt audio with the reasons."""

    batch: Batch
    bad: list[tuple[Utterance, str]]


class _BadAudio(Exception):
    """(utterance, reason)"""


def load_corpus(
    data: Any,
    *,
    seed: int,
    multiple: int = 1,
    tokenizers: Mapping[str, Tokenizer] | None = None,
    phases: Any = None,
) -> Corpus:
    """The corpus of `config.data`; batch sizes are multiples of `multiple`.

    phases: `config.phases`, which `data.num_buckets` needs.
    `tokenizers` {labelled stream: Tokenizer} replace those learned from the training texts (of
    resumed and exported runs). Raises UserError for sources that cannot be read, and fields that
    leave nothing to train on or to score.
    """
    bad, described = Quarantine(data.max_bad_fraction), streams.labelled_streams(data)
    opened = streams.open_training_sources(described.values(), data.root)
    apart, opened = held_back.separate(data, opened)
    audio = streams.unique_utterances(opened.values())
    found = {name: bad.sift(name, opened[s.uris["train"]]) for name, s in described.items()}
    dev = data, bad, apart
    skipped = {name: Counter() for name in (*described, UNLABELLED)}
    made, notes = {}, []
    for name, stream in described.items():
        given = tokenizers[name] if tokenizers else None
        found[name], made[name] = streams.label(
            stream, found[name], data, seed, given, skipped[name]
        )
    if data.overfit:
        found = streams.overfit_splits(found, described, data.overfit, bad)
    else:
        parts = streams.unlabelled_audio(audio, data, seed, bad, skipped[UNLABELLED], apart)
        notes += summary.unlabelled_parts(parts)
        kept = concatenated(list(parts.values()))
        found[UNLABELLED] = streams.require_any(kept, skipped[UNLABELLED], "config.data.unlabelled")
        for split, (name, stream) in itertools.product(("dev", "test"), described.items()):
            part = streams.split_name(split, name)
            found[part], skipped[part] = open_split(part, stream.uris[split], stream, *dev)
    others = (u for name, part in found.items() if name != UNLABELLED for u in part)
    in_order = functools.partial(streams.in_order, audio, data)
    labels = frame_labels.load(data, found[UNLABELLED], others, in_order)
    notes += [labels.describe()] if labels else []
    parts = data, multiple, made, found, skipped, bad
    corpus = Corpus(seed, phases, notes, *parts, frame_labels=labels)
    split_checks.check_spellable(corpus, float(data.min_spellable))
    return corpus
