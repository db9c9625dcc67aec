"""Recognizer and Translator: a trained model as functions of a batch of audio."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

LONG_AUDIO = 1 << 30  # samples over which the hop of a frame is measured


class Recognizer(NamedTuple):
    """A CTC model and its vocabulary; class 0 is the blank.

    predict: {"audio": int16 [B, S], "audio_lengths": int32 [B]} in host memory -> (logits
        [B, T, K], frames [B]); compiled once per shape
    decode: ids in 0..K-1 -> text; blanks are dropped
    symbols: texts of the classes 1, ..., K - 1; one that begins with " " or "▁" begins a word
    frames: number of samples -> number of frames of logits
    sample_rate: Hz
    name: of the model, for messages
    multiple: B must be a multiple of it
    """

    predict: Callable[[Mapping[str, Any]], tuple[Any, Any]]
    decode: Callable[[Sequence[int]], str]
    symbols: tuple[str, ...]
    frames: Callable[[int], int]
    sample_rate: int
    name: str
    multiple: int = 1

    @property
    def hop(self) -> int:
        """Samples between the starts of two frames of logits."""
        return round(LONG_AUDIO / self.frames(LONG_AUDIO))


class Translator(NamedTuple):
    """An attention decoder and its vocabulary.

    predict: ({"audio": int16 [B, S], "audio_lengths": int32 [B]} in host memory, beam) -> ids
        int32 [B, U], -1 after the end; compiled once per shape and beam
    decode: ids in 1..K-1 -> text
    beam: width of the search in the config
    sample_rate, name, multiple: as in `Recognizer`
    """

    predict: Callable[[Mapping[str, Any], int], Any]
    decode: Callable[[Sequence[int]], str]
    beam: int
    sample_rate: int
    name: str
    multiple: int = 1
