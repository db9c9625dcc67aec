"""The small inputs of ../shared/cases that failed once: each has its right outcome.

The kinds of which they are examples are tested by test_cases_audio, _text, _files and _runs.
"""

import argparse
import logging
import re
import shutil

import pytest

from bljust_jax import ngram
from bljust_jax.common.errors import UserError
from bljust_jax.data import normalise, shard_writing
from bljust_jax.data.sources import open_source, read_audio
from bljust_jax.decoding import arpa
from bljust_jax.export import hf_tokenizer
from bljust_jax.inference import audio_files, search_options
from bljust_jax.monitoring import metrics
from bljust_jax.train import workdir
from configs import defaults

RATE = 16000


@pytest.fixture(autouse=True)
def warnings(caplog):
    caplog.set_level(logging.WARNING)


def faults(uri):
    return [u.fault for u in open_source(str(uri))]


def seconds(path):
    return len(audio_files.read(str(path), RATE)) / RATE


def test_truncated_wav(cases, caplog):
    found = faults(cases / "truncated_wav" / "train.jsonl")
    said = (
        "ends early: 1.29 of 2.58 s",
        "ends early, after 0.78 s",
        "declares 0.50",
        "declares 0.0",
    )
    for fault, words in zip(found, said, strict=True):
        assert words in fault
    lengths = {"trunc.wav": 1.29, "trunc.ogg": 0.78, "short_hdr.wav": 2.58, "stream_0.wav": 2.58}
    for name, length in lengths.items():
        assert seconds(cases / "truncated_wav" / name) == pytest.approx(length, abs=0.01)
        assert name in caplog.records[-1].getMessage()
    assert len(caplog.records) == 4


def test_ami_truncated_wav(cases):
    found = faults(f"ami:{cases}/ami_truncated_wav/AMI/ihm/train")
    assert [bool(fault) for fault in found] == [False] * 2 + [True] * 4
    assert re.search(r"Headset-0\.wav ends early: 9\.14 of 18\.28 s", found[2])


def test_mp3_no_xing(cases):
    with_count = seconds(cases / "mp3_no_xing" / "two_sentences_with_xing.mp3")
    assert seconds(cases / "mp3_no_xing" / "two_sentences_no_xing.mp3") >= with_count
    (u,) = open_source(str(cases / "mp3_no_xing" / "train.jsonl"))
    assert u.duration == pytest.approx(with_count, abs=0.1)


def test_tsv_tab_newline(cases):
    with pytest.raises(UserError, match=r"validated\.tsv:2: has 9 fields .* names 8; a text may"):
        open_source(f"covost:{cases}/tsv_tab_newline/CV/nl_en/train")


def test_prepare_drops_translation(cases, tmp_path):
    source = open_source(str(cases / "prepare_drops_translation" / "train.jsonl"))
    shard_writing.write(source, tmp_path, "train")
    stored = open_source(f"tfds:{tmp_path}/train")
    assert [u.translation for u in stored] == ["wij noemen het beer", "nul drie vijf een"]


def test_wrong_commit(tmp_path):
    assert workdir.git_id(tmp_path) == ""


def test_invisible_characters(cases):
    spell = normalise.make(defaults.data().text.normalise)
    texts = [spell(u.text) for u in open_source(str(cases / "invisible_characters/train.jsonl"))]
    assert set("".join(texts)) <= set(" abcdefghijklmnopqrstuvwxyz")
    assert texts[3] == "elephants tai goose"


def test_lm_wrong_case(cases):
    args = argparse.Namespace(lm=str(cases / "lm_wrong_case" / "upper.arpa"), lm_over="words")
    with pytest.raises(UserError, match=r"upper\.arpa: 0 of its \d+ words can be spelt"):
        search_options.open_language_model(args, " 'abcdefghijklmnopqrstuvwxyz")


def test_locale_not_utf8(cases):
    assert len(open_source(str(cases / "locale_not_utf8" / "train.jsonl"))) == 8


@pytest.mark.parametrize(
    ("file", "lines"), [("metrics.interleaved.jsonl", 10), ("metrics.nul_tail.jsonl", 3)]
)
def test_two_runs_one_workdir(cases, file, lines, caplog):
    assert len(metrics.read(cases / "two_runs_one_workdir" / file)) >= lines
    assert "damaged lines left out" in caplog.text


def test_flac_unknown_length(cases, caplog):
    found = open_source(str(cases / "flac_unknown_length" / "train.jsonl"))
    assert [(u.fault, u.duration) for u in found] == [("", 3.43), ("", 2.58)]
    assert [len(read_audio(u)) for u in found] == [54880, 41280]
    assert seconds(found[1].path) == 2.58
    assert not caplog.records


def test_gsm_not_seekable(cases):
    for u in open_source(str(cases / "gsm_not_seekable" / "train.jsonl")):
        assert len(read_audio(u)) / RATE == pytest.approx(2.6, abs=0.05)
        assert seconds(u.path) == pytest.approx(u.duration, abs=0.01)


def test_raw_name(cases):
    for name in ("nodur", "train"):
        good, bad = open_source(str(cases / "raw_name" / f"{name}.jsonl"))
        assert len(read_audio(good)) == 54880
        if not bad.fault:
            with pytest.raises(UserError, match=r"speech\.raw: Format not recognised"):
                read_audio(bad)
    assert seconds(cases / "raw_name" / "wav_called.raw") == 2.58


@pytest.mark.parametrize(("uri", "size"), [("librispeech:LS/dev", 3), ("aishell:AI/train", 1)])
def test_macos_dot_underscore(cases, uri, size):
    scheme, _, rest = uri.partition(":")
    assert len(open_source(f"{scheme}:{cases}/macos_dot_underscore/{rest}")) == size
    assert open_source(f"tedlium:{cases}/macos_dot_underscore/TED/train")


def test_text_with_bom(cases):
    folder = cases / "text_with_bom"
    given = argparse.Namespace(data="", text=folder / "corpus.txt")
    texts = [text for _, text in ngram.read_texts(given)]
    assert texts
    assert "\ufeff" not in "".join(texts)
    assert arpa.Arpa.read(folder / "model.arpa").words()


def test_damaged_arpa_gz(cases):
    folder = cases / "damaged_arpa_gz"
    with pytest.raises(UserError, match=r"model\.arpa\.gz:\d+: .*; expected an ARPA"):
        arpa.Arpa.read(folder / "model.arpa.gz")
    assert any("\u00a0" in word for word in arpa.Arpa.read(folder / "nbsp.arpa").words())


@pytest.mark.parametrize("name", ["vocab.list.json", "vocab.str_ids.json"])
def test_hf_vocab(cases, tmp_path, name):
    shutil.copy(cases / "hf_vocab" / name, tmp_path / "vocab.json")
    with pytest.raises(UserError, match=r"vocab\.json: (is no JSON object|the id of '<pad>' is)"):
        hf_tokenizer.read(tmp_path, 0)


def test_not_an_mp3(cases, capfd):
    (fault,) = faults(cases / "not_an_mp3" / "train.jsonl")
    assert "html.mp3: does not decode as MP3" in fault
    assert capfd.readouterr().err == ""


def test_paths(cases):
    for name in ("c++/train.jsonl", "nfc.jsonl"):
        (u,) = open_source(str(cases / "paths" / name))
        assert len(read_audio(u)) == 41280


def test_antiphase_bigfloat(cases, caplog):
    for name, words in (("antiphase", "cancel each other"), ("bigfloat", "up to 20868")):
        seconds(cases / "antiphase_bigfloat" / f"{name}.wav")
        assert words in caplog.records[-1].getMessage()
