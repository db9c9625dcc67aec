"""Reader of Lhotse's cuts."""

import copy
import gzip
import re

import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.data.sources import open_source
from tests.helpers import formats, packed_formats
from tests.helpers.packed_formats import cut, write_cuts


@pytest.fixture(scope="module")
def few():
    return formats.spoken(6)


def test_a_cut_of_several_supervisions(tmp_path, few):
    """Each is an utterance, at its place in the recording and within the cut."""
    formats.write_recordings(tmp_path, few)
    one = cut(few[0], "s0.flac", 0.1, 60.0) | {"duration": 0.3}
    (first,) = one["supervisions"]
    first |= {"start": -0.05, "duration": 0.15}
    second = first | {"id": "b", "start": 0.2, "duration": 9.0, "text": "x"}
    one["supervisions"].append(second)
    a, b = open_source(write_cuts(tmp_path, [one]))
    assert (a.id, a.offset, a.duration) == ("u000-s", 0.1, pytest.approx(0.1))
    assert (b.id, b.offset, b.duration) == ("b", pytest.approx(0.3), pytest.approx(0.1))
    assert (b.text, b.lang, b.speaker) == ("x", "nl", "s0")
    bare = one | {"supervisions": []}
    (u,) = open_source(write_cuts(tmp_path, [bare]))
    assert (u.id, u.offset, u.duration, u.text) == ("u000", 0.1, 0.3, None)


def test_uncompressed_and_in_a_root(tmp_path, few):
    packed_formats.lhotse(tmp_path / "in", few)
    packed = tmp_path / "in" / "cuts_train.jsonl.gz"
    lines = gzip.decompress(packed.read_bytes()).replace(b'"audio/', b'"../audio/')
    (tmp_path / "in" / "audio").rename(tmp_path / "audio")
    (tmp_path / "in" / "cuts.jsonl").write_bytes(lines)
    with pytest.raises(UserError, match=r"cuts\.jsonl:1: .* lies outside the data root"):
        open_source(f"lhotse:{tmp_path}/in/cuts.jsonl")
    assert len(open_source("lhotse:in/cuts.jsonl", str(tmp_path))) == 6


def source(**changes):
    def edit(cut):
        cut["recording"]["sources"][0].update(changes)

    return edit


def supervision(**changes):
    def edit(cut):
        cut["supervisions"][0].update(changes)

    return edit


def fields(**changes):
    def edit(cut):
        cut.update(changes)

    return edit


# (edit of the second cut, complaint)
MISTAKES = [
    (source(source="audio/u01.flac"), r"no such file: .*did you mean 'u0"),
    (source(source="../u001.flac"), "outside the data root"),
    (
        source(type="command", source="touch run"),
        "its source is of the type 'command', which is",
    ),
    (source(type="url"), "its source is of the type 'url'; write the audio to files"),
    (source(channels=[0, 1]), "is channel 0 of a file with 2 channels; write one file per"),
    (source(channels=[1]), "no source of its recording has channel 0"),
    (fields(type="MixedCut"), "has the type 'MixedCut', not 'MonoCut'"),
    (fields(recording=None), "has no recording, only features"),
    (fields(start=-1.0), "start must be a number of seconds, not -1.0"),
    (fields(duration=0), "duration must be a number of seconds, not 0"),
    (fields(start=70.0), "offset 70 s is past the end of"),
    (fields(start=0.1), "ends at .* s, past the end of .*u001.flac"),
    (fields(id="u000"), "id 'u000' was used before, at .*jsonl.gz:1"),
    (fields(id=7), "lacks an id"),
    (supervision(text=["a"]), "id and text of a supervision must be texts"),
    (supervision(text=" "), "1 of 6 utterances have no text, the first at .*gz:2"),
    (supervision(start=9.0), "none of it in its cut"),
    (supervision(duration="1"), "times of a supervision must be numbers, not '1'"),
    (lambda cut: cut["recording"].update(transforms=[{"name": "Speed"}]), "has transforms, which"),
    (lambda cut: cut.clear(), "has the type None, not 'MonoCut'"),
]


@pytest.mark.parametrize(("edit", "complaint"), MISTAKES)
def test_mistakes_are_named(tmp_path, few, caplog, edit, complaint):
    formats.write_audio(tmp_path / "audio", few)
    cuts = [copy.deepcopy(cut(u, f"audio/{u.id}.flac", 0.0, u.seconds)) for u in few]
    edit(cuts[1])
    uri = write_cuts(tmp_path, cuts)
    where = "" if "no text" in complaint else "cuts_train.jsonl.gz:2"
    formats.assert_answered(uri, caplog, where, complaint)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "where", "complaint"),
    [
        (lambda data: data[: len(data) // 2], r"gz:\d: ", "is cut or damaged from here on"),
        (lambda data: b"<html>", "gz:1: ", "is cut or damaged from here on: Not a gzipped file"),
        (lambda data: data[:60] + b"\0" * 30 + data[90:], r"gz:\d: ", "is cut or damaged"),
        (lambda data: gzip.compress(b"{nope"), "gz:1: ", "is not JSON"),
        (lambda data: gzip.compress(b'"caf\xe9"'), "gz:1: ", "is not UTF-8 text"),
        (lambda data: gzip.compress(b""), "gz: ", "no utterance found: it is empty"),
        (
            lambda data: gzip.compress(b'{"id": "a", "sources": []}'),
            "gz:1: ",
            "is a recording: m",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, few, caplog, change, where, complaint):
    uri = packed_formats.lhotse(tmp_path, few)
    path = tmp_path / "cuts_train.jsonl.gz"
    path.write_bytes(change(path.read_bytes()))
    found = formats.answer(uri, caplog)
    assert re.search(where + ".*" + complaint, found), found
    assert "\n" not in found


def test_a_missing_file(tmp_path, caplog):
    found = formats.answer(f"lhotse:{tmp_path}/cuts.jsonl.gz", caplog)
    assert "no such file" in found
