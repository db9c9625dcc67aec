"""Reader of LibriSpeech."""

import os

import numpy as np
import pytest
import soundfile

from bljust_jax.common.errors import UserError
from bljust_jax.data.sources import open_source, read_audio

RATE = 16000


def libri(folder, text="1-2-0000 HELLO THERE\n"):
    chapter = folder / "LS" / "dev" / "1" / "2"
    chapter.mkdir(parents=True)
    soundfile.write(chapter / "1-2-0000.flac", np.arange(8000, dtype=np.int16), RATE)
    (chapter / "1-2.trans.txt").write_text(text)
    return f"librispeech:{folder}/LS/dev"


def test_librispeech_layout(tmp_path):
    (u,) = open_source(libri(tmp_path))
    assert (u.id, u.text, u.speaker, u.lang) == ("1-2-0000", "HELLO THERE", "1", "en")
    assert u.duration == 0.5
    assert u.line.endswith("1-2.trans.txt:1")
    assert open_source("librispeech:LS/dev", str(tmp_path)) == [u]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("1-2-0000\n", r"trans\.txt:1"), ("1-2-0000 A\n1-2-0001 B\n", "1-2-0001.flac is missing")],
)
def test_bad_librispeech_transcripts(tmp_path, text, complaint):
    with pytest.raises(UserError, match=complaint):
        open_source(libri(tmp_path, text))


def test_a_damaged_flac_header_is_a_fault(tmp_path):
    uri = libri(tmp_path)
    (tmp_path / "LS/dev/1/2/1-2-0000.flac").write_bytes(b"fLaC" + bytes(100))
    (u,) = open_source(uri)
    assert "1-2.trans.txt:1: cannot read the header" in u.fault


def test_missing_librispeech_split(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_source(f"librispeech:{tmp_path}/train-clean-100")


def test_librispeech_stays_inside_the_root(tmp_path):
    uri = libri(tmp_path / "in")
    root = str(tmp_path / "in")
    (u,) = open_source(uri, root)  # absolute, and inside the root the root
    assert u.path == os.path.realpath(tmp_path / "in/LS/dev/1/2/1-2-0000.flac")
    libri(tmp_path / "out")
    for rest in (f"{tmp_path}/out/LS/dev", "../out/LS/dev", "LS/../../out/LS/dev"):
        with pytest.raises(UserError, match=f"^librispeech:{rest}: .* outside the data root"):
            open_source(f"librispeech:{rest}", root)
    recording = tmp_path / "in/LS/dev/1/2/1-2-0000.flac"
    recording.unlink()
    recording.symlink_to(tmp_path / "out/LS/dev/1/2/1-2-0000.flac")
    with pytest.raises(UserError, match=r"1-2\.trans\.txt:1: .*1-2-0000\.flac. lies outside"):
        open_source("librispeech:LS/dev", root)
    assert len(open_source(uri)) == 1  # without a root every path is allowed


def test_original_librispeech_files(speech):
    root = speech / "layouts" / "LibriSpeech"
    found = open_source(f"librispeech:{root}/dev-clean+librispeech:{root}/test-clean")
    texts = {u.id: u.text for u in found}
    assert len(found) == 8
    assert {u.part for u in found} == {"dev-clean", "test-clean"}
    listed = (speech / "layouts" / "librispeech_dev-clean_transcripts.txt").read_text()
    assert f"1272-128104-0000 {texts['1272-128104-0000']}" in listed
    for u in found:
        audio = read_audio(u)
        assert len(audio) == round(u.duration * RATE)
        assert 100 < np.std(audio) < 10000
