"""Reader of CoVoST v2."""

import dataclasses
import os

import numpy as np
import pytest
import soundfile
from ml_collections import ConfigDict

from bljust_jax.common.errors import UserError
from bljust_jax.data.corpus import Segment, load_corpus
from bljust_jax.data.sources import open_source, read_audio
from configs import m2asr
from tests.helpers import corpora

RATE = 48000
COLUMNS = ["client_id", "path", "sentence", "up_votes", "down_votes", "age", "gender", "accent"]
CLIPS = {"train": (1, 2), "dev": (3,), "test": (4,), "train_covost": (5,), "dev_covost": (6,)}


def clip(number):
    return f"common_voice_nl_{number}.mp3"


def table(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(columns), *("\t".join(row.get(c, "") for c in columns) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tone(number, seconds=1.0):
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * 200 * number * time)).astype("float32")


def corpus(top, columns=COLUMNS):
    """Seven Dutch clips, six of them in CoVoST, one without a recording; no other language."""
    rows = []
    for number in range(1, 8):
        path = top / "nl" / "clips" / clip(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone(number), RATE, format="MP3")
        sentence = f'Zin "{number}\\", e\u0301e\u0301n'
        rows.append({"client_id": f"c{number % 2}", "path": clip(number), "sentence": sentence})
    table(top / "nl" / "validated.tsv", columns, rows)
    splits = [(clip(n), split) for split, numbers in CLIPS.items() for n in numbers]
    rows = [
        {"path": path, "translation": f'A "cafe\u0301", {path[-5]}.', "split": split}
        for path, split in splits
    ]
    table(top / "nl" / "covost_v2.nl_en.tsv", ["path", "translation", "split"], rows)
    return top


def test_a_split_is_covosts_and_its_text_common_voices(tmp_path):
    corpus(tmp_path)
    found = open_source(f"covost:{tmp_path}/nl_en/train")
    assert [u.id for u in found] == [f"common_voice_nl_{n}" for n in (1, 2, 5)]
    first = found[0]
    assert first.path == str(tmp_path / "nl" / "clips" / clip(1))
    assert first.text == 'Zin "1", één'  # NFC; quotes are ordinary characters, a backslash escapes
    assert [u.translation for u in found] == [f'A "café", {n}.' for n in (1, 2, 5)]
    assert (first.lang, first.speaker, first.duration, first.fault) == ("nl", "c1", 1.0, "")
    assert first.line == f"{tmp_path}/nl/validated.tsv:2"
    assert [u.id[-1] for u in open_source(f"covost:{tmp_path}/nl_en/dev")] == ["3"]
    assert [u.id[-1] for u in open_source(f"covost:{tmp_path}/nl_en/test")] == ["4"]


def test_m2asr_recognises_words_and_translates_with_punctuation(tmp_path):
    """The streams of `configs/m2asr.py` on one corpus: labels of training and references of dev."""
    corpus(tmp_path)
    config = m2asr.get_config("covost")
    data = config.data
    data.streams = ConfigDict({"asr/nl": m2asr.recognition("nl_en")})
    m2asr.add_translation(config, "nl_en")
    data.update(root=str(tmp_path), max_bad_fraction=1.0, min_spellable=0.0)
    for stream in data.streams.values():
        stream.text.update(units="characters")
    loaded = load_corpus(data, seed=0, multiple=1)
    assert list(loaded.streams) == ["asr/nl", "st/nl-en"]
    assert loaded.references("dev/asr/nl") == ["zin 3 één"]
    assert loaded.references("dev/st/nl-en") == ['A "café", 3.']
    for name, spelled in (("asr/nl", "zin {} één"), ("st/nl-en", 'A "café", {}.')):
        units, training = loaded.tokenizers[name], loaded.utterances(name)
        labels = [units.decode(units.encode(u.text)) for u in training]
        assert labels == [spelled.format(n) for n in (1, 2, 5)]


def test_clips_are_decoded_at_16_khz(tmp_path):
    found = open_source(f"covost:{corpus(tmp_path)}/nl_en/train")
    audio = read_audio(found[1])
    assert len(audio) == 16000
    spectrum = np.abs(np.fft.rfft(audio[4000:12000] * np.hanning(8000)))
    assert np.argmax(spectrum) * 2 == 400  # Hz, of clip 2


@pytest.mark.parametrize("columns", [sorted(COLUMNS), ["sentence", "extra", "path", "client_id"]])
def test_columns_are_found_by_name(tmp_path, columns):
    usual = open_source(f"covost:{corpus(tmp_path / 'a')}/nl_en/train")
    top = corpus(tmp_path / "b", columns)
    listing = top / "nl" / "covost_v2.nl_en.tsv"
    rows = [line.split("\t") for line in listing.read_text(encoding="utf-8").splitlines()]
    turned = ["\t".join([split, path, translation]) for path, translation, split in rows]
    listing.write_text("\n".join(turned) + "\n", encoding="utf-8")
    other = open_source(f"covost:{top}/nl_en/train")
    for a, b in zip(usual, other, strict=True):
        assert a == dataclasses.replace(b, path=a.path, line=a.line)


def test_the_table_of_one_split_and_tables_beside_the_language(tmp_path):
    corpus(tmp_path)
    os.rename(tmp_path / "nl/covost_v2.nl_en.tsv", tmp_path / "covost_v2.nl_en.tsv")
    assert len(open_source("covost:nl_en/train", str(tmp_path))) == 3
    row = {"path": clip(7), "sentence": "zeven", "translation": "seven", "client_id": "c"}
    table(tmp_path / "covost_v2.nl_en.train.tsv", list(row), [row])
    (tmp_path / "nl/validated.tsv").unlink()
    (u,) = open_source("covost:nl_en/train", str(tmp_path))
    assert (u.id, u.text, u.translation) == ("common_voice_nl_7", "zeven", "seven")
    assert u.speaker == "c"


def test_another_release_of_common_voice_is_a_warning(tmp_path, caplog):
    corpus(tmp_path)
    path = tmp_path / "nl" / "validated.tsv"
    path.write_text(path.read_text().replace(clip(2), "common_voice_nl_99.mp3"))
    assert len(open_source(f"covost:{tmp_path}/nl_en/train")) == 2
    assert f"1 of 3 clips have no line in {path}, one is {clip(2)}" in caplog.text
    assert "Common Voice 4" in caplog.text


def test_a_clip_that_does_not_decode_is_a_fault_of_its_own(tmp_path, capfd):
    clips = corpus(tmp_path) / "nl" / "clips"
    (clips / clip(1)).write_text("<html>not found</html>")
    (clips / clip(2)).unlink()
    whole = (clips / clip(5)).read_bytes()
    (clips / clip(5)).write_bytes(whole[: len(whole) // 4])
    first, second, third = open_source(f"covost:{tmp_path}/nl_en/train")
    where = f"{tmp_path}/nl/validated.tsv"
    assert (
        first.fault == f"{where}:2: {first.path} does not decode as MP3; unpack the archive again"
    )
    assert second.fault.startswith(f"{where}:3: {second.path} is missing from the folder")
    assert third.fault == ""  # its header is intact
    with pytest.raises(UserError, match=rf"{where}:6: .*nl_5\.mp3 ends early"):
        read_audio(third)
    capfd.readouterr()  # the MP3 decoder itself writes to stderr


def test_clips_that_do_not_decode_end_in_quarantine(tmp_path, capfd):
    clips = corpus(tmp_path) / "nl" / "clips"
    (clips / clip(1)).write_text("<html>not found</html>")  # found before training
    whole = (clips / clip(5)).read_bytes()
    (clips / clip(5)).write_bytes(whole[: len(whole) // 4])  # its header is intact
    uri = f"covost:{tmp_path}/nl_en"
    data = {"train": f"{uri}/train", "dev": f"{uri}/dev", "max_bad_fraction": 0.7}
    data["min_spellable"] = 0.0
    loaded = corpora.load(tmp_path, **data, **corpora.PLAIN)
    assert [entry["id"][-1] for entry in loaded.quarantined] == ["1"]
    for batch in loaded.train_batches([Segment(0, 3, corpora.JOINT)], 0):
        assert batch["labelled"]["audio_lengths"].max() == corpora.RATE  # clip 2
    first, second = loaded.quarantined
    where = f"{tmp_path}/nl/validated.tsv"
    assert first["reason"].startswith(f"{where}:2: {clips / clip(1)} does not decode as MP3")
    assert second["reason"].startswith(f"{where}:6: {clips / clip(5)} ends early")
    capfd.readouterr()  # the MP3 decoder itself writes to stderr


@pytest.mark.parametrize("rest", ["nl/train", "nl_en", "nl_en/valid", "NL_EN/train", "../train"])
def test_a_wrong_name_shows_a_right_one(tmp_path, rest):
    with pytest.raises(UserError, match=r"name ROOT/SRC_TGT/SPLIT, for instance ROOT/nl_en/train"):
        open_source(f"covost:{corpus(tmp_path)}/{rest}")


def test_missing_languages_and_tables_are_named(tmp_path):
    corpus(tmp_path)
    with pytest.raises(UserError, match=r"no such folder: .*/mn/clips; unpack Common Voice 4's"):
        open_source(f"covost:{tmp_path}/mn_en/train")
    with pytest.raises(UserError, match=r"no such file: .*covost_v2\.nl_de\.tsv; .* CoVoST v2"):
        open_source(f"covost:{tmp_path}/nl_de/train")
    (tmp_path / "nl/validated.tsv").unlink()
    with pytest.raises(UserError, match=r"no such file: .*validated\.tsv; .* Common Voice 4"):
        open_source(f"covost:{tmp_path}/nl_en/train")


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        (
            "validated.tsv",
            "sentence",
            "text",
            r":1: has no column 'sentence' among client_id, path",
        ),
        ("covost_v2.nl_en.tsv", "split", "part", r":1: has no column 'split' among path"),
        ("covost_v2.nl_en.tsv", "translation", "text", r":1: has no column 'translation' among"),
        ("validated.tsv", "c1\tcommon_voice_nl_1.mp3\t", "c1\n", ":2: has 1 fields where"),
        ("validated.tsv", "Zin", "\r", ":2: is no row of a TSV file"),
        ("validated.tsv", None, None, "validated.tsv: is empty"),
        ("covost_v2.nl_en.tsv", None, None, "nl_en.tsv: is empty"),
    ],
)
def test_bad_tables_are_named(tmp_path, file, old, new, complaint):
    path = corpus(tmp_path) / "nl" / file
    path.write_text(path.read_text().replace(old, new, 1) if old else "", newline="")
    with pytest.raises(UserError, match=complaint) as caught:
        open_source(f"covost:{tmp_path}/nl_en/train")
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_outside_the_root_is_read(tmp_path):
    corpus(tmp_path / "in")
    corpus(tmp_path / "out")
    root = str(tmp_path / "in")
    assert len(open_source("covost:nl_en/train", root)) == 3
    with pytest.raises(UserError, match="outside the data root"):
        open_source("covost:../out/nl_en/train", root)
    path = tmp_path / "in/nl/clips" / clip(1)
    path.unlink()
    path.symlink_to(tmp_path / "out/nl/clips" / clip(1))
    with pytest.raises(UserError, match=r"validated\.tsv:2: .* outside the data root"):
        open_source("covost:nl_en/train", root)
    table = tmp_path / "in/nl/validated.tsv"
    table.write_text(table.read_text().replace(clip(1), f"../../../out/nl/clips/{clip(1)}"))
    listing = tmp_path / "in/nl/covost_v2.nl_en.tsv"
    listing.write_text(listing.read_text().replace(clip(1), f"../../../out/nl/clips/{clip(1)}"))
    for confined in (root, ""):
        with pytest.raises(UserError, match="is no file name; write it without a path"):
            open_source(f"covost:{root}/nl_en/train", confined)
