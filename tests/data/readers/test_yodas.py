"""Reader of YODAS."""

import subprocess
import tarfile

import numpy as np
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.data.readers import yodas
from bljust_jax.data.sources import open_source, read_audio
from tests.helpers.yodas_shards import IDS, write_shard


def test_utterances_of_a_shard(tmp_path):
    tar = write_shard(tmp_path / "en000")
    found = open_source(f"yodas:{tmp_path}/en000")
    assert [u.id for u in found] == IDS
    assert [u.duration for u in found] == [1.0, 0.5, 0.8]
    first = found[0]
    assert (first.text, first.lang, first.fault) == ("Caption 0 é", "en", "")
    assert [u.speaker for u in found] == ["--AbC_d-1e", "--AbC_d-1e", "vvvvvvvvvvv"]
    assert first.path == f"{tar}#{IDS[0]}"
    assert first.line == f"{tmp_path}/en000/text/00000000.txt:1"
    for number, u in enumerate(found):
        audio = read_audio(u)
        assert len(audio) == round(16000 * u.duration)
        spectrum = np.abs(np.fft.rfft(audio[:8000] * np.hanning(8000)))
        assert np.argmax(spectrum) * 2 == 300 * (number + 1)  # Hz


def test_members_are_read_at_their_places(tmp_path):
    """`fetch` returns the bytes that tarfile would extract; no file is extracted."""
    tar = write_shard(tmp_path / "en000")
    before = sorted(tmp_path.rglob("*"))
    found = open_source(f"yodas:{tmp_path}/en000")
    with tarfile.open(tar) as archive:
        for u in found:
            assert u.fetch() == archive.extractfile(f"./audio/x/{u.id}.wav").read()
    assert sorted(tmp_path.rglob("*")) == before


def test_all_shards_or_one(tmp_path):
    subset = tmp_path / "data" / "aa100"
    write_shard(subset, "00000001", [f"{i}1" for i in IDS])
    write_shard(subset)
    whole = open_source(f"yodas:{tmp_path}/aa100")
    assert [u.id for u in whole] == IDS + [f"{i}1" for i in IDS]
    assert {u.lang for u in whole} == {"aa"}
    assert [u.id for u in open_source("yodas:aa100/00000000", str(tmp_path))] == IDS
    assert [u.id for u in open_source(f"yodas:{tmp_path}/data/aa100/00000000")] == IDS
    (subset / "audio" / "00000001.tar").unlink()  # text without audio: not downloaded
    assert [u.id for u in open_source(f"yodas:{tmp_path}/aa100")] == IDS


def test_a_caption_without_words_is_no_text(tmp_path):
    write_shard(tmp_path / "en000", texts=["", "  ", "word"])
    found = open_source(f"yodas:{tmp_path}/en000")
    assert [u.text for u in found] == [None, None, "word"]


def test_a_compressed_shard_is_refused_with_its_cure(tmp_path):
    packed = write_shard(tmp_path / "en000", packed=True)
    with pytest.raises(UserError, match=r"00000000\.tar; unpack it once: gunzip ") as caught:
        open_source(f"yodas:{tmp_path}/en000")
    cure = str(caught.value).partition("once: ")[2].split()
    assert cure == ["gunzip", str(packed)]
    subprocess.run(cure, check=True)
    assert len(open_source(f"yodas:{tmp_path}/en000")) == 3


def test_a_damaged_shard_loses_the_utterances_after_the_damage(tmp_path):
    tar = write_shard(tmp_path / "en000")
    places = yodas._index(tar)
    whole = tar.read_bytes()
    tar.write_bytes(whole[: places[IDS[1]].start + 100])
    first, second, third = open_source(f"yodas:{tmp_path}/en000")
    assert first.fault == ""
    assert len(read_audio(first)) == 16000
    for line, u in ((2, second), (3, third)):
        assert f"text/00000000.txt:{line}: {tar} lacks {u.id}.wav" in u.fault
        assert u.fetch is None
    tar.write_bytes(b"<html>" + whole[6:])
    assert all("lacks" in u.fault for u in open_source(f"yodas:{tmp_path}/en000"))


def test_links_in_a_shard_are_refused(tmp_path):
    tar = write_shard(tmp_path / "en000", ids=IDS[:2])
    with tarfile.open(tar, "a") as archive:
        link = tarfile.TarInfo(f"{IDS[2]}.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    with pytest.raises(UserError, match=rf"00000000\.tar: {IDS[2]}\.wav is a symbolic link"):
        open_source(f"yodas:{tmp_path}/en000")


@pytest.mark.parametrize(
    ("part", "old", "new", "complaint"),
    [
        ("text", IDS[1], "video", r"text/00000000\.txt:2: 'video' is no id"),
        ("duration", IDS[1], "video", r"duration/00000000\.txt:2: 'video' is no id"),
        ("duration", " 0.5", "", r"duration/00000000\.txt:2: expected an id and its seconds"),
        ("duration", " 0.5", " -1", r"duration/00000000\.txt:2: expected"),
        ("duration", " 0.5", " nan", r"duration/00000000\.txt:2: expected"),
        ("duration", " 0.5", " long", r"duration/00000000\.txt:2: expected"),
        ("duration", None, None, r"duration/00000000\.txt: no such file"),
        ("text", None, None, r"text/00000000\.txt: no such file"),
    ],
)
def test_bad_lines_are_named(tmp_path, part, old, new, complaint):
    write_shard(tmp_path / "en000")
    path = tmp_path / "en000" / part / "00000000.txt"
    if old:
        path.write_text(path.read_text().replace(old, new))
    else:
        path.unlink()
    with pytest.raises(UserError, match=complaint) as caught:
        open_source(f"yodas:{tmp_path}/en000")
    assert "\n" not in str(caught.value)


def test_an_utterance_without_a_duration_is_a_fault(tmp_path):
    write_shard(tmp_path / "en000")
    path = tmp_path / "en000" / "duration" / "00000000.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    first, second, _ = open_source(f"yodas:{tmp_path}/en000")
    assert "has no line in the shard's duration file" in first.fault
    assert second.fault == ""


def test_missing_folders_and_shards_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no such folder: .*en000; name ROOT/en000"):
        open_source(f"yodas:{tmp_path}/en000")
    write_shard(tmp_path / "en000").unlink()
    with pytest.raises(UserError, match=r"no audio in .*en000/audio; download its shards"):
        open_source(f"yodas:{tmp_path}/en000")
    with pytest.raises(UserError, match=r"no such file: .*00000007\.tar; download it"):
        open_source(f"yodas:{tmp_path}/en000/00000007")
    (tmp_path / "en000" / "duration" / "00000000.txt").unlink()
    (tmp_path / "en000" / "duration").rmdir()
    with pytest.raises(UserError, match=r"no such folder: .*en000/duration"):
        open_source(f"yodas:{tmp_path}/en000")


def test_nothing_outside_the_root_is_read(tmp_path):
    tar = write_shard(tmp_path / "in" / "en000")
    other = write_shard(tmp_path / "out" / "en000")
    root = str(tmp_path / "in")
    assert len(open_source("yodas:en000", root)) == 3
    with pytest.raises(UserError, match=r"^yodas:\.\./out/en000: .* outside the data root"):
        open_source("yodas:../out/en000", root)
    tar.unlink()
    tar.symlink_to(other)
    with pytest.raises(UserError, match=r"00000000\.tar. lies outside the data root"):
        open_source("yodas:en000", root)
