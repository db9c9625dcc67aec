"""Reader of WebDataset's shards."""

import json
import re
import tarfile

import pytest

from bljust_jax.data.sources import open_source, read_audio
from tests.helpers import formats, packed_formats
from tests.helpers.packed_formats import encoded, pack


@pytest.fixture(scope="module")
def few():
    return formats.spoken(5)


def test_a_sample(tmp_path, few):
    """Fields of the object, a text of its own, folders in the keys, pickled members not read."""
    one, two = few[:2]
    row = {"text": "x", "spk": 7, "locale": "nl", "duration": 0.1, "translation": "y", "n": []}
    members = {
        "a/1.json": json.dumps(row).encode(),
        "a/1.flac": encoded(one),
        "a/1.pyd": b"cos\nsystem\n(S'exit 1'\ntR.",
        "a/1.txt": b"own \n",
        "a/2.seg.wav": encoded(two, ".wav"),
        "notes.md": b"",
    }
    tar = pack(tmp_path / "a.tar", members)
    first, second = open_source(f"webdataset:{tar}")
    assert (first.id, first.text, first.speaker, first.lang) == ("a/1", "own", "7", "nl")
    assert (first.duration, first.translation) == (0.1, "y")
    assert (first.path, first.line) == (f"{tar}#a/1.flac", f"{tar}#a/1.txt")
    assert (second.id, second.duration) == ("a/2", two.seconds)
    assert read_audio(second, formats.RATE).tolist() == two.samples.tolist()


def test_nothing_outside_the_root_is_read(tmp_path, few, caplog):
    pack(tmp_path / "out.tar", {"a.flac": encoded(few[0])})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.tar").symlink_to(tmp_path / "out.tar")
    for name in ("../out.tar", "x.tar", "."):
        found = formats.answer(f"webdataset:{name}", caplog, str(tmp_path / "in"))
        assert "outside the data root" in found


FLAC, TEXT = "u001.flac", "u001.txt"
# ({member: its content, None to leave it out}, the member that is named, complaint)
MISTAKES = [
    ({FLAC: None}, TEXT, "no recording has its key; add one, such as u001.flac, or remove it"),
    ({FLAC: b"no audio"}, TEXT, r"cannot read the header of .*\.tar#u001\.flac: Format not rec"),
    ({FLAC: b""}, TEXT, "cannot read the header of"),
    ({FLAC: None, "u001.wav": "half"}, TEXT, r"\.tar#u001\.wav ends early"),
    ({FLAC: None, "u001.m4a": b""}, "u001.m4a", "is in a format that is not read; convert it"),
    (
        {"u001.wav": b""},
        "u001.wav",
        "has the key 'u001', as u001.flac has; a key ends at the first",
    ),
    ({"u001.b.flac": b""}, "u001.b.flac", "has the key 'u001', as u001.flac has"),
    ({"u001.lab": b"x"}, "u001.lab", "has the key 'u001', as u001.txt has"),
    ({TEXT: b"caf\xe9"}, TEXT, "is not UTF-8 text: .*; pack the shard again"),
    ({TEXT: b" \n"}, None, r"1 of 5 utterances have no text, the first at .*#u001\.txt"),
    ({TEXT: None}, None, r"1 of 5 utterances have no text, the first at .*#u001\.flac"),
    ({"u001.json": b"{"}, "u001.json", "is not JSON: .*; pack the shard again"),
    ({"u001.json": b"[1]"}, "u001.json", "is no JSON object; write one with the field text"),
    ({"u001.json": b'{"text": ["a"]}'}, "u001.json", "text must be a text or a number, not"),
    ({"u001.json": b'{"duration": -1}'}, TEXT, "the duration must be above 0 seconds, not '-1'"),
    ({"u001.json": b'{"id": "u000"}'}, TEXT, r"id 'u000' was used before, at .*#u000\.txt"),
    ({"../u001.flac": b""}, "", r"holds \.\./u001\.flac, outside of itself"),
    ({"u001.pickle": b""}, None, r"1 members are not read: \*\.pickle"),
]


@pytest.mark.parametrize(("changes", "member", "complaint"), MISTAKES)
def test_mistakes_are_named(tmp_path, few, caplog, changes, member, complaint):
    members = {}
    for u in few:
        members |= {f"{u.id}.flac": encoded(u), f"{u.id}.txt": u.text.encode()}
    changes = {
        name: encoded(few[1], ".wav")[:900] if c == "half" else c for name, c in changes.items()
    }
    members = {name: c for name, c in (members | changes).items() if c is not None}
    tar = pack(tmp_path / "a.tar", members)
    where = None if member is None else f"{tar}#{member}" if member else str(tar)
    formats.assert_answered(f"webdataset:{tar}", caplog, where or "", complaint)


@pytest.mark.parametrize(
    ("size", "complaint"),
    [
        (3000, "ends early: .* bytes by its header, but"),
        (0, "is no tar"),
        (-1, "is no tar"),
    ],
)
def test_damaged_shards_are_named(tmp_path, few, caplog, size, complaint):
    uri = packed_formats.webdataset_texts(tmp_path, few)
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[:size] if size >= 0 else b"<html>" * 500)
    found = formats.answer(uri, caplog)
    assert found.startswith(f"{tmp_path}/1.tar ")
    assert re.search(rf"{complaint}.*: fetch or pack it again, or leave it out", found), found


def test_a_name_that_occurs_twice(tmp_path, few, caplog):
    tar = pack(tmp_path / "a.tar", {"a.flac": encoded(few[0])})
    with tarfile.open(tar, "a") as archive:
        archive.addfile(tarfile.TarInfo("a.flac"))
    formats.assert_answered(f"webdataset:{tar}", caplog, f"{tar}#a.flac", "is in the shard twice")
