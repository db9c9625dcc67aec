"""Subtitles: division into cues, and the SRT format."""

import itertools
import re

import pytest

from bljust_jax.inference.subtitles import LINE, LONGEST, PAUSE, SHORTEST, cues_of, srt
from bljust_jax.inference.transcriber import Word


def spoken(texts, start=0.0, each=0.3, gap=0.1):
    """Words one after the other, `gap` seconds between them."""
    step = each + gap
    return [Word(text, start + n * step, start + n * step + each) for n, text in enumerate(texts)]


def test_the_format():
    words = [Word("turn", 0.12, 0.4), Word("on", 0.5, 1.3), Word("now", 3661.0, 3662.0456)]
    assert srt(words) == (
        "1\n00:00:00,120 --> 00:00:01,300\nturn on\n\n2\n01:01:01,000 --> 01:01:02,046\nnow\n"
    )
    assert srt([]) == ""


@pytest.mark.parametrize("each", [0.1, 0.3, 2.0])
@pytest.mark.parametrize("size", [1, 5, 20, 41])
def test_each_word_is_in_one_cue_within_the_limits(size, each):
    words = spoken([f"{n:x}".ljust(size, "x") for n in range(60)], each=each)
    cues = cues_of(words)
    assert " ".join(cue.text for cue in cues).split() == [word.word for word in words]
    assert all(cue.end - cue.start <= LONGEST + 1e-9 for cue in cues)
    assert all(one.end <= other.start + 1e-9 for one, other in itertools.pairwise(cues))
    blocks = srt(words).split("\n\n")
    assert len(blocks) == len(cues)
    for number, block in enumerate(blocks, start=1):
        first, times, *lines = block.strip("\n").split("\n")
        assert first == str(number)
        assert re.fullmatch(r"\d\d:\d\d:\d\d,\d{3} --> \d\d:\d\d:\d\d,\d{3}", times)
        assert 1 <= len(lines) <= 2
        assert all(len(line) <= LINE for line in lines)
    # no cue could take the first word of the next one
    assert len(cues) < len(words) or size == 41 or each == 2.0


def test_a_pause_ends_a_cue_and_a_short_one_stays():
    first, second = spoken(["a", "b"]), spoken(["c"], start=0.7 + PAUSE)
    near = spoken(["c"], start=0.7 + PAUSE - 0.01)
    assert [cue.text for cue in cues_of(first + second)] == ["a b", "c"]
    assert [cue.text for cue in cues_of(first + near)] == ["a b c"]
    shown = cues_of(first + second)
    assert [cue.end - cue.start for cue in shown] == pytest.approx([SHORTEST, SHORTEST])
    crowded = [Word("a", 0.0, 0.2), Word("x" * 84, 0.5, 6.0)]
    assert cues_of(crowded)[0].end == 0.5, "until the next one begins"


def test_a_word_beyond_the_limits_is_alone():
    long = Word("字" * 90, 0.0, 9.0)
    assert [tuple(cue) for cue in cues_of([long])] == [(0.0, 9.0, "字" * 90)]
    assert srt([long]).count("\n") == 3, "and stays in one line"
