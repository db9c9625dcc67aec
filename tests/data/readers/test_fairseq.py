"""Reader of fairseq's manifests."""

import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.data.sources import open_source
from tests.helpers import formats


@pytest.fixture(scope="module")
def few():
    return formats.spoken(5)


def test_labels(tmp_path, few):
    """Words before letters; none without a file of labels."""
    uri = formats.fairseq(tmp_path, few)
    formats.write_lines(tmp_path / "train.ltr", ["A B | C |"] * 5)
    assert open_source(uri)[0].text == "Wie schön"
    (tmp_path / "train.wrd").unlink()
    (first, *_) = open_source(f"{uri}.tsv")
    assert (first.text, first.line) == ("AB C", f"{tmp_path}/train.ltr:1")
    (tmp_path / "train.ltr").unlink()
    assert [u.text for u in open_source(uri)] == [None] * 5


def test_a_folder_elsewhere_needs_a_root(tmp_path, few):
    uri = formats.fairseq(tmp_path / "in", few)
    (tmp_path / "in" / "audio").rename(tmp_path / "audio")
    formats.plant(tmp_path / "in" / "train.tsv", f"{tmp_path}/in/audio", f"{tmp_path}/audio")
    with pytest.raises(UserError, match=r"train\.tsv:1: .* outside the data root"):
        open_source(uri)
    assert len(open_source("fairseq:in/train", str(tmp_path))) == 5
    formats.plant(tmp_path / "in" / "train.tsv", f"{tmp_path}/audio", "../audio")
    assert len(open_source("fairseq:in/train", str(tmp_path))) == 5


# (file, old text, new text or None, the place that is named, complaint)
MISTAKES = [
    ("train.tsv", "u001.flac", "u01.flac", "train.tsv:3", "no such file.*did you mean 'u0"),
    ("train.tsv", "u001.flac", "u000.flac", "train.tsv:3", "'u000.flac' is in .*train.tsv:2, too"),
    (
        "train.tsv",
        "u001.flac\t",
        "u001.flac ",
        "train.tsv:3",
        "has 1 fields; write PATH",
    ),
    ("train.tsv", "u001.flac\t", "u001.flac\t-", "train.tsv:3", "is no number of frames above 0"),
    ("train.tsv", "u001.flac", "../../u001.flac", "train.tsv:3", "outside the data root"),
    ("train.tsv", "u001.flac", "a.zip:12:34", "train.tsv:3", "is a place in an archive; unpack"),
    ("train.tsv", "/audio\n", "/adio\n", "train.tsv:1", "no such folder: .*; correct the folder"),
    ("train.tsv", "u001.flac", b"\xe9", "train.tsv:3", "is not UTF-8"),
    ("train.tsv", None, "", "train.tsv", "is empty; its first line names the folder"),
    ("train.tsv", None, "u000.flac\t12\n", "train.tsv:1", "must name the folder of the audio"),
    ("train.tsv", None, None, "", r"no such file: .*train\.tsv; name DIR/SPLIT"),
    ("train.wrd", "plain wordsab\n", "", "train.wrd:4", r"its last line, but .*tsv lists 5 utter"),
    ("train.wrd", "plain wordsab", "", "", "1 of 5 utterances have no text, the.*train.wrd:3"),
    ("train.wrd", "schön", b"sch\xf6n", "train.wrd:1", "is not UTF-8"),
    (
        "audio/u001.flac",
        None,
        b"no audio",
        "train.wrd:2",
        r"cannot read the header of .*u001",
    ),
]


@pytest.mark.parametrize(("file", "old", "new", "where", "complaint"), MISTAKES)
def test_mistakes_are_named(tmp_path, few, caplog, file, old, new, where, complaint):
    uri = formats.fairseq(tmp_path, few)
    formats.plant(tmp_path / file, old, new)
    formats.assert_answered(uri, caplog, where, complaint)


def test_words_where_letters_are_expected(tmp_path, few, caplog):
    uri = formats.fairseq_letters(tmp_path, few)
    formats.plant(tmp_path / "train.ltr", "p l a i n", "plain")
    complaint = "'plain' is no letter; write letters with spaces"
    formats.assert_answered(uri, caplog, "train.ltr:3", complaint)
