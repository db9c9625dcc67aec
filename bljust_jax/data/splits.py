"""Splits as they are scored: utterances, references, and batches that see each exactly once."""

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from bljust_jax.common import timeout
from bljust_jax.common.errors import UserError
from bljust_jax.data import normalise
from bljust_jax.data.batch_plan import Bucket, evaluation_batches
from bljust_jax.data.filters import keep, reasons
from bljust_jax.data.quarantine import Quarantine
from bljust_jax.data.sources import Utterance, open_source, read_audio
from bljust_jax.data.streams import Stream, described, stream_of, taught
from bljust_jax.data.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]


class Splits:
    """Utterances by the name of their split, and a tokenizer a labelled stream; by `load_splits`.

    A split is of one stream, which its name ends with: dev/asr/en is of asr/en; where there is one
    stream alone, dev is of that. The `text` of its utterances is what the stream's labels are.

    streams: {stream: Stream}; tokenizers: {stream: Tokenizer}; quarantined: what turned out to have
    bad audio; left_out: {split: {reason: count}}.
    """

    def __init__(
        self,
        data: Any,
        multiple: int,
        tokenizers: Mapping[str, Tokenizer],
        utterances: dict[str, list[Utterance]],
        left_out: dict[str, Counter],
        quarantined: Quarantine,
    ):
        self.streams, self.tokenizers = described(data), dict(tokenizers)
        self.quarantined, self.left_out = quarantined, left_out
        self._data, self._multiple, self._utterances = data, multiple, utterances

    @property
    def tokenizer(self) -> Tokenizer:
        """The only one; ValueError where there are several, see `tokenizer_of`."""
        if len(self.tokenizers) > 1:
            raise ValueError(f"a tokenizer each of {', '.join(self.tokenizers)}, not one for all")
        return next(iter(self.tokenizers.values()))

    def tokenizer_of(self, name: str) -> Tokenizer:
        """That of a labelled stream or of a split; UserError for an unknown name."""
        return self.tokenizers[stream_of(name, self.streams)]

    @property
    def names(self) -> tuple[str, ...]:
        """The splits, in the order in which they were loaded."""
        return tuple(self._utterances)

    def utterances(self, split: str) -> list[Utterance]:
        """The utterances of a split in the order of their source; UserError for an unknown name."""
        if split not in self._utterances:
            raise UserError(f"no split {split!r}; there are {', '.join(self._utterances)}")
        return self._utterances[split]

    def references(self, split: str) -> list[str]:
        """Normalised texts of `utterances(split)`, "" where one is missing."""
        normalise = self.tokenizer_of(split).normalise
        return [normalise(u.text or "") for u in self.utterances(split)]

    def parts(self, split: str) -> dict[str, list[int]]:
        """{name: indices into `utterances(split)`} of the sources that a split joins by "+".

        The names are those of `open_source`; {} where the split is of one source.
        """
        found: dict[str, list[int]] = {}
        for i, u in enumerate(self.utterances(split)):
            if u.part:
                found.setdefault(u.part, []).append(i)
        return found

    def eval_batches(self, split: str) -> Iterator[tuple[Batch, list[Utterance]]]:
        """{audio, audio_lengths, ids} and the utterances of the first rows, each exactly once.

        No augmentation and no joining; a bucket's last batch is padded with rows of length 0. The
        shapes are those of `evaluation_batches`. Utterances whose audio is bad are quarantined and
        occur in no batch; UserError where they are more than `data.max_bad_fraction`.
        """
        data, utterances = self._data, self.utterances(split)
        seconds = self.streams[stream_of(split, self.streams)].buckets
        batches = evaluation_batches(
            [u.duration for u in utterances], seconds, data.eval_batch_seconds, self._multiple
        )

        def load_batch(n: int) -> tuple[Batch, list[Utterance], list[tuple[Utterance, str]]]:
            bucket, indices = batches[n]
            batch = empty_batch(bucket, bucket.batch_size, data.sample_rate)
            members, bad = [], []
            for u in (utterances[i] for i in indices):
                try:
                    fill(batch, len(members), zlib.crc32(u.id.encode()), self._audio(u))
                    members.append(u)
                except UserError as error:
                    bad.append((u, str(error)))
            return batch, members, bad

        for batch, members, bad in self._parallel(load_batch, 0, len(batches)):
            for u, reason in bad:
                self.quarantined.add(split, u, reason)
            yield batch, members

    def _audio(self, u: Utterance) -> np.ndarray:
        try:
            return read_audio(u, self._data.sample_rate)
        except UserError:
            raise
        except Exception as error:
            error.add_note(f"while reading {u.path} of {u.id} ({u.line or u.path})")
            raise

    def _parallel(self, make: Callable[[int], Any], start: int, stop: int) -> Iterator[Any]:
        """make(start), ..., make(stop - 1), in order, by grain's threads; timeout.Unreachable where
        one does not come within `data.timeout` seconds."""
        import grain

        data = self._data
        threads, buffer = data.num_threads, data.prefetch
        options = grain.ReadOptions(threads, max(buffer, threads))
        made = iter(grain.MapDataset.range(start, stop).map(make).to_iter_dataset(options))
        for _ in range(start, stop):
            yield timeout.call_with_timeout(data.timeout, lambda: next(made), self._silent)

    def _silent(self) -> str:
        return (
            f"no batch came within {self._data.timeout:g} s (config.data.timeout): the disk or the "
            "network folder with the audio does not answer; start again when it does"
        )


def empty_batch(bucket: Bucket, rows: int, sample_rate: int, *, labelled: bool = False) -> Batch:
    """Rows of length 0: {audio: int16 [B, S], audio_lengths: int32 [B], ids: uint32 [B]}.

    S = round(seconds * sample_rate); `labelled` adds {labels: int32 [B, U], label_lengths: int32
    [B]}, U the bucket's max_labels.
    """
    batch = {
        "audio": np.zeros((rows, round(bucket.seconds * sample_rate)), np.int16),
        "audio_lengths": np.zeros(rows, np.int32),
        "ids": np.zeros(rows, np.uint32),
    }
    if labelled:
        batch["labels"] = np.zeros((rows, bucket.max_labels), np.int32)
        batch["label_lengths"] = np.zeros(rows, np.int32)
    return batch


def fill(
    batch: Batch, row: int, key: int, audio: np.ndarray, labels: np.ndarray | None = None
) -> None:
    """Writes one utterance into a row of an empty batch; `key` is crc32 of its id."""
    batch["ids"][row] = key
    batch["audio"][row, : len(audio)] = audio
    batch["audio_lengths"][row] = len(audio)
    if labels is not None:
        batch["labels"][row, : len(labels)] = labels
        batch["label_lengths"][row] = len(labels)


def load_splits(
    data: Any, uris: Mapping[str, str], tokenizers: Mapping[str, Tokenizer], *, multiple: int = 1
) -> Splits:
    """What evaluation needs of `config.data`, and no training data: {split: URI} to be scored.

    tokenizers: {labelled stream: Tokenizer}, of the streams of these splits at least. The name of a
    split says its stream, see `Splits`. Raises UserError for a name of no stream, and for sources
    that cannot be read, or that have no text to score.
    """
    quarantined, streams = Quarantine(data.max_bad_fraction), described(data)
    opened = {
        name: open_split(name, uri, streams[stream_of(name, streams)], data, quarantined)
        for name, uri in uris.items()
    }
    utterances = {name: found for name, (found, _) in opened.items()}
    left_out = {name: counts for name, (_, counts) in opened.items()}
    return Splits(data, multiple, tokenizers, utterances, left_out, quarantined)


def open_split(
    split: str, uri: str, stream: Stream, data: Any, quarantined: Quarantine
) -> tuple[list[Utterance], Counter]:
    """(utterances to score, {reason: how many are not}) of a split of a stream; nothing for "".

    Raises UserError if the texts of the split, or of one of the sources that it joins, are all
    blank.
    """
    left_out: Counter = Counter()
    if not uri:
        return [], left_out
    utterances = quarantined.sift(split, taught(open_source(uri, data.root), stream.field))
    if data.max_seconds:
        reason = f"longer than config.data.max_seconds={data.max_seconds:g}, so not scored"
        utterances = keep(utterances, left_out, reason, lambda u: u.duration <= data.max_seconds)
    if not utterances:
        where = f"{stream.where}.{split.removesuffix(f'/{stream.name}')}"
        raise UserError(f"{where}: {uri}: no utterance is left: {reasons(left_out)}")
    spell = normalise.make(stream.text.normalise)
    silent: dict[str, Utterance] = {}
    for u in utterances:
        silent.setdefault(u.part, u)
    for part in {u.part for u in utterances if spell(u.text or "")}:
        del silent[part]
    for part, u in silent.items():
        where = f"{part} in {uri}" if part else uri
        raise UserError(
            f"{u.line or uri}: no utterance of {where} has a {stream.field} to score; give each its"
            f' "{stream.field}"'
        )
    return utterances, left_out
