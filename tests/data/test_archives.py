"""Index of tar archives, patterns of shards, and files within files."""

import contextlib
import io
import os
import subprocess
import tarfile

import numpy as np
import pytest
import soundfile

from bljust_jax.common.errors import UserError
from bljust_jax.data import archives, containers
from bljust_jax.data.byte_ranges import ByteRange
from tests.helpers.packed_formats import pack

CONTENT = {"a/one.wav": b"1" * 700, "./two.txt": "zwölf".encode(), "three": b""}


def test_members_are_read_at_their_places(tmp_path):
    """The bytes are those that tarfile extracts; only texts are read."""
    tar = pack(tmp_path / "a.tar", CONTENT)
    index = archives.read_index(tar, lambda name: name.endswith(".txt"))
    assert index.damage == ""
    assert {m.name: m.place() for m in index.members} == CONTENT
    assert [m.content for m in index.members] == [None, "zwölf".encode(), None]


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_formats_of_tar(tmp_path, kind):
    """Long names of all formats, folders, and no files of macOS."""
    name = "/".join(["folder" * 10] * 3) + "/" + "ü" * 15
    with tarfile.open(tmp_path / "a.tar", "w", format=kind) as archive:
        for path, content in ((name, b"abc"), ("._x.wav", b"of macOS")):
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        folder = tarfile.TarInfo("empty")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    (member,) = archives.read_index(tmp_path / "a.tar").members
    assert (member.name, member.place()) == (name, b"abc")


def special(path, name, kind, size=0):
    """An archive with a member of a kind after a file."""
    pack(path, {"a.wav": b"x"})
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, "/etc/passwd", size
        archive.addfile(member)
    return path


@pytest.mark.parametrize(
    ("name", "kind", "complaint"),
    [
        ("/etc/x.wav", tarfile.REGTYPE, "holds /etc/x.wav, outside of itself"),
        ("a/../../x.wav", tarfile.REGTYPE, r"holds a/\.\./\.\./x\.wav, outside of itself"),
        ("..", tarfile.DIRTYPE, r"holds \.\., outside"),
        ("x.wav", tarfile.SYMTYPE, "x.wav is a symbolic link, which is not read; pack it again"),
        ("x.wav", tarfile.LNKTYPE, "x.wav is a link, which is not read"),
        ("x.wav", tarfile.CHRTYPE, "x.wav is a device, which is not read"),
        ("x.wav", tarfile.BLKTYPE, "x.wav is a device, which is not read"),
        ("x.wav", tarfile.FIFOTYPE, "x.wav is a pipe, which is not read"),
    ],
)
def test_what_is_no_file_within_the_archive_is_refused(tmp_path, name, kind, complaint):
    tar = special(tmp_path / "a.tar", name, kind)
    with pytest.raises(UserError, match=complaint) as caught:
        archives.read_index(tar)
    assert str(caught.value).startswith(str(tar))


def with_size(tar, name, size):
    """Rewrite the size in the header of a member, in the binary form where it is large."""
    with tarfile.open(tar) as archive:
        member = archive.getmember(name)
        member.size = size
        header = member.tobuf(format=tarfile.GNU_FORMAT)
        at = member.offset
    whole = bytearray(tar.read_bytes())
    whole[at : at + 512] = header[:512]
    tar.write_bytes(whole)


@pytest.mark.parametrize("size", [5000, 8 << 30, 1 << 62])
def test_a_size_beyond_the_archive_is_named(tmp_path, size):
    tar = pack(tmp_path / "a.tar", {"a.wav": b"x" * 600, "b.wav": b"y" * 600})
    with_size(tar, "b.wav", size + 20000)
    index = archives.read_index(tar)
    assert [m.name for m in index.members] == ["a.wav"]
    assert f"ends early: b.wav has {size + 20000} bytes by its header, but" in index.damage


def test_a_negative_size_is_no_loop(tmp_path):
    tar = pack(tmp_path / "a.tar", {"a.wav": b"x" * 600})
    with_size(tar, "a.wav", -1024)
    with pytest.raises(UserError, match=r"a\.wav has a size of -1024 bytes"):
        archives.read_index(tar)


def test_a_text_of_absurd_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_TEXT", 10)
    tar = pack(tmp_path / "a.tar", {"a.txt": b"x" * 11})
    with pytest.raises(UserError, match=r"a\.tar#a\.txt: is a text of 11 bytes, more than 10"):
        archives.read_index(tar, lambda name: True)


@pytest.mark.parametrize(
    ("command", "cure"),
    [("gzip", "gunzip"), ("bzip2", "bunzip2"), ("xz", "unxz")],
)
def test_compressed_archives_are_refused(tmp_path, command, cure):
    tar = pack(tmp_path / "a.tar", CONTENT)
    packed = subprocess.run([command, "-c", str(tar)], check=True, capture_output=True).stdout
    tar.write_bytes(packed)
    with pytest.raises(UserError, match=rf"a\.tar: is compressed; unpack it once \({cure}\)"):
        archives.read_index(tar)


def test_every_truncation_is_damage(tmp_path):
    """The files before it are whole."""
    tar = pack(tmp_path / "a.tar", {"a.wav": b"x" * 600, "b.wav": b"y" * 100})
    whole = tar.read_bytes()
    ends = {"a.wav": 512 + 600, "b.wav": 512 + 1024 + 512 + 100}
    for size in [*range(0, 2560, 37), 512, 1112, 1536, 2048, 2559]:
        tar.write_bytes(whole[:size])
        index = archives.read_index(tar)
        assert [m.name for m in index.members] == [n for n, end in ends.items() if end <= size]
        assert (index.damage == "") == (size > 2560), size
    tar.write_bytes(whole)
    assert archives.read_index(tar).damage == ""


def test_any_damaged_byte_gives_members_or_one_line(tmp_path):
    tar = pack(tmp_path / "a.tar", {"a.wav": b"x" * 30, "b.wav": b"y" * 30})
    whole, rng = tar.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(0, 2048, 300):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        tar.write_bytes(damaged)
        with contextlib.suppress(UserError):
            index = archives.read_index(tar)
            assert len(index.members) == 2 or index.damage
            assert all(len(m.place()) == m.place.size for m in index.members)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("{dev,test}-{0..1}", ["dev-0", "dev-1", "test-0", "test-1"]),
        ("a__OP_0..2_CL_.tar", ["a_0.tar", "a_1.tar", "a_2.tar"]),
    ],
)
def test_patterns(pattern, names):
    assert archives.expand(pattern, "x") == names


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("a-{0..2.tar", "has a brace without its other"),
        ("a-0..2}.tar", "has a brace without its other"),
        ("a-{5..2}.tar", "ends before it starts"),
        ("a-{0-9}.tar", "is no range; write"),
        ("a-{0..99999999}.tar", "gives more than 1048576 names"),
        ("{0..9999}{0..9999}", "gives more than 1048576 names"),
    ],
)
def test_wrong_patterns(pattern, complaint):
    with pytest.raises(UserError, match=rf"^x: .*{complaint}"):
        archives.expand(pattern, "x")


def test_shards(tmp_path):
    """A missing one is named; those of a folder are in order of their numbers."""
    for n in (0, 2, 10):
        pack(tmp_path / f"s{n}.tar", {"a": b""})
    found = archives.find_shards(".", str(tmp_path), "x")
    assert [os.path.basename(path) for path in found] == ["s0.tar", "s2.tar", "s10.tar"]
    with pytest.raises(UserError, match=r"no such file: .*s1\.tar \(1 of 3 shards are missing\)"):
        archives.find_shards("s{0..2}.tar", str(tmp_path), "x")
    with pytest.raises(UserError, match=r"^x: no such file: .*s1\.tar; download"):
        archives.find_shards("s1.tar", str(tmp_path), "x")
    with pytest.raises(UserError, match=r"^x: is a command, which is not run"):
        archives.find_shards("pipe:curl x", str(tmp_path), "x")
    with pytest.raises(UserError, match=r"^x: is remote; download"):
        archives.find_shards("https://x.org/{0..2}.tar", str(tmp_path), "x")


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff", "ogg"])
def test_lengths_of_files_within_files(tmp_path, suffix):
    """Equal to those of the file itself, and a cut file is noticed."""
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.1, 0.1, 9000), 16000)
    whole = path.read_bytes()
    (tmp_path / "b").write_bytes(b"before" + whole + b"after" * 1000)
    place = ByteRange(str(tmp_path / "b"), 6, len(whole))
    assert place() == whole
    assert containers.length(place) == containers.length(str(path))
    assert containers.length(place).problem == ""
    with pytest.raises(OSError, match="ends within it"):
        ByteRange(str(path), 6, len(whole))()


def test_a_stream_of_a_place(tmp_path):
    """As that of a file of its own."""
    (tmp_path / "b").write_bytes(bytes(range(256)))
    stream, own = ByteRange(str(tmp_path / "b"), 100, 50).open(), io.BytesIO(bytes(range(100, 150)))
    for call in (
        *("tell", ("seek", 10), ("read", 5), ("seek", -5, 2), ("read", 100), "tell", "read"),
        *(("seek", 0), ("seek", 3, 1), ("read",), ("seek", 70), ("read", 1)),
    ):
        name, *arguments = [call] if isinstance(call, str) else call
        assert getattr(stream, name)(*arguments) == getattr(own, name)(*arguments), call
    with pytest.raises(OSError, match="seek to -1"):
        stream.seek(-1)
    stream.close()
    assert stream.raw._file.closed
