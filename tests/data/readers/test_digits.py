"""Reader of spoken digits and strings of them."""

import collections
import dataclasses
import itertools
import json
import threading
import unicodedata

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from bljust_jax.common.errors import UserError
from bljust_jax.data import sources
from bljust_jax.data.readers import digits
from bljust_jax.data.sources import Utterance, open_source, read_audio

RATE = 16000


def corpus(top, counts=(10, 13, 2), lang="ar", split="train", order=slice(None)):
    """`counts` digits per speaker, each a stretch of noise without zero samples."""
    rng = np.random.default_rng(0)
    folder = top / f"digits_{lang}"
    folder.mkdir(parents=True, exist_ok=True)
    noise = rng.integers(1, 2000, 8 * RATE).astype(np.int16)
    soundfile.write(folder / "a.flac", noise, RATE)
    entries = []
    for speaker, count in enumerate(counts):
        for n in range(count):
            offset, duration = rng.integers(0, 7 * RATE) / RATE, rng.integers(900, 1200) / RATE
            entry = {"audio_filepath": "a.flac", "offset": offset, "duration": duration}
            entry |= {"speaker": f"s{speaker}", "id": f"s{speaker}-{n}"}
            entries.append(entry | {"text": digits.WORDS[lang][int(rng.integers(10))]})
    entries.append(entries[0] | {"id": "command", "text": "إلغاء"})
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries[order]]
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"digits:{folder}/{split}"


def spoken(audio):
    """(audio between silences, lengths of the silences) of a concatenated string."""
    edges = np.flatnonzero(np.diff(audio != 0)) + 1
    runs = np.split(audio, edges)
    return runs[::2], [len(run) for run in runs[1::2]]


def test_digits_have_the_other_languages_word_as_translation(tmp_path):
    for lang, other in (("ar", "en"), ("en", "ar")):
        found = open_source(corpus(tmp_path, lang=lang))
        assert len(found) == 25  # the word that is no digit is skipped
        assert {u.lang for u in found} == {lang}
        for u in found:
            assert digits.WORDS[lang].index(u.text) == digits.WORDS[other].index(u.translation)
            assert u.fetch is None


def test_words_are_ten_a_language_and_survive_joining():
    for words in digits.WORDS.values():
        assert len(set(words)) == 10
        assert " ".join(words).split() == words
        assert all(unicodedata.is_normalized("NFC", word) for word in words)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(3, 40), min_size=1, max_size=3))
def test_strings_hold_each_digit_twice_with_its_words(tmp_path_factory, counts):
    uri = corpus(tmp_path_factory.getbasetemp() / "drawn", counts)
    single = {read_audio(u).tobytes(): u for u in open_source(uri)}
    assert len(single) == sum(counts)
    uses = collections.Counter()
    for string in open_source(f"{uri}/strings"):
        audio = read_audio(string)
        assert len(audio) == round(string.duration * RATE)
        parts, pauses = spoken(audio)
        members = [single[part.tobytes()] for part in parts]
        assert 3 <= len(members) <= 7
        assert {u.speaker for u in members} == {string.speaker}
        assert string.text == " ".join(u.text for u in members)
        assert string.translation == " ".join(u.translation for u in members)
        assert string.id.endswith(
            "-" + "".join(str(digits.WORDS["ar"].index(u.text)) for u in members)
        )
        assert all(320 <= pause <= 2400 for pause in pauses)
        assert string.line == members[0].line
        uses.update({u.id for u in members})  # once per string, so in two strings
    assert uses == dict.fromkeys((u.id for u in single.values()), 2)


def test_strings_of_another_range_hold_each_digit_twice(tmp_path):
    uri = corpus(tmp_path, (20, 9))
    found = open_source(f"{uri}/strings-3-5")
    sizes = [len(u.text.split()) for u in found]
    assert set(sizes) == {3, 4, 5}
    assert sum(sizes) == 2 * 29
    assert max(len(u.text.split()) for u in open_source(f"{uri}/strings")) > 5
    few = open_source(f"{uri}/strings-1-1")
    assert sorted(u.text for u in few) == sorted(2 * [u.text for u in open_source(uri)])


@pytest.mark.parametrize("name", ["strings-3-4", "strings-0-3", "strings-5-3"])
def test_a_range_that_leaves_digits_over_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=f"{name}: name strings-LEAST-MOST with MOST of 2 LEAST"):
        open_source(f"{corpus(tmp_path)}/{name}")


@pytest.mark.parametrize("count", range(3, 25))
def test_lengths_of_all_kinds_occur_and_nothing_is_left_over(count):
    named = [Utterance(f"{n:02d}", "", 0.0, 1.0, "", "", "") for n in range(count)]
    seen = set()
    for seed in range(60):
        pieces = list(digits._cut(named, np.random.default_rng(seed)))
        assert sorted(itertools.chain(*pieces), key=lambda u: u.id) == named
        seen |= {len(piece) for piece in pieces}
    assert seen <= {3, 4, 5, 6, 7}
    assert seen == {3, 4, 5, 6, 7} or count < 10


def test_strings_are_the_same_on_every_call_and_whatever_the_order_of_lines(tmp_path):
    def strings(order):
        found = open_source(corpus(tmp_path, order=order) + "/strings")
        bits = [read_audio(u).tobytes() for u in found]
        return [dataclasses.replace(u, line="", fetch=None) for u in found], bits

    first = strings(slice(None))
    assert first == strings(slice(None))
    assert first == strings(slice(None, None, -1))
    # Fixed values, as Python's hashes differ between interpreters.
    assert " ".join(u.id for u in first[0][:5]) == (
        "s0-1.001-214548 s0-1.002-6544 s0-2.001-2514644 s0-2.002-485 s1-1.001-7595"
    )


def test_a_speaker_of_few_digits_has_no_strings(tmp_path, caplog):
    found = open_source(corpus(tmp_path) + "/strings")
    assert {u.speaker for u in found} == {"s0", "s1"}
    assert "no strings of 1 of 3 speakers, who have fewer than 3 digits, one is s2" in caplog.text
    with pytest.raises(UserError, match="no utterance found"):
        open_source(corpus(tmp_path, counts=(2, 1)) + "/strings")


def test_strings_are_made_at_16_khz_and_read_at_any_rate(tmp_path):
    (u, *_) = open_source(corpus(tmp_path) + "/strings")
    assert len(read_audio(u, 8000)) == round(u.duration * 8000)
    part = dataclasses.replace(u, offset=0.1, duration=0.2)
    np.testing.assert_array_equal(read_audio(part), read_audio(u)[1600:4800])


def test_strings_of_lossy_files_are_read_with_one_lock(tmp_path, monkeypatch):
    """Reading a string decodes its digits' file; with a single lock that would deadlock."""
    uri = corpus(tmp_path)
    folder = tmp_path / "digits_ar"
    samples, _ = soundfile.read(folder / "a.flac", dtype="int16")
    soundfile.write(folder / "a.opus", samples, RATE, format="OGG", subtype="OPUS")
    manifest = folder / "train.jsonl"
    manifest.write_text(manifest.read_text().replace("a.flac", "a.opus"))
    kept = sources._Decoded(1 << 20)
    kept._file_locks = kept._file_locks[:1]
    monkeypatch.setattr(sources, "_decoded", kept)
    strings, heard = open_source(f"{uri}/strings"), []
    assert len({u.path for u in strings}) == len(strings)

    def listen():
        heard.extend([read_audio(u).tobytes() for u in strings] for _ in range(2))

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    thread.join(60)  # takes less than a second
    assert not thread.is_alive()
    assert heard[0] == heard[1]
    assert len(set(heard[0])) == len(strings)
    for u in open_source(uri)[:20]:  # those of the speakers who have strings
        assert sum(read_audio(u).tobytes() in string for string in heard[0]) == 2


def test_a_digit_that_cannot_be_read_is_named(tmp_path):
    uri = corpus(tmp_path)
    path = tmp_path / "digits_ar" / "a.flac"
    (u, *_) = open_source(f"{uri}/strings")
    path.write_bytes(b"fLaC and nothing")
    with pytest.raises(UserError, match=r"train\.jsonl:\d+: cannot decode \S*a\.flac: .*replace"):
        read_audio(u)


def test_a_fault_of_a_digit_is_one_of_its_strings(tmp_path):
    uri = corpus(tmp_path, counts=(4,))
    manifest = tmp_path / "digits_ar" / "train.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    del lines[2]["duration"]
    lines[2] |= {"audio_filepath": "b.flac", "offset": 0}
    (tmp_path / "digits_ar" / "b.flac").write_bytes(b"nothing")
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = open_source(f"{uri}/strings")
    for u in (first, second):
        assert "train.jsonl:3: cannot read the header of" in u.fault


@pytest.mark.parametrize(
    "rest",
    ["digits_nl/train", "train", "digits_ar", "digits/train", "digits_ar/train/string", "strings"],
)
def test_a_wrong_name_shows_a_right_one(tmp_path, rest):
    corpus(tmp_path)
    with pytest.raises(
        UserError, match=r"digits:\S+: name ROOT/SET/SPLIT or .*digits_ar, digits_en$"
    ):
        open_source(f"digits:{tmp_path}/{rest}")


def test_a_missing_split_is_named(tmp_path):
    corpus(tmp_path)
    for rest in ("digits_ar/dev", "digits_ar/dev/strings", "digits_en/train"):
        with pytest.raises(UserError, match=rf"digits:\S*{rest}: no such manifest: \S+\.jsonl"):
            open_source(f"digits:{tmp_path}/{rest}")


def test_nothing_outside_the_root_is_read(tmp_path):
    corpus(tmp_path / "in")
    corpus(tmp_path / "out")
    root = str(tmp_path / "in")
    assert len(open_source("digits:digits_ar/train", root)) == 25
    assert len(open_source("digits:digits_ar/train/strings", root)) > 4
    with pytest.raises(UserError, match="outside the data root"):
        open_source("digits:../out/digits_ar/train/strings", root)
    recording = tmp_path / "in/digits_ar/a.flac"
    recording.unlink()
    recording.symlink_to(tmp_path / "out/digits_ar/a.flac")
    for confined, uri in ((root, "digits:digits_ar/train"), ("", f"digits:{root}/digits_ar/train")):
        with pytest.raises(UserError, match=r"train\.jsonl:1: .* outside the data root"):
            open_source(f"{uri}/strings", confined)


@pytest.mark.daily("digits_en-500")
@pytest.mark.parametrize(("name", "size"), [("digits_ar", 600), ("digits_en", 500)])
def test_real_digits_and_strings(speech, name, size):
    found = open_source(f"digits:{speech}/{name}/dev")
    assert len(found) == size
    assert set(collections.Counter(u.text for u in found).values()) == {size // 10}
    strings = open_source(f"digits:{speech}/{name}/dev/strings")
    assert sum(len(u.text.split()) for u in strings) == 2 * size
    words = {u.text: u.translation for u in found}
    for u in strings:
        assert [words[word] for word in u.text.split()] == u.translation.split()
    for u in strings[::20]:
        audio = read_audio(u)
        assert len(audio) == round(u.duration * RATE)
        assert 100 < np.std(audio) < 10000
