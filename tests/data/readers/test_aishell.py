"""Reader of AISHELL-1."""

import os

import numpy as np
import pytest
import soundfile

from bljust_jax.common.errors import UserError
from bljust_jax.data.readers import aishell
from bljust_jax.data.sources import open_source, read_audio

RATE = 16000
LINES = """\
BAC009S0002W0122 而 对 楼市 成交 抑制 作用 最 大 的 限 购
BAC009S0002W0124 播放 iron man 的 歌
BAC009S0724W0121 广州市房地产中介协会分析
BAC009S0764W0121 甚至 出现 交易 几乎 停滞 的 情况
"""
WAVS = {"train": ("S0002W0122", "S0002W0123", "S0002W0124"), "dev": ("S0724W0121",)}


def corpus(top, lines=LINES):
    """Four recordings in the published layout, one without a line in the transcript."""
    for split, names in WAVS.items():
        for n, name in enumerate(names, start=1):
            path = top / "data_aishell" / "wav" / split / name[:5] / f"BAC009{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.full(n * 4000, n, np.int16), RATE)
    transcript = top / "data_aishell" / aishell.TRANSCRIPT
    transcript.parent.mkdir(exist_ok=True)
    transcript.write_text(lines, encoding="utf-8")
    return transcript


def test_a_split_is_a_folder_of_speakers(tmp_path):
    transcript = corpus(tmp_path)
    first, second, third = open_source(f"aishell:{tmp_path}/train")
    folder = tmp_path / "data_aishell/wav/train/S0002"
    assert first.path == str(folder / "BAC009S0002W0122.wav")
    assert (first.id, first.speaker, first.lang) == ("BAC009S0002W0122", "S0002", "zh")
    assert first.text == "而对楼市成交抑制作用最大的限购"
    assert [u.duration for u in (first, second, third)] == [0.25, 0.5, 0.75]
    assert (third.text, third.line) == ("播放iron man的歌", f"{transcript}:2")
    assert (second.text, second.speaker, second.fault) == (None, "S0002", "")  # not listed
    (u,) = open_source(f"aishell:{tmp_path}/data_aishell/dev")
    assert (u.id, u.text) == ("BAC009S0724W0121", "广州市房地产中介协会分析")
    assert np.array_equal(read_audio(u), np.full(4000, 1))


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("而 对 楼市", "而对楼市"),
        ("而对楼市", "而对楼市"),
        ("iron man three", "iron man three"),
        ("i'm 在 n b a 和 c b a", "i'm在n b a和c b a"),
        ("ｑ ｑ 群", "ｑ ｑ群"),  # full-width letters
        ("e\u0301 le\u0301 好", "é lé好"),
        ("好 a", "好a"),
    ],
)
def test_spaces_stay_between_latin_words_only(line, text):
    assert aishell.spell(line.split()) == text


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (LINES + "\nBAC009S0002W0199\n", r"v0\.8\.txt:6: expected an id and its words"),
        (LINES + LINES, r":5: BAC009S0002W0122 was transcribed before, at \S+v0\.8\.txt:1; remove"),
    ],
)
def test_bad_lines_are_named(tmp_path, lines, complaint):
    corpus(tmp_path, lines)
    with pytest.raises(UserError, match=complaint) as caught:
        open_source(f"aishell:{tmp_path}/train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rest", ["eval", "data_aishell", "data_aishell/wav"])
def test_a_wrong_split_shows_the_right_ones(tmp_path, rest):
    corpus(tmp_path)
    with pytest.raises(UserError, match=r"name ROOT/SPLIT, for .*; splits are train, dev, test$"):
        open_source(f"aishell:{tmp_path}/{rest}")


def test_missing_and_empty_folders_are_named(tmp_path):
    transcript = corpus(tmp_path)
    with pytest.raises(UserError, match=r"no such folder: \S+/wav/test; unpack .*S\*\.tar\.gz"):
        open_source(f"aishell:{tmp_path}/test")
    (tmp_path / "data_aishell/wav/test").mkdir()
    with pytest.raises(UserError, match="no utterance found"):
        open_source(f"aishell:{tmp_path}/test")
    transcript.unlink()
    with pytest.raises(UserError, match=r"no such file: \S+v0\.8\.txt; unpack"):
        open_source(f"aishell:{tmp_path}/train")


def test_a_damaged_recording_is_a_fault_that_names_its_line(tmp_path):
    transcript = corpus(tmp_path)
    folder = tmp_path / "data_aishell/wav/train/S0002"
    for name in ("BAC009S0002W0123.wav", "BAC009S0002W0124.wav"):
        (folder / name).write_bytes(b"not a recording")
    first, second, third = open_source(f"aishell:{tmp_path}/train")
    assert first.fault == ""
    assert second.fault.startswith(f"{second.path}: cannot read the header")  # not listed
    assert third.fault.startswith(f"{transcript}:2: cannot read the header of {third.path}")


def test_nothing_outside_the_root_is_read(tmp_path):
    corpus(tmp_path / "in")
    corpus(tmp_path / "out")
    root = str(tmp_path / "in")
    assert len(open_source("aishell:train", root)) == 3
    assert len(open_source("aishell:data_aishell/train", root)) == 3
    with pytest.raises(UserError, match="outside the data root"):
        open_source("aishell:../out/train", root)
    recording = tmp_path / "in/data_aishell/wav/train/S0002/BAC009S0002W0122.wav"
    recording.unlink()
    recording.symlink_to(os.path.relpath(str(recording).replace("/in/", "/out/"), recording.parent))
    with pytest.raises(UserError, match=r"v0\.8\.txt:1: .* outside the data root"):
        open_source("aishell:train", root)
    assert len(open_source(f"aishell:{root}/train")) == 3  # without a root every path is allowed


def test_original_files(speech):
    layouts = speech / "layouts"
    for split, text in (
        ("dev", "广州市房地产中介协会分析"),
        ("test", "甚至出现交易几乎停滞的情况"),
    ):
        (u,) = open_source(f"aishell:{layouts}/data_aishell/{split}")
        assert [u] == open_source(f"aishell:{layouts}/{split}")
        assert (u.text, u.fault) == (text, "")
        audio = read_audio(u)
        assert len(audio) == round(u.duration * RATE)
        assert 100 < np.std(audio) < 10000
