"""Audio files to text with word times: decoded, cut into windows, recognised in batches, joined.

Windows of all files share batches. Encoders that normalise by the whole utterance (log-mel features
do, but for causal ones) hear a window as an utterance of its own. As a command, see `__main__`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bljust_jax.common.errors import UserError
from bljust_jax.decoding.ctc_beam import BeamSearch
from bljust_jax.inference import windows
from bljust_jax.inference.alignment import Label, aligned_labels, best_labels, words_of
from bljust_jax.inference.audio_files import Failure, Recording, read_all
from bljust_jax.inference.batching import Heard, Listener, Row, by_frame
from bljust_jax.inference.recognizer import Recognizer, Translator

ROUND = 8  # full batches of audio that are read before they are sorted by length


class Settings(NamedTuple):
    """window: seconds of the longest stretch that the model hears at once; overlap: seconds of it
    on each side of a join, at most a quarter; batch_seconds: padded audio a batch."""

    window: float = 30.0
    overlap: float = 4.0
    batch_seconds: float = 160.0


class Word(NamedTuple):
    """A word, and the seconds at which its first label begins and its last one ends."""

    word: str
    start: float
    end: float


class Transcript(NamedTuple):
    """What is said in a file of `seconds`; the words are those of the text."""

    path: str
    text: str
    words: list[Word]
    seconds: float


def transcribe(
    recogniser: Recognizer,
    paths: Iterable[str],
    settings: Settings,
    search: BeamSearch | None = None,
    heard: Callable[[float], None] = lambda seconds: None,
) -> Iterator[Transcript | Failure]:
    """What is said in each file, in the order of the paths, which are read as they are needed.

    Without `search` the text is the best path's. With one, each window is searched on its own, a
    language model starting anew; times are those of the best path of what was found. `heard` is
    told the seconds of audio as they are done. Raises UserError for windows that do not fit the
    model.
    """
    length, overlap = in_samples(recogniser, settings)
    hop, rate = recogniser.hop, recogniser.sample_rate
    say = by_frame(recogniser, keep_log_probs=search is not None)
    listen = Listener(say, recogniser, length, settings.batch_seconds)
    limit = round(ROUND * settings.batch_seconds * rate)
    for group in _rounds(read_all(paths, rate), limit):
        sound = [r for r in group if isinstance(r, Recording)]
        cuts = [windows.cut(len(r.audio), length, overlap, hop) for r in sound]
        rows = [row for r, own in zip(sound, cuts, strict=True) for row in _rows(r, own, rate)]
        said = iter(listen(rows, heard))
        pieces = (
            windows.join(own, list(itertools.islice(said, len(own))), overlap, hop) for own in cuts
        )
        for r in group:
            if isinstance(r, Recording):
                labels = _labels(next(pieces), search)
                yield _transcript(recogniser, r.path, labels, len(r.audio))
            else:
                yield r


def translate(
    translator: Translator,
    paths: Iterable[str],
    settings: Settings,
    beam: int,
    heard: Callable[[float], None] = lambda seconds: None,
) -> Iterator[Transcript | Failure]:
    """What each file says in another language, in the order of the paths: texts without words, as
    a translation has no times.

    A file longer than a window is cut into equal parts, whose translations are joined by spaces;
    `settings.overlap` is of no use. `beam` is the width of the search. Raises UserError for a
    window under 0.1 s.
    """
    rate = translator.sample_rate
    length = round(settings.window * rate)
    if length < rate // 10:
        raise UserError(f"--window {settings.window:g} must be at least 0.1 seconds")
    listen = Listener(
        lambda batch: (translator.predict(batch, beam), None),
        translator,
        length,
        settings.batch_seconds,
    )
    limit = round(ROUND * settings.batch_seconds * rate)
    for group in _rounds(read_all(paths, rate), limit):
        cuts = [windows.divide(len(r.audio), length) for r in group if isinstance(r, Recording)]
        sound = (r for r in group if isinstance(r, Recording))
        rows = [row for r, own in zip(sound, cuts, strict=True) for row in _rows(r, own, rate)]
        said, sizes = iter(listen(rows, heard)), iter(map(len, cuts))
        for r in group:
            if isinstance(r, Recording):
                pieces = itertools.islice(said, next(sizes))
                texts = (translator.decode(piece.path[piece.path > 0]).strip() for piece in pieces)
                text = " ".join(text for text in texts if text)
                yield Transcript(r.path, text, [], len(r.audio) / rate)
            else:
                yield r


def in_samples(recogniser: Recognizer, settings: Settings) -> tuple[int, int]:
    """(window, overlap) in samples, whole frames of the model; UserError where they do not fit."""
    rate, hop = recogniser.sample_rate, recogniser.hop
    length, overlap = (
        round(seconds * rate) // hop * hop for seconds in (settings.window, settings.overlap)
    )
    if overlap < hop:
        raise UserError(
            f"--overlap {settings.overlap:g} must be a frame, {hop / rate:g} s, or more"
        )
    if length < 4 * overlap:
        raise UserError(
            f"--window {settings.window:g} must be at least 4 times --overlap {settings.overlap:g}"
        )
    return length, overlap


def _rounds(
    recordings: Iterable[Recording | Failure], limit: int
) -> Iterator[list[Recording | Failure]]:
    """The recordings in order, in lists that end once they hold `limit` samples."""
    held, samples = [], 0
    for r in recordings:
        held.append(r)
        samples += len(r.audio) if isinstance(r, Recording) else 0
        if samples >= limit:
            yield held
            held, samples = [], 0
    if held:
        yield held


def _rows(recording: Recording, cuts: Sequence[windows.Window], rate: int) -> Iterator[Row]:
    before = 0
    for start, stop in cuts:
        yield Row(recording.audio[start:stop], (stop - before) / rate)
        before = stop


def _labels(pieces: Sequence[Heard], search: BeamSearch | None) -> list[Label]:
    """The labels of a recording in its own frames; `pieces`: what its windows add to it."""
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


def _transcript(recogniser: Recognizer, path: str, labels: list[Label], samples: int) -> Transcript:
    def seconds(frame: int) -> float:
        """Rounded down to ms: inside the file."""
        return min(frame * recogniser.hop, samples) * 1000 // recogniser.sample_rate / 1000

    words = []
    for group in words_of(labels, recogniser.symbols):
        text = recogniser.decode([label.id for label in group]).strip()
        if text:
            words.append(Word(text, seconds(group[0].start), seconds(group[-1].end)))
    text = recogniser.decode([label.id for label in labels]).strip()
    return Transcript(path, text, words, samples / recogniser.sample_rate)
