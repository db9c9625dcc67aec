"""From `config.data` to batches: streams, their plans, and arrays of fixed shapes through grain.

The step alone says where the data stand: a batch is a function of (config, seed, step), whatever
the number of threads, of hosts, and of restarts.
"""

import collections
import dataclasses
import hashlib
import json
import logging
import math
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bljust_jax.data import augment
from bljust_jax.data.plan import Bucket, Item, Plan, bucket_table, evaluation_batches
from bljust_jax.data.sources import Utterance, hours, open_source, read_audio
from bljust_jax.data.subset import keep, low_resource, scorable, timely
from bljust_jax.data.text import CharTokenizer
from bljust_jax.errors import UserError

GAP = (0.02, 0.15)  # seconds between joined utterances
GAIN_DB = (-3.0, 3.0)  # of each joined utterance

Batch = dict[str, np.ndarray]


class Segment(NamedTuple):
    """Steps start..start + length - 1 need these streams ("labelled", "unlabelled")."""

    start: int
    length: int
    streams: tuple[str, ...]


class Corpus:
    """Streams for training and splits for evaluation; made by `load`.

    tokenizer; plans: {"labelled": Plan, "unlabelled": Plan}.
    A stream's batch is {audio: int16 [B, S], audio_lengths: int32 [B] (samples), ids: uint32 [B]
    (crc32 of the utterances' ids)}, S = round(seconds * sample_rate); a labelled one has also
    labels: int32 [B, U] (0 padded) and label_lengths: int32 [B], U the bucket's max_labels.
    """

    def __init__(
        self,
        data: Any,
        seed: int,
        multiple: int,
        tokenizer: CharTokenizer,
        utterances: dict[str, list[Utterance]],
        left_out: dict[str, collections.Counter],
    ):
        self.tokenizer = tokenizer
        self._data, self._seed, self._multiple = data, seed, multiple
        self._utterances, self._left_out = utterances, left_out
        self._bad: dict[str, set[str]] = {"labelled": set(), "unlabelled": set()}
        self._bad_lock = threading.Lock()
        self._unjoinable: list[str] = []
        self.plans = {name: self._plan(name) for name in ("labelled", "unlabelled")}
        lengths = [[b.seconds for b in plan.buckets] for plan in self.plans.values()]
        if lengths[0] != lengths[1] and len(lengths[1]) > 1:
            raise UserError(
                "data.unlabelled_buckets must be empty (the lengths of data.buckets) or one length"
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
        texts = [self.tokenizer.normalise(u.text) if paired and u.text else "" for u in utterances]
        return Plan(
            [u.duration for u in utterances],
            [len(text) for text in texts] if paired else None,
            [u.speaker for u in utterances],
            texts,
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
        problem = f"{stream}: strings cannot be joined: no two utterances share a speaker"
        if share >= 1:
            setting = "join_share" if stream == "labelled" else "unlabelled_join_share"
            raise UserError(
                f'{problem}; add "speaker" to the manifest or set config.data.{setting} to 0'
            )
        self._unjoinable.append(problem)

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
            driver = "labelled" if "labelled" in segment.streams else "unlabelled"
            if segment.start <= step < segment.start + segment.length:
                break
        else:
            raise ValueError(f"step {step} is in no segment")
        for earlier in segments:
            drives = "labelled" if "labelled" in earlier.streams else "unlabelled"
            if drives == driver:
                n += min(max(step - earlier.start, 0), earlier.length)
        k = self.plans[driver].bucket_of(n)
        m = self.plans[driver].count(k, n)
        drawn = {}
        for stream in segment.streams:
            alone = stream != driver and len(self.plans[stream].buckets) == 1
            drawn[stream] = (0, n) if alone else (k, m)
        return drawn

    def shape_at(self, segments: Sequence[Segment], step: int) -> dict[str, tuple[int, float]]:
        """{stream: (rows, seconds a row)} of a step, padding included; reads no audio."""
        buckets = {s: self.plans[s].buckets[k] for s, (k, _) in self.draws(segments, step).items()}
        return {stream: (b.batch_size, b.seconds) for stream, b in buckets.items()}

    def train_batches(
        self, segments: Sequence[Segment], start: int, *, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[dict[str, Batch]]:
        """{stream: batch} of each step from `start` to the end of the segments.

        shard: (index, count): only the index-th of `count` equal runs of rows is loaded. Audio that
        cannot be read raises UserError once more than `data.max_bad_fraction` of a stream's
        utterances proved bad; until then such a row has no audio and no labels, and is logged.
        """
        if self._multiple % shard[1]:
            raise ValueError(f"batches of a multiple of {self._multiple} rows in {shard[1]} shards")
        total = max((s.start + s.length for s in segments), default=0)

        def load_step(step: int) -> dict[str, Batch]:
            return {
                stream: self._train_batch(stream, k, m, shard)
                for stream, (k, m) in self.draws(segments, step).items()
            }

        return self._parallel(load_step, start, total)

    def sample_audio(self, batches: int) -> Iterator[Batch]:
        """The first batches of the unlabelled plan's own order, for feature statistics."""
        plan = self.plans["unlabelled"]

        def load_batch(n: int) -> Batch:
            k = plan.bucket_of(n)
            return self._train_batch("unlabelled", k, plan.count(k, n), (0, 1))

        return self._parallel(load_batch, 0, batches)

    def _parallel(self, make: Callable[[int], Any], start: int, stop: int) -> Iterator[Any]:
        """make(start), ..., make(stop - 1), in order, by grain's threads."""
        import grain

        threads, buffer = self._data.num_threads, self._data.prefetch
        options = grain.ReadOptions(threads, max(buffer, threads))
        return iter(grain.MapDataset.range(start, stop).map(make).to_iter_dataset(options))

    def _train_batch(self, stream: str, k: int, m: int, shard: tuple[int, int]) -> Batch:
        plan = self.plans[stream]
        bucket, items = plan.buckets[k], plan.batch_in_bucket(k, m)
        rows = len(items) // shard[1]
        items = items[shard[0] * rows : (shard[0] + 1) * rows]
        batch = self._empty(bucket, rows, stream == "labelled")
        for row, item in enumerate(items):
            batch["ids"][row] = item.key
            audio = self._waveform(stream, item, bucket.seconds, m)
            if audio is None:
                continue
            members = [self._utterances[stream][i] for i in item.members]
            self._fill(batch, row, audio, " ".join(u.text or "" for u in members))
        return batch

    def _waveform(self, stream: str, item: Item, seconds: float, draw: int) -> np.ndarray | None:
        """The augmented audio of an item, at most `seconds` long; None where it cannot be read."""
        rate = self._data.sample_rate
        rng = augment.generator(self._seed, item.key, draw)
        parts = []
        for i in item.members:
            u = self._utterances[stream][i]
            excess = u.duration - seconds * item.speed
            if excess > 0:  # crop before decoding
                start = u.offset + rng.uniform(0.0, excess)
                u = dataclasses.replace(u, offset=start, duration=seconds * item.speed)
            try:
                parts.append(augment.speed(read_audio(u, rate), item.speed))
            except UserError as error:
                self._tolerate(stream, u, error)
                return None
        gaps = (round(GAP[0] * rate), math.floor(GAP[1] * rate))
        audio = augment.join(parts, gaps, GAIN_DB, rng) if len(parts) > 1 else parts[0]
        audio = audio[: round(seconds * rate)]  # speed rounds lengths
        if self._data.noise_snr:
            audio = augment.noise(audio, rng.uniform(*self._data.noise_snr), rng)
        return audio

    def _tolerate(self, stream: str, u: Utterance, error: UserError) -> None:
        """Logs a bad utterance, once; raises when they are too many."""
        bad = self._bad[stream]
        with self._bad_lock:
            if u.id not in bad:
                bad.add(u.id)
                if len(bad) > self._data.max_bad_fraction * len(self._utterances[stream]):
                    raise error
                logging.warning("left out: %s", error)

    # Evaluation

    def utterances(self, split: str) -> list[Utterance]:
        """Utterances of "labelled", "unlabelled", "dev" or "test", in the order of their source."""
        return self._utterances[split]

    def references(self, split: str) -> list[str]:
        """Normalised texts of `utterances(split)`, "" where one is missing."""
        return [self._reference(u) for u in self._utterances[split]]

    def parts(self, split: str) -> dict[str, list[int]]:
        """{name: indices into `utterances(split)`} of the sources that a split joins by "+".

        The names are those of `open_source`; {} where the split is of one source.
        """
        found: dict[str, list[int]] = {}
        for i, u in enumerate(self._utterances[split]):
            if u.part:
                found.setdefault(u.part, []).append(i)
        return found

    def eval_batches(self, split: str) -> Iterator[tuple[Batch, list[Utterance]]]:
        """Batches as unlabelled ones, and the utterances of their first rows, each exactly once.

        No augmentation and no joining; a bucket's last batch is padded with rows of length 0. The
        shapes are those of `evaluation_batches`. Bad audio raises UserError.
        """
        data, utterances = self._data, self._utterances[split]
        durations = [u.duration for u in utterances]
        batches = evaluation_batches(
            durations, data.buckets, data.eval_batch_seconds, self._multiple
        )

        def load_batch(n: int) -> tuple[Batch, list[Utterance]]:
            bucket, indices = batches[n]
            members = [utterances[i] for i in indices]
            batch = self._empty(bucket, bucket.batch_size, False)
            for row, u in enumerate(members):
                batch["ids"][row] = zlib.crc32(u.id.encode())
                self._fill(batch, row, read_audio(u, data.sample_rate))
            return batch, members

        return self._parallel(load_batch, 0, len(batches))

    def _reference(self, u: Utterance) -> str:
        return self.tokenizer.normalise(u.text or "")

    # Arrays

    def _empty(self, bucket: Bucket, rows: int, labelled: bool) -> Batch:
        samples = round(bucket.seconds * self._data.sample_rate)
        batch = {
            "audio": np.zeros((rows, samples), np.int16),
            "audio_lengths": np.zeros(rows, np.int32),
            "ids": np.zeros(rows, np.uint32),
        }
        if labelled:
            batch["labels"] = np.zeros((rows, bucket.max_labels), np.int32)
            batch["label_lengths"] = np.zeros(rows, np.int32)
        return batch

    def _fill(self, batch: Batch, row: int, audio: np.ndarray, text: str = "") -> None:
        batch["audio"][row, : len(audio)] = audio
        batch["audio_lengths"][row] = len(audio)
        if "labels" in batch:
            labels = self.tokenizer.encode(text)
            batch["labels"][row, : len(labels)] = labels
            batch["label_lengths"][row] = len(labels)

    # Words for people

    def summary(self) -> list[str]:
        """Lines on sizes, what was left out and why, bucket tables, uncovered characters."""
        lines = list(self._unjoinable)
        for name, utterances in self._utterances.items():
            if not utterances:
                continue
            size = f"{len(utterances)} utterances, {hours(utterances):.2f} h"
            lines.append(f"{name}: {size}, {len({u.speaker for u in utterances})} speakers")
        for stream, plan in self.plans.items():
            reasons = collections.Counter(reason for _, reason in plan.excluded)
            for reason, n in (self._left_out[stream] + reasons).items():
                lines.append(f"{stream}: {n} utterances left out: {reason}")
            for bucket, batches in zip(plan.buckets, plan.counts, strict=True):
                lines.append(
                    f"{stream}: {batches} batches an epoch of {bucket.batch_size} x "
                    f"{bucket.seconds:g} s, at most {bucket.max_labels} labels"
                )
        lines.append(f"tokenizer: {self.tokenizer.vocab_size - 1} characters and the blank")
        for split in ("dev", "test"):
            references = self.references(split)
            silent = references.count("")
            if silent:
                lines.append(f"{split}: {silent} utterances without a text cannot be scored")
            unknown = self.tokenizer.uncovered(references)
            if unknown:
                counts = ", ".join(f"{character!r} x {n}" for character, n in unknown.items())
                lines.append(f"{split}: characters that the labelled texts lack: {counts}")
        return lines


def load(
    data: Any, *, seed: int, multiple: int = 1, tokenizer: CharTokenizer | None = None
) -> Corpus:
    """The corpus that `config.data` describes; batch sizes are multiples of `multiple`.

    `tokenizer` replaces the one made from the labelled training texts (resumed and exported runs).
    Raises UserError for sources that cannot be read and settings that leave nothing to train on or
    to score.
    """
    if seed < 0:
        raise UserError(f"config.seed is {seed}; it must be 0 or above")
    for name, uri in (("train", data.train), ("dev", data.dev)):
        if not uri:
            raise UserError(f"config.data.{name} is empty; name a manifest or SCHEME:REST")
    train = open_source(data.train, data.root)
    audio = open_source(data.unlabelled, data.root) if data.unlabelled else train
    left_out = {"labelled": collections.Counter(), "unlabelled": collections.Counter()}
    normalise = CharTokenizer((), "lower" in data.text.normalise).normalise
    labelled = keep(
        train, left_out["labelled"], "without a text", lambda u: normalise(u.text or "")
    )
    labelled = low_resource(timely(labelled, data, left_out["labelled"]), data, seed)
    joins = data.join_share > 0 and data.join[1] > 1
    if tokenizer is None:
        texts = (u.text or "" for u in labelled)
        tokenizer = CharTokenizer.from_texts(texts, "lower" in data.text.normalise, joined=joins)
    elif joins and " " not in tokenizer.symbols:
        raise UserError("config.data.join_share joins texts by a space, which the tokenizer lacks")
    covers = tokenizer.covers
    labelled = keep(
        labelled, left_out["labelled"], "with unknown characters", lambda u: covers(u.text or "")
    )
    utterances = {
        "labelled": labelled,
        "unlabelled": timely(audio, data, left_out["unlabelled"]),
        "dev": scorable(data.dev, data.root, normalise),
        "test": scorable(data.test, data.root, normalise),
    }
    return Corpus(data, seed, multiple, tokenizer, utterances, left_out)
