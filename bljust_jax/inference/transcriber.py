"""Transcribe or translate audio files: read, cut into windows, decode in batches, join.

Windows of all files share batches. An encoder that normalises by utterance (log-mel features do,
except in causal contexts) treats a window as an utterance of its own.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bljust_jax.common.errors import UserError
from bljust_jax.data.splits import Batch
from bljust_jax.decoding.ctc_beam import BeamSearch
from bljust_jax.inference import windows
from bljust_jax.inference.alignment import Label, aligned_labels, best_labels, words_of
from bljust_jax.inference.audio_files import Failure, Recording, read_all
from bljust_jax.inference.batching import AudioRow, BatchDecoder, DecodedRow, ctc_decoder
from bljust_jax.inference.recognizer import Recognizer, Translator
from bljust_jax.inference.windows import Window

ROUND = 8  # batches of audio that are read, then sorted by length


class WindowOptions(NamedTuple):
    """window: seconds of audio per window; overlap: seconds of it on each side of a join, at most a
    quarter; batch_seconds: padded audio per batch."""

    window: float = 30.0
    overlap: float = 4.0
    batch_seconds: float = 160.0


class Word(NamedTuple):
    """A word; start of its first label and end of its last one, in seconds."""

    word: str
    start: float
    end: float


class Transcript(NamedTuple):
    """The text of a file of `seconds`, and the words of the text with their times."""

    path: str
    text: str
    words: list[Word]
    seconds: float


def no_progress(seconds: float) -> None:
    """Default `progress`: ignores the seconds of audio done."""


def transcribe(
    recognizer: Recognizer,
    sources: Iterable[str | Recording],
    options: WindowOptions,
    search: BeamSearch | None = None,
    progress: Callable[[float], None] = no_progress,
) -> Iterator[Transcript | Failure]:
    """The transcript of each file or recording, in order; files are read lazily.

    Without `search` the text is that of the best path. With one, each window is searched on its
    own, from the start state of the language model; times are those of the best alignment. Calls
    `progress` with the seconds of audio of each batch. Raises UserError for windows that do not fit
    the model.
    """
    length, overlap = in_samples(recognizer, options)
    hop = recognizer.hop

    def finish(found: Recording, cuts: list[Window], rows: list[DecodedRow]) -> Transcript:
        labels = _labels(windows.join(cuts, rows, overlap, hop), search)
        return _transcript(recognizer, found.path, labels, len(found.audio))

    decoder = ctc_decoder(recognizer, keep_log_probs=search is not None)
    decode = BatchDecoder(decoder, recognizer, length, options.batch_seconds)
    cut = functools.partial(windows.cut, length=length, overlap=overlap, hop=hop)
    yield from _each_file(sources, decode, cut, finish, progress)


def translate(
    translator: Translator,
    sources: Iterable[str | Recording],
    options: WindowOptions,
    beam: int,
    progress: Callable[[float], None] = no_progress,
) -> Iterator[Transcript | Failure]:
    """The translation of each file or recording by beam search of width `beam`, in order: texts
    without words, as a translation has no times.

    A file longer than a window is cut into equal parts, whose translations are joined by spaces;
    `options.overlap` is not used. Raises UserError for a window under 0.1 s.
    """
    rate = translator.sample_rate
    length = round(options.window * rate)
    if length < rate // 10:
        raise UserError(f"--window {options.window:g} must be at least 0.1 seconds")

    def finish(found: Recording, cuts: list[Window], rows: list[DecodedRow]) -> Transcript:
        texts = (translator.decode(row.path[row.path > 0]).strip() for row in rows)
        return Transcript(found.path, " ".join(filter(None, texts)), [], len(found.audio) / rate)

    def predict(batch: Batch) -> tuple:
        return translator.predict(batch, beam), None

    decode = BatchDecoder(predict, translator, length, options.batch_seconds)
    cut = functools.partial(windows.divide, length=length)
    yield from _each_file(sources, decode, cut, finish, progress)


def _each_file(
    sources: Iterable[str | Recording],
    decode: BatchDecoder,
    cut: Callable[[int], list[Window]],
    finish: Callable[[Recording, list[Window], list[DecodedRow]], Transcript],
    progress: Callable[[float], None],
) -> Iterator[Transcript | Failure]:
    """`finish(recording, its windows, their outputs)` of each file in order, or its failure.
    Batches are formed within lists of recordings that fill about `ROUND` batches."""
    limit = round(ROUND * decode.batch_seconds * decode.sample_rate)
    for group in _rounds(read_all(sources, decode.sample_rate), limit):
        cuts = [cut(len(r.audio)) if isinstance(r, Recording) else [] for r in group]
        pairs = [(r, own) for r, own in zip(group, cuts, strict=True) if own]
        rows = [row for r, own in pairs for row in _rows(r, own, decode.sample_rate)]
        outputs = iter(decode(rows, progress))
        for r, own in zip(group, cuts, strict=True):
            yield finish(r, own, list(itertools.islice(outputs, len(own)))) if own else r


def in_samples(recognizer: Recognizer, options: WindowOptions) -> tuple[int, int]:
    """(window, overlap) in samples, multiples of the hop. Raises UserError if they do not fit."""
    rate, hop = recognizer.sample_rate, recognizer.hop
    length, overlap = (round(s * rate) // hop * hop for s in (options.window, options.overlap))
    if overlap < hop:
        raise UserError(f"--overlap {options.overlap:g} must be a frame, {hop / rate:g} s, or more")
    if length < 4 * overlap:
        raise UserError(
            f"--window {options.window:g} must be at least 4 times --overlap {options.overlap:g}"
        )
    return length, overlap


def _rounds(
    recordings: Iterable[Recording | Failure], limit: int
) -> Iterator[list[Recording | Failure]]:
    """The recordings in order, in lists that end as soon as they hold `limit` samples."""
    held, samples = [], 0
    for r in recordings:
        held.append(r)
        samples += len(r.audio) if isinstance(r, Recording) else 0
        if samples >= limit:
            yield held
            held, samples = [], 0
    if held:
        yield held


def _rows(recording: Recording, cuts: Sequence[Window], rate: int) -> Iterator[AudioRow]:
    before = 0
    for start, stop in cuts:
        yield AudioRow(recording.audio[start:stop], (stop - before) / rate)
        before = stop


def _labels(pieces: Sequence[DecodedRow], search: BeamSearch | None) -> list[Label]:
    """The labels of a recording, in its own frames; `pieces` as `windows.join` returns them."""
    if search is None:
        return best_labels(np.concatenate([piece.path for piece in pieces]))
    labels, before = [], 0
    for piece in pieces:
        ids = search(piece.log_probs)[0].units
        labels += [
            Label(n, start + before, end + before)
            for n, start, end in aligned_labels(piece.log_probs, ids)
        ]
        before += len(piece.path)
    return labels


def _transcript(recognizer: Recognizer, path: str, labels: list[Label], samples: int) -> Transcript:
    def seconds(frame: int) -> float:
        """Rounded down to ms, so never beyond the end of the file."""
        return min(frame * recognizer.hop, samples) * 1000 // recognizer.sample_rate / 1000

    words = []
    for group in words_of(labels, recognizer.symbols):
        text = recognizer.decode([label.id for label in group]).strip()
        if text:
            words.append(Word(text, seconds(group[0].start), seconds(group[-1].end)))
    text = recognizer.decode([label.id for label in labels]).strip()
    return Transcript(path, text, words, samples / recognizer.sample_rate)
