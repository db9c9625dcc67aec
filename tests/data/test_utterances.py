"""Columns of utterances against lists of them."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bljust_jax.data import utterances
from bljust_jax.data.byte_ranges import ByteRange
from bljust_jax.data.strings import Strings
from bljust_jax.data.utterances import Utterance, Utterances, among, concatenated, unique

NAMES = st.sampled_from(["a", "b", "é", "s 1", ""])
LINES = st.sampled_from(["", "m.jsonl:3", "m.jsonl:03", "a:b", "m:0", ":7", "7", f"x:{10**30}"])
PATHS = st.sampled_from(["/d/a.wav", "/d/b.wav", "/e/a.wav", "t.tar#a", "/x", "/d/t.tar#1"])
FETCHES = st.sampled_from([None, ByteRange("/d/t.tar", 512, 9), ByteRange("/d/t.tar", 3, 1), dict])
ROW = st.builds(
    Utterance,
    *(NAMES, PATHS, st.sampled_from([0.0, 1.5]), st.sampled_from([1.0, 0.1])),
    *(st.sampled_from(["x", "", None]), NAMES, NAMES, LINES, NAMES, FETCHES),
    fault=st.sampled_from(["", "", "damaged"]),
    translation=st.sampled_from([None, "t"]),
)
ROWS = st.lists(ROW, max_size=12)
SETTINGS = settings(deadline=None, max_examples=100)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(utterances, "CHUNK", 5)


@given(rows=ROWS, data=st.data())
@SETTINGS
def test_columns_are_the_list_of_their_utterances(rows, data):
    found = Utterances.of(rows)
    assert list(found) == rows
    assert found == rows
    assert rows == found
    places = data.draw(st.lists(st.integers(0, len(rows) - 1))) if rows else []
    some = found.select(np.array(places, int))
    wanted = [rows[n] for n in places]
    assert some == wanted
    assert [some[n] for n in range(-len(some), len(some))] == wanted * 2
    assert some[1:4] == wanted[1:4]
    assert some.select(some.durations > 0.5) == [u for u in wanted if u.duration > 0.5]
    for part in (found, some):
        assert part.ids == [u.id for u in part]
        assert part.texts == [u.text for u in part]
        assert list(part.speakers) == [u.speaker for u in part]
        assert list(part.paths()) == [u.path for u in part]
        assert part.faulty.tolist() == [bool(u.fault) for u in part]
        assert part.named_speakers.tolist() == [u.speaker != u.id for u in part]
    both = concatenated([some, found])
    assert both == wanted + rows
    assert both.select(np.arange(len(both))) == both
    named = some.with_part("p").with_translation_as_text()
    assert [(u.part, u.text) for u in named] == [("p", u.translation) for u in wanted]


def key(u):
    return u.path, u.offset, u.duration, u.id


@given(ROWS, ROWS)
@SETTINGS
def test_the_same_audio_and_id_is_found_as_by_a_dictionary(one, two):
    every = one + two
    assert unique(Utterances.of(every)) == list({key(u): u for u in every}.values())
    known = {key(u) for u in two}
    found = among(Utterances.of(one), Utterances.of(two))
    assert found.tolist() == [key(u) in known for u in one]


@given(st.lists(st.text("ab", max_size=3)))
@SETTINGS
def test_the_first_repeated_string_is_found(texts):
    wanted = next(((texts.index(t), n) for n, t in enumerate(texts) if t in texts[:n]), None)
    assert utterances.first_repeated(Strings.of(texts)) == wanted


def test_strings_of_equal_checksum_are_not_taken_for_one():
    """crc32 of both is 0x4DDB0C25 (a published collision of English words)."""
    assert len(set(utterances.checksums(["plumless", "buckeroo"]).tolist())) == 1
    assert utterances.first_repeated(Strings.of(["plumless", "buckeroo"])) is None
    assert utterances.first_repeated(Strings.of(["plumless", "buckeroo", "plumless"])) == (0, 2)


def rows_of(count):
    for n in range(count):
        named = f"/data/clips/{n % 50}/{n:08d}.flac"
        place = (f"clip-{n:08d}", named, 0.0, 1.0 + n % 7, f"some words of text {n}", "en")
        yield Utterance(*place, f"speaker {n % 300}", f"/data/train.csv:{n + 2}")


def test_memory_is_that_of_the_texts_and_of_a_few_numbers(monkeypatch):
    """At its peak 280 bytes per utterance, of which 160 stay; as objects they take 600."""
    monkeypatch.setattr(utterances, "CHUNK", 4096)
    peaks = []
    for count in (20_000, 40_000):
        tracemalloc.start()
        try:
            found = Utterances.of(rows_of(count))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert len(found) == count
    assert peaks[1] - peaks[0] < 20_000 * 320
