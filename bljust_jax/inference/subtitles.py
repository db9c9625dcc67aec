"""Subtitles in the SubRip format (SRT) from words with times."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bljust_jax.inference.transcriber import Word

LINE = 42  # characters per line, two lines per cue: the usual limits of broadcasters
LONGEST, SHORTEST = 7.0, 1.0  # seconds that a cue is shown
PAUSE = 1.0  # seconds without a word at which a cue ends


class Cue(NamedTuple):
    """A text shown from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def cues_of(words: Iterable[Word]) -> list[Cue]:
    """Words in cues of at most two lines and `LONGEST` seconds, divided at pauses too.

    A cue is shown for `SHORTEST` seconds if the next one does not begin before. A single word
    beyond the limits is a cue of its own.
    """
    groups: list[list[Word]] = []
    for word in words:
        if groups and _fits(groups[-1], word):
            groups[-1].append(word)
        else:
            groups.append([word])
    cues = []
    for n, group in enumerate(groups):
        start, end = group[0].start, max(group[-1].end, group[0].start + SHORTEST)
        if n + 1 < len(groups):
            end = max(min(end, groups[n + 1][0].start), group[-1].end)
        cues.append(Cue(start, end, " ".join(word.word for word in group)))
    return cues


def _fits(group: Sequence[Word], word: Word) -> bool:
    """Whether a word goes into the cue of the words before it."""
    lines = textwrap.wrap(" ".join([*(w.word for w in group), word.word]), LINE)
    near = word.start - group[-1].end < PAUSE
    return near and word.end - group[0].start <= LONGEST and len(lines) <= 2


def srt(words: Iterable[Word]) -> str:
    """The content of an SRT file: number, times and lines of each cue."""
    made = []
    for number, (start, end, text) in enumerate(cues_of(words), start=1):
        lines = "\n".join(textwrap.wrap(text, LINE, break_long_words=False))
        made.append(f"{number}\n{_time(start)} --> {_time(end)}\n{lines}\n")
    return "\n".join(made)


def _time(seconds: float) -> str:
    """00:01:02,345."""
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours:02d}:{minute:02d}:{second:02d},{thousandths:03d}"
