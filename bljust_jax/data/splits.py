"""Evaluation splits: utterances, references, and batches that hold each utterance exactly once."""

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bljust_jax.common import threads
from bljust_jax.common.errors import UserError
from bljust_jax.data import held_back, normalise
from bljust_jax.data.buckets import Bucket, evaluation_batches
from bljust_jax.data.filters import describe_skipped, keep
from bljust_jax.data.frame_labels import empty_labels
from bljust_jax.data.held_back import HeldBack
from bljust_jax.data.quarantine import Quarantine
from bljust_jax.data.sources import open_source, read_audio
from bljust_jax.data.streams import Stream, labelled_streams, stream_of, with_labels
from bljust_jax.data.strings import Strings
from bljust_jax.data.tokenizer import Tokenizer, normalised
from bljust_jax.data.utterances import Utterance, Utterances

Batch = dict[str, np.ndarray]


class Splits:
    """Utterances by split, and one tokenizer per labelled stream; made by `load_splits`.

    The name of a split ends with its stream: dev/asr/en is of asr/en; with a single stream, dev is
    of that. The `text` of its utterances is the stream's label.

    streams: {stream: Stream}; tokenizers: {stream: Tokenizer}; quarantined: utterances of corrupt
    audio; skipped: {split: {reason: count}}.
    """

    def __init__(
        self,
        data: Any,
        multiple: int,
        tokenizers: Mapping[str, Tokenizer],
        utterances: Mapping[str, Sequence[Utterance]],
        skipped: dict[str, Counter],
        quarantined: Quarantine,
    ):
        self.streams, self.tokenizers = labelled_streams(data), dict(tokenizers)
        self.quarantined, self.skipped = quarantined, skipped
        self._data, self._multiple = data, multiple
        self._utterances = {name: Utterances.of(part) for name, part in utterances.items()}
        self._added: dict[str, tuple[str, Utterances]] = {}
        self._references: dict[str, Strings] = {}

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the only stream; ValueError if there are several, see `tokenizer_of`."""
        if len(self.tokenizers) > 1:
            raise ValueError(f"one tokenizer per stream: {', '.join(self.tokenizers)}")
        return next(iter(self.tokenizers.values()))

    def tokenizer_of(self, name: str) -> Tokenizer:
        """The tokenizer of a labelled stream or of a split; UserError for an unknown name."""
        return self.tokenizers[stream_of(name, self.streams)]

    @property
    def names(self) -> tuple[str, ...]:
        """The splits in the order of loading."""
        return tuple(self._utterances)

    def add(self, split: str, stream: str, utterances: Sequence[Utterance]) -> None:
        """Add a split of a stream's training data, to score what is learned by heart. `names` omits
        it, and corrupt audio of it is quarantined as the stream's."""
        self._added[split] = (stream, Utterances.of(utterances))
        self._references.pop(split, None)

    def utterances(self, split: str) -> Utterances:
        """The utterances of a split in the order of their source; UserError for an unknown name."""
        if split in self._added:
            return self._added[split][1]
        if split not in self._utterances:
            raise UserError(f"no split {split!r}; there are {', '.join(self._utterances)}")
        return self._utterances[split]

    def references(self, split: str) -> Strings:
        """Normalised texts of `utterances(split)`, "" for an utterance without a text."""
        if split not in self._references:
            texts = self.utterances(split).texts
            self._references[split] = self.tokenizer_of(split).normalise_all(texts)
        return self._references[split]

    def parts(self, split: str) -> dict[str, list[int]]:
        """{name: indices into `utterances(split)`} of the sources that a split joins by "+".

        The names are those of `open_source`; {} for a split of one source.
        """
        found: dict[str, list[int]] = {}
        for i, part in enumerate(self.utterances(split).column("part")):
            if part:
                found.setdefault(part, []).append(i)
        return found

    def eval_buckets(self, split: str) -> list[Bucket]:
        """The batch shapes of `eval_batches`."""
        return list(dict.fromkeys(bucket for bucket, _ in self._evaluation_batches(split)))

    def _evaluation_batches(self, split: str) -> list[tuple[Bucket, list[int]]]:
        data, seconds = self._data, self.streams[stream_of(split, self.streams)].buckets
        durations = self.utterances(split).durations.tolist()
        sizes = data.eval_batch_seconds, self._multiple, data.labels_per_second
        return evaluation_batches(durations, seconds, *sizes)

    def eval_batches(
        self, split: str, *, labelled: bool = False
    ) -> Iterator[tuple[Batch, list[Utterance]]]:
        """({audio, audio_lengths, ids}, utterances of the first rows) per batch, without
        augmentation; each utterance appears exactly once. `labelled` adds labels and label_lengths,
        0 of them for a text that the labels cannot spell or that the batch has no room for.

        The shapes are those of `evaluation_batches`; a bucket's last batch is padded with rows of
        length 0. Utterances of corrupt audio are quarantined and appear in no batch; UserError for
        more than `data.max_bad_fraction` of them.
        """
        data, utterances = self._data, self.utterances(split)
        batches = self._evaluation_batches(split)
        owner, _ = self._added.get(split, (split, ()))

        def load_batch(n: int) -> tuple[Batch, list[Utterance], list[tuple[Utterance, str]]]:
            bucket, indices = batches[n]
            batch = empty_batch(bucket, bucket.batch_size, data.sample_rate, labelled=labelled)
            members, bad = [], []
            for u in (utterances[i] for i in indices):
                try:
                    labels = self._spelt(split, u, bucket.max_labels) if labelled else None
                    fill_row(batch, len(members), zlib.crc32(u.id.encode()), self._audio(u), labels)
                    members.append(u)
                except UserError as error:
                    bad.append((u, str(error)))
            return batch, members, bad

        for batch, members, bad in self._parallel(load_batch, 0, len(batches)):
            for u, reason in bad:
                self.quarantined.add(owner, u, reason)
            yield batch, members

    def _spelt(self, split: str, u: Utterance, room: int) -> np.ndarray:
        tokenizer, text = self.tokenizer_of(split), u.text or ""
        labels = tokenizer.encode(text) if tokenizer.covers(text) else np.zeros(0, np.int32)
        return labels if len(labels) <= room else labels[:0]

    def _audio(self, u: Utterance) -> np.ndarray:
        try:
            return read_audio(u, self._data.sample_rate)
        except UserError:
            raise
        except Exception as error:
            error.add_note(f"while reading {u.path} of {u.id} ({u.line or u.path})")
            raise

    def _parallel(self, make: Callable[[int], Any], start: int, stop: int) -> Iterator[Any]:
        """make(start), ..., make(stop - 1) in order, by threads; timeout.Unreachable if one takes
        longer than `data.timeout` seconds."""
        data = self._data
        return threads.in_order(
            make,
            range(start, stop),
            threads=max(data.num_threads, 1),
            ahead=max(data.prefetch, data.num_threads, 1) if data.num_threads else 1,
            seconds=data.timeout,
            message=self._timeout_message,
        )

    def _timeout_message(self) -> str:
        return (
            f"no batch came within {self._data.timeout:g} s (config.data.timeout): the disk or the "
            "network folder with the audio does not answer; start again when it does"
        )


def empty_batch(
    bucket: Bucket, rows: int, sample_rate: int, *, labelled: bool = False, frame_labels: int = 0
) -> Batch:
    """Rows of length 0: {audio: int16 [B, S], audio_lengths: int32 [B], ids: uint32 [B]}.

    S = round(seconds * sample_rate); `labelled` adds {labels: int32 [B, U], label_lengths: int32
    [B]}, U the bucket's max_labels; room for `frame_labels` > 0 adds `empty_labels`.
    """
    batch = {
        "audio": np.zeros((rows, round(bucket.seconds * sample_rate)), np.int16),
        "audio_lengths": np.zeros(rows, np.int32),
        "ids": np.zeros(rows, np.uint32),
    }
    if labelled:
        batch["labels"] = np.zeros((rows, bucket.max_labels), np.int32)
        batch["label_lengths"] = np.zeros(rows, np.int32)
    if frame_labels:
        batch |= empty_labels(rows, frame_labels)
    return batch


def fill_row(
    batch: Batch, row: int, key: int, audio: np.ndarray, labels: np.ndarray | None = None
) -> None:
    """Write one utterance into a row of an empty batch; `key` is crc32 of its id."""
    batch["ids"][row] = key
    batch["audio"][row, : len(audio)] = audio
    batch["audio_lengths"][row] = len(audio)
    if labels is not None:
        batch["labels"][row, : len(labels)] = labels
        batch["label_lengths"][row] = len(labels)


def load_splits(
    data: Any, uris: Mapping[str, str], tokenizers: Mapping[str, Tokenizer], *, multiple: int = 1
) -> Splits:
    """The splits {name: URI} to evaluate, by `config.data`; reads no training data.

    tokenizers: {labelled stream: Tokenizer}, at least those of these splits; `Splits` explains the
    names. Raises UserError for a name of no stream, and for sources that cannot be read or have no
    text to score.
    """
    quarantined, streams = Quarantine(data.max_bad_fraction), labelled_streams(data)
    utterances, skipped = {}, {}
    for name, uri in uris.items():
        stream = streams[stream_of(name, streams)]
        tuned = data.held_back_speakers and (name, uri) == ("dev", data.dev)
        apart = held_back.of_data(data) if tuned else None
        utterances[name], skipped[name] = open_split(name, uri, stream, data, quarantined, apart)
    return Splits(data, multiple, tokenizers, utterances, skipped, quarantined)


def open_split(
    split: str,
    uri: str,
    stream: Stream,
    data: Any,
    quarantined: Quarantine,
    apart: HeldBack | None = None,
) -> tuple[Utterances, Counter]:
    """(utterances to score, {reason: number of those skipped}) of a stream's split; none for "";
    of the speakers of `apart` alone if it is given.

    Raises UserError if all texts of the split, or of one of the sources that it joins, are blank.
    """
    skipped: Counter = Counter()
    if not uri:
        return Utterances.of([]), skipped
    opened = open_source(uri, data.root)
    opened = apart.scored(opened, uri) if apart else opened
    utterances = quarantined.sift(split, with_labels(opened, stream.field))
    if data.max_seconds:
        reason = f"longer than config.data.max_seconds={data.max_seconds:g}, so not scored"
        utterances = keep(utterances, skipped, reason, utterances.durations <= data.max_seconds)
    if not utterances:
        where = f"{stream.where}.{split.removesuffix(f'/{stream.name}')}"
        raise UserError(f"{where}: {uri}: no utterance is left: {describe_skipped(skipped)}")
    _require_texts(uri, utterances, stream)
    return utterances, skipped


def _require_texts(uri: str, utterances: Utterances, stream: Stream) -> None:
    """UserError if no utterance of a source that a split joins has a text."""
    spelt = normalised(utterances.texts, normalise.make_for_lines(stream.text.normalise))
    parts = utterances.column("part")
    first = {parts[i]: i for i in np.unique(parts.ranks(), return_index=True)[1].tolist()}
    with_text = set(parts.take(~spelt.empty))
    for part in first.keys() - with_text:
        u, where = utterances[first[part]], f"{part} in {uri}" if part else uri
        problem = f"no utterance of {where} has a {stream.field} to score"
        raise UserError(f'{u.line or uri}: {problem}; give each its "{stream.field}"')
