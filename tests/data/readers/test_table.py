"""Reader of tables."""

import os

import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.data.sources import open_source
from tests.helpers import formats


@pytest.fixture(scope="module")
def few():
    return formats.spoken(6)


def test_a_text_of_several_lines_and_the_lines_after_it(tmp_path, few):
    formats.write_audio(tmp_path, few)
    lines = 'audio,text\nu000.flac,"one\ntwo"\n\nu001.flac,"say ""yes"""\n'
    (tmp_path / "t.csv").write_text(lines)
    one, two = open_source(f"table:{tmp_path}/t.csv")
    assert (one.text, two.text) == ("one\ntwo", 'say "yes"')
    assert (one.line, two.line) == (f"{tmp_path}/t.csv:2", f"{tmp_path}/t.csv:5")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('"Hello," he said', '"Hello," he said'),
        ('"say ""yes"" now"', 'say "yes" now'),
        ('5" long', '5" long'),
        ("a, b; c", "a, b; c"),
    ],
)
def test_quotes_between_tabs(tmp_path, few, line, text):
    formats.write_audio(tmp_path, few)
    (tmp_path / "t.tsv").write_text(f"path\ttext\nu000.flac\t{line}\n")
    (u,) = open_source(f"table:{tmp_path}/t.tsv")
    assert u.text == text


def test_columns_by_number(tmp_path, few):
    formats.write_audio(tmp_path, few)
    (tmp_path / "t.csv").write_text("x,u000.flac,one,2\nx,u001.flac,two,3\n")
    found = open_source(f"table:{tmp_path}/t.csv?audio=2&text=3")
    assert [(u.id, u.text) for u in found] == [("u000", "one"), ("u001", "two")]


def test_all_fields(tmp_path, few):
    formats.write_audio(tmp_path, few)
    names = "wav_filename;offset;seconds;transcript;locale;client_id;translation"
    (tmp_path / "t.csv").write_text(f"{names}\nu000.flac;0.05;0.1;a;nl;anna;b\n")
    (u,) = open_source(f"table:{tmp_path}/t.csv")
    assert (u.offset, u.duration, u.text, u.lang) == (0.05, 0.1, "a", "nl")
    assert (u.id, u.speaker, u.translation) == ("u000@0.05", "anna", "b")


def test_a_table_of_a_root(tmp_path, few):
    formats.table_csv(tmp_path / "in", few)
    assert len(open_source("table:in/t.csv", str(tmp_path))) == 6
    plain = (tmp_path / "in" / "t.csv").read_text()
    (tmp_path / "in" / "t.csv").write_text(plain.replace("clips/", "../clips/"))
    (tmp_path / "in" / "clips").rename(tmp_path / "clips")
    with pytest.raises(UserError, match=r"t\.csv:2: .* lies outside the data root"):
        open_source(f"table:{tmp_path}/in/t.csv")
    found = open_source("table:in/t.csv", str(tmp_path))
    assert found[0].path == os.path.realpath(tmp_path / "clips" / "u000.wav")


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        (
            "?audio=pth",
            r"t\.csv:1: has no column 'pth', did you mean 'path'\? There are: id",
        ),
        ("?text=sentense", "t.csv:1: has no column 'sentense', did you mean 'Sentence'"),
        ("?adio=path", "there is no field 'adio', did you mean 'audio'"),
        ("?audio=", "names no column for 'audio'"),
        ("?audio=7", r"t\.csv:1: has no column 7; columns are 1 to 4"),
        ("?text=2", "the address names no column of audio"),
        ("x", r"no such file: .*t\.csvx; name a file"),
    ],
)
def test_mistakes_in_the_address(tmp_path, few, query, complaint):
    uri = formats.table_csv(tmp_path, few)
    with pytest.raises(UserError, match=complaint):
        open_source(f"{uri}{query}")


# (old text, new text, the place that is named, complaint)
MISTAKES = [
    ("clips/u001.wav", "clips/u01.wav", "t.csv:3", r"no such file.*did you mean 'u0.*; correct"),
    ("clips/u001.wav", "clips", "t.csv:3", "is a folder"),
    ("clips/u001.wav", "", "t.csv:3", "names no audio file: ''"),
    ("clips/u001.wav", "/etc/hostname", "t.csv:3", "outside the data root"),
    ("u001,", "u000,", "t.csv:3", "id 'u000' was used before, at .*t.csv:2"),
    (",path,", ",paht,", "t.csv:1", "no column is named as audio files are, such as 'path'"),
    (",path,", ",id,", "t.csv:1", "names the column 'id' twice"),
    ("id,path,speaker_id,Sentence\r\n", "", "t.csv:1", "an utterance where a header is expected"),
    ("id,path,", "id,pa,th,", "t.csv:1", "no column is named"),
    ('"say ""yes"", nowa"', '"say yes', "t.csv:3", "is no row: .*; close"),
    ('"say ""yes"", nowa"', '"say "yes"', "t.csv:3", "is no row: .*; close each quote"),
    ('"say ""yes"", nowa"', "say, yes, now", "t.csv:3", "has 6 fields where the first line has 4"),
    ('"say ""yes"", nowa"', "", "", "1 of 6 utterances have no text, the first at .*t.csv:3"),
    ("Wie schön", "Wie schön".encode("latin-1"), "t.csv:2", "is not UTF-8"),
    ("Sentence", "Sentence,age", "t.csv:2", "has 4 fields where the first line has 5"),
    (None, "", "t.csv", "is empty; write a header"),
    (None, "some words\n", "t.csv:1", "has neither tabs, commas"),
    (None, b"\xff\xfei\0d\0", "t.csv:1", "is not UTF-8"),
]


@pytest.mark.parametrize(("old", "new", "where", "complaint"), MISTAKES)
def test_mistakes_are_named(tmp_path, few, caplog, old, new, where, complaint):
    uri = formats.table_csv(tmp_path, few)
    formats.plant(tmp_path / "t.csv", old, new)
    formats.assert_answered(uri, caplog, where, complaint)


@pytest.mark.parametrize(
    ("times", "complaint"),
    [
        ("0.3,0.1,", "ends at 0.1 s, before it starts at 0.3 s"),
        ("0.1,0.1,", "ends at 0.1 s, before it starts"),
        ("-1,0.1,", "write two numbers"),
        ("1:20,0.1,", "write two numbers"),
        ("0,99,", "ends at 99 s, past the end of"),
        ("50,99,", "offset 50 s is past the end of .* correct"),
        ("0,0.1,2", "lasts 2 s, but from 0 to 0.1 s it is 0.1 s"),
        ("0,,0", "the duration must be above 0"),
        ("0,,nan", "the duration must be above 0"),
        ("x,,", "the start must be 0 seconds or above, not 'x'"),
    ],
)
def test_wrong_times_are_named(tmp_path, few, caplog, times, complaint):
    formats.write_audio(tmp_path, few)
    (tmp_path / "t.csv").write_text(f"audio,start,end,duration,text\nu000.flac,{times},a\n")
    formats.assert_answered(f"table:{tmp_path}/t.csv", caplog, "t.csv:2", complaint)


def test_damaged_audio_is_a_fault_with_the_row(tmp_path, few, caplog):
    uri = formats.table_csv(tmp_path, few)
    formats.plant(tmp_path / "clips" / "u001.wav", None, b"not audio")
    formats.assert_answered(uri, caplog, "t.csv:3", r"cannot read the header of .*u001\.wav")
