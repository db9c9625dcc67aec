"""Reader of a folder of recordings."""

import pytest

from bljust_jax.data.sources import open_source, read_audio
from tests.helpers import formats


@pytest.fixture(scope="module")
def few():
    return formats.spoken(5)


def test_folders_within(tmp_path, few):
    """Ids are the paths without suffix; hidden files and folders are not read."""
    formats.folder_of_pairs(tmp_path / "anna" / "a.b", few[:2])
    formats.folder_of_pairs(tmp_path / "bert", few[:1])
    formats.write_audio(tmp_path / ".trash", few[:1])
    (tmp_path / "bert" / "._u000.wav").write_bytes(b"of macOS")
    found = open_source(f"folder:{tmp_path}")
    assert [u.id for u in found] == ["anna/a.b/u000", "anna/a.b/u001", "bert/u000"]
    assert [u.text for u in found] == ["Wie schön", 'say "yes", nowa', "Wie schön"]
    assert found[1].line == f"{tmp_path}/anna/a.b/u001.txt:1"
    assert open_source("folder:bert", str(tmp_path))[0].id == "u000"


def test_ljspeech(tmp_path, few):
    """The published layout, with the text as it is read out last."""
    formats.write_audio(tmp_path / "wavs", few, ".wav")
    rows = [f"{u.id}|Dr. {u.text} 3|{u.text}" for u in few]
    formats.write_lines(tmp_path / "metadata.csv", rows)
    found = open_source(f"folder:{tmp_path}")
    assert [u.id for u in found] == [f"wavs/{u.id}" for u in few]
    assert [u.text for u in found[:2]] == ["Wie schön", 'say "yes", nowa']


@pytest.mark.parametrize("line", ["{}.wav|text", "{} text", "a/{}\ttext", "a/{}.wav text"])
def test_names_in_a_list(tmp_path, few, line):
    """With or without folder and suffix."""
    formats.write_audio(tmp_path / "a", few[:2], ".wav")
    lines = [line.format(u.id) for u in few[:2]]
    formats.write_lines(tmp_path / "transcripts.txt", lines)
    assert [u.text for u in open_source(f"folder:{tmp_path}")] == ["text"] * 2


def test_several_lines_of_a_text_and_none(tmp_path, few):
    formats.folder_of_pairs(tmp_path, few[:2])
    (tmp_path / "u000.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\n two \r\n")
    (tmp_path / "u001.txt").write_bytes(b"")
    assert [u.text for u in open_source(f"folder:{tmp_path}")] == ["one two", None]


def test_a_link_leaves_the_folder(tmp_path, few, caplog):
    uri = formats.folder_of_pairs(tmp_path / "in", few)
    (tmp_path / "in" / "u000.wav").rename(tmp_path / "out.wav")
    (tmp_path / "in" / "u000.wav").symlink_to(tmp_path / "out.wav")
    formats.assert_answered(uri, caplog, "", r"folder:.*u000\.wav' lies outside the data root")
    assert len(open_source(uri, str(tmp_path))) == 5


def pairs(top, found):
    return formats.folder_of_pairs(top, found)


def listed(top, found):
    return formats.folder_with_list(top, found)


def labels(top, found):
    return formats.folder_of_labels(top, found)


# (layout, file, old text, new text or None, the place that is named, complaint)
MISTAKES = [
    (pairs, "u001.wav", None, None, "", r"1 texts have no recording of their name, the.*u001\.txt"),
    (pairs, "u001.wav", None, b"no audio", "u001.txt:1", r"cannot read the header of .*u001\.wav"),
    (pairs, "u001.flac", None, b"fLaC", "u001.wav", "u001.flac has the same name; remove one"),
    (pairs, "u001.lab", None, "text", "u001.txt", r"u001\.lab is the text of that recording, too"),
    (pairs, "u001.txt", None, "", "", "1 of 5 utterances have no text, the first at .*u001.txt:1"),
    (pairs, "u001.txt", None, b"caf\xe9", "u001.txt:1", "is not UTF-8 text"),
    (pairs, "u001.txt", None, b"\xff\xfea\0", "u001.txt:1", "is not UTF-8 text"),
    (pairs, "u009.m4a", None, b"", "", r"u009\.m4a and others of its kind are not read: convert"),
    (labels, "u001.lab", None, "0 5000000 sil\n5000000 9000000 a\n", "u001.lab:1", "with times"),
    (listed, "transcripts.txt", "u001.flac\t", "u01.flac\t", "transcripts.txt:2", "no recording is"
     " named 'u01.flac', did you mean 'u0"),
    (listed, "transcripts.txt", "u001.flac\t", "u000.flac\t", "transcripts.txt:2", "has a text"
     " before, at .*transcripts.txt:1; remove one"),
    (listed, "transcripts.txt", "u001.flac\tsay", "u001.flac\ta\tb", "transcripts.txt:2",
     "has 3 fields; write NAME and TEXT"),
    (listed, "transcripts.txt", None, "u000\n", "transcripts.txt:1", "expected a recording's name"),
    (listed, "transcripts.txt", "schön", b"sch\xf6n", "transcripts.txt:1", "is not UTF-8"),
    (listed, "metadata.csv", None, "a|b\n", "", "several lists of texts: .* and .*; keep"),
    (listed, "x/u001.flac", None, b"fLaC", "x/u001.flac", "cannot read the header"),
]  # fmt: skip


@pytest.mark.parametrize(("write", "file", "old", "new", "where", "complaint"), MISTAKES)
def test_mistakes_are_named(tmp_path, few, caplog, write, file, old, new, where, complaint):
    uri = write(tmp_path, few)
    formats.plant(tmp_path / file, old, new)
    answers = formats.answer(uri, caplog).splitlines()
    formats.assert_line(answers[0], where, complaint)
    assert all("have no text" in line for line in answers[1:])


def test_an_ambiguous_name(tmp_path, few, caplog):
    formats.write_audio(tmp_path / "a", few[:1])
    formats.write_audio(tmp_path / "b", few[:1])
    formats.write_lines(tmp_path / "transcripts.txt", ["u000 text"])
    complaint = r"'u000' may be a/u000\.flac or b/u000\.flac; write the path"
    formats.assert_answered(f"folder:{tmp_path}", caplog, "transcripts.txt:1", complaint)


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ([], "no audio in .*; its names end with .aif"),
        (["a.m4a"], r"a\.m4a is in a format that is not read; .*ffmpeg -i a\.m4a a\.flac"),
        (None, "no such folder: .*; name a folder"),
    ],
)
def test_folders_without_audio(tmp_path, caplog, files, complaint):
    top = tmp_path / "top"
    if files is not None:
        top.mkdir()
        for name in files:
            (top / name).write_bytes(b"")
    formats.assert_answered(f"folder:{top}", caplog, f"folder:{top}", complaint)


def test_original_chapters_of_librispeech(speech):
    """The same texts and audio as by LibriSpeech's own reader."""
    split = speech / "layouts" / "LibriSpeech" / "dev-clean"
    own = {u.id: u for u in open_source(f"librispeech:{split}")}
    found = open_source(f"folder:{split}")
    assert len(found) == len(own) > 2
    for u in found:
        other = own[u.id.rpartition("/")[2]]
        assert (u.text, u.duration, u.line) == (other.text, other.duration, other.line)
        assert read_audio(u).tolist() == read_audio(other).tolist()
