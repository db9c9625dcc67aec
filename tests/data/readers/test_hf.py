"""Reader of Hugging Face data sets on disk."""

import builtins
import re

import pyarrow
import pyarrow.parquet
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.data import columnar
from bljust_jax.data.byte_ranges import ByteRange
from bljust_jax.data.sources import open_source, read_audio
from tests.helpers import formats, packed_formats
from tests.helpers.packed_formats import encoded, table


@pytest.fixture(scope="module")
def few():
    return formats.spoken(6)


def write(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(columns, path)
    return f"hf:{path.parent}"


def test_audio_of_arrow_files_stays_there(tmp_path, few):
    """Its place is known, also in a slice of a batch and after a row without audio."""
    audio = [{"bytes": encoded(u), "path": None} for u in few]
    audio[1] = None
    columns = table(few, audio).slice(1)
    with pyarrow.ipc.new_stream(str(tmp_path / "a.arrow"), columns.schema) as stream:
        stream.write_table(columns)
    found = open_source(f"hf:{tmp_path}/a.arrow")
    assert (
        found[0].fault
        == f"{tmp_path}/a.arrow:1: has no audio; remove the row, or fetch the file again"
    )
    for u, one in zip(found[1:], few[2:], strict=True):
        assert isinstance(u.fetch, ByteRange)
        assert read_audio(u, formats.RATE).tolist() == one.samples.tolist()
    assert [u.id for u in found] == [f"a-{n}" for n in range(5)]


def test_row_groups_in_memory_are_limited(tmp_path, few, monkeypatch):
    uri = packed_formats.hf_parquet(tmp_path, few)
    kept = columnar._Groups(1)
    monkeypatch.setattr(columnar, "_groups", kept)
    found = open_source(uri)
    for u, one in zip(found, few, strict=True):
        assert u.fetch() == encoded(one)
        assert len(kept._kept) == 1


def test_splits_by_folder_and_by_name(tmp_path, few):
    write(tmp_path / "nl" / "train" / "0000.parquet", table(few[:2]))
    write(tmp_path / "nl" / "train" / "0001.parquet", table(few[2:]))
    write(tmp_path / "nl" / "test" / "0000.parquet", table(few[:1]))
    assert [u.id for u in open_source(f"hf:{tmp_path}/nl/train")] == [u.id for u in few]
    assert len(open_source("hf:nl/test", str(tmp_path))) == 1
    with pytest.raises(
        UserError, match="holds several splits; name one as hf:DIR/SPLIT: test, tra"
    ):
        open_source(f"hf:{tmp_path}/nl")


@pytest.mark.parametrize("kind", [pyarrow.large_binary(), pyarrow.binary()])
def test_a_column_of_bytes(tmp_path, few, kind):
    audio = pyarrow.array([encoded(u) for u in few], kind)
    ids = pyarrow.array([int(u.id[1:]) for u in few])
    columns = pyarrow.table({"wav": audio, "ID": ids, "duration": [0.1] * 6})
    found = open_source(write(tmp_path / "a.parquet", columns))
    assert [(u.id, u.duration, u.text) for u in found] == [(str(n), 0.1, None) for n in range(6)]
    assert found[2].fetch() == encoded(few[2])


def without_pyarrow(monkeypatch):
    original = builtins.__import__

    def without(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)


def test_without_pyarrow(tmp_path, few, monkeypatch):
    uri = packed_formats.hf_parquet(tmp_path, few)
    without_pyarrow(monkeypatch)
    with pytest.raises(UserError, match="need pyarrow: pip install pyarrow"):
        open_source(uri)


def audio(n, **changes):
    """The column of audio, changed in row n."""

    def edit(columns, few):
        rows = columns["audio"].to_pylist()
        rows[n] |= changes
        return columns.set_column(0, "audio", pyarrow.array(rows, packed_formats.AUDIO))

    return edit


def column(name, values, at=1):
    def edit(columns, few):
        return columns.set_column(at, name, pyarrow.array(values))

    return edit


# (edit of the table, row that is named, complaint)
MISTAKES = [
    (audio(1, bytes=None, path=None), 2, "has no audio; remove the row"),
    (audio(1, bytes=None), 2, "no such file: .*u001.flac"),
    (audio(1, bytes=None, path="../u001.flac"), 2, "outside the data root"),
    (audio(1, bytes=b"no audio"), 2, r"cannot read the header of .*train\.parquet#1: Format"),
    (audio(1, bytes=b""), 2, "cannot read the header of"),
    (column("id", ["a", "a", "c", "d", "e", "f"]), 2, "id 'a' was used before, at .*parquet:1"),
    (column("text", ["a", " ", "c", "d", "e", "f"]), None, "1 of 6 utterances have no text.*:2"),
    (column("text", [["a"]] * 6), 1, "text must be a text or a number, not list"),
    (column("duration", [1.0, -1.0, 1, 1, 1, 1]), 2, "the duration must be above 0 seconds"),
    (column("audoi", ["a"] * 6, 0), 0, "no column is named as audio files are, such as 'audio'"),
    (column("audio", [[0.1, 0.2]] * 6, 0), 0, "its column 'audio' is list<.*>, no encoded audio"),
    (column("audio", [{"array": [0.1]}] * 6, 0), 0, "its column 'audio' is struct<.*no encoded"),
    (column("Speaker_ID", ["a"] * 6), 0, "names the column 'speaker_id' twice"),
    (lambda columns, few: columns.slice(0, 0), None, "no utterance found: it is empty"),
]


@pytest.mark.parametrize(("edit", "row", "complaint"), MISTAKES)
def test_mistakes_are_named(tmp_path, few, caplog, edit, row, complaint):
    uri = write(tmp_path / "train.parquet", edit(table(few), few))
    where = "" if row is None else f"train.parquet:{row}" if row else "train.parquet"
    formats.assert_answered(uri, caplog, where, complaint)


@pytest.mark.parametrize("size", [0, 3, 100, -30])
def test_truncated_files_are_named(tmp_path, few, caplog, size):
    for write_set, name in (
        (packed_formats.hf_parquet, "data/train-00001-of-00002.parquet"),
        (packed_formats.hf_saved, "train/data-00001-of-00002.arrow"),
    ):
        uri = write_set(tmp_path / write_set.__name__, few)
        path = tmp_path / write_set.__name__ / name
        path.write_bytes(path.read_bytes()[:size])
        found = formats.answer(uri, caplog)
        assert re.search(rf"^{path}: cannot be read as \w+: .*; fetch it again$", found), found


def test_damage_within_a_row_group_is_a_fault(tmp_path, few, caplog):
    """Its footer is whole, so that it is noticed when the audio is read."""
    uri = write(tmp_path / "train.parquet", table(few))
    path = tmp_path / "train.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + bytes(2000) + whole[2004:])
    lines = formats.answer(uri, caplog).splitlines()
    assert len(lines) == 6
    for n, line in enumerate(lines, start=1):
        formats.assert_line(line, f"train.parquet:{n}", "cannot read the header of .*row group 0")


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        ("{", "is no state of save_to_disk"),
        ("{}", "is no state of save_to_disk: '_data_files'; save it again"),
        ('{"_data_files": [{"filename": "../a.arrow"}]}', "names '../a.arrow', no file of its"),
        ('{"_data_files": [{"filename": "b.arrow"}]}', "no such file: .*b.arrow; fetch it again"),
        ('{"_data_files": [], "_indices_data_files": [1]}', "selects rows; save it again after"),
    ],
)
def test_mistakes_of_saved_folders(tmp_path, few, caplog, state, complaint):
    uri = packed_formats.hf_saved(tmp_path, few)
    (tmp_path / "train" / "state.json").write_text(state)
    formats.assert_answered(uri, caplog, "train/state.json", complaint)


def test_missing_shards_and_splits(tmp_path, few, caplog):
    uri = packed_formats.hf_parquet(tmp_path, few)
    for wrong, complaint in (
        ("trian", "there is no split 'trian', did you mean 'train'"),
        ("x/train", "no such folder: .*/x; name the folder of the data set"),
    ):
        assert re.search(complaint, formats.answer(f"hf:{tmp_path}/{wrong}", caplog))
    (tmp_path / "data" / "train-00000-of-00002.parquet").unlink()
    complaint = "1 of the 2 files of split 'train' are there; download the others"
    assert complaint in formats.answer(uri, caplog)
    (tmp_path / "data" / "train-00001-of-00002.parquet").unlink()
    assert "no *.parquet and no state.json" in formats.answer(f"hf:{tmp_path}", caplog)


def test_compressed_arrow_is_refused(tmp_path, few, caplog):
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    columns = table(few)
    path = tmp_path / "a.arrow"
    with pyarrow.ipc.new_stream(str(path), columns.schema, options=options) as stream:
        stream.write_table(columns)
    formats.assert_answered(f"hf:{path}", caplog, "a.arrow", "its buffers are compressed; write it")
