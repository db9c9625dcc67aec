"""Reader of Common Voice."""

import numpy as np
import pytest
import soundfile

from bljust_jax.common.errors import UserError
from bljust_jax.data.sources import open_source, read_audio
from tests.helpers import formats


@pytest.fixture(scope="module")
def few():
    return formats.spoken(5)


def test_clips_are_mp3_and_named_without_suffix_in_the_first_releases(tmp_path, few):
    uri = formats.commonvoice(tmp_path, few)
    tone = 0.3 * np.sin(np.arange(16000) * 0.2)
    soundfile.write(tmp_path / "clips" / "u000.mp3", tone, 16000, format="MP3")
    formats.plant(tmp_path / "train.tsv", "u000.flac", "u000")
    first = open_source(uri)[0]
    assert (first.id, first.speaker, first.lang) == ("u000", "s0", "nl")
    assert first.line == f"{tmp_path}/train.tsv:2"
    assert len(read_audio(first)) == round(16000 * first.duration) > 15000


def test_splits_and_root(tmp_path, few):
    formats.commonvoice(tmp_path / "nl", few)
    formats.write_lines(
        tmp_path / "nl" / "other.tsv", ["path\tsentence\tclient_id", "u001.flac\ta\tx"]
    )
    assert [u.id for u in open_source("commonvoice:nl/other", str(tmp_path))] == ["u001"]
    assert len(open_source(f"commonvoice:{tmp_path}/nl/train.tsv")) == 5
    with pytest.raises(UserError, match=r"train.tsv; name DIR/SPLIT|no such folder"):
        open_source("commonvoice:de/train", str(tmp_path))
    with pytest.raises(UserError, match="outside the data root"):
        open_source("commonvoice:../train", str(tmp_path / "nl" / "clips"))
    with pytest.raises(
        UserError,
        match=r"no such file: .*trian\.tsv; .*did you mean 'train'\? "
        r"Tables there: other, train",
    ):
        open_source(f"commonvoice:{tmp_path}/nl/trian")


# (file, old text, new text or None, the place that is named, complaint)
MISTAKES = [
    ("train.tsv", "u001.flac", "u01.flac", "train.tsv:3", r"u01\.flac is missing; unpack"),
    ("train.tsv", "u001.flac", "u000.flac", "train.tsv:3", "id 'u000' was used before, at .*:2"),
    ("train.tsv", "u001.flac", "../clips/u001.flac", "train.tsv:3", "is no file name"),
    ("train.tsv", "u001.flac", "", "train.tsv:3", "'' is no file name"),
    ("train.tsv", "\tsentence\t", "\tsentense\t", "train.tsv:1", "did you mean 'sentense'"),
    ("train.tsv", "client_id\tpath", "client_id path", "train.tsv:1", "has no column 'path'"),
    (
        "train.tsv",
        "plain words",
        "plain\twords",
        "train.tsv:4",
        "has 7 fields where .* 6; a text",
    ),
    ("train.tsv", "plain words", "plain\nwords", "train.tsv:4", "has 4 fields"),
    ("train.tsv", "plain wordsab", "", "", "1 of 5 utterances have no text, the first at .*tsv:4"),
    ("train.tsv", "Wie schön", b"Wie sch\xf6n", "train.tsv:2", "is not UTF-8"),
    ("train.tsv", None, "", "train.tsv", "is empty"),
    ("clips/u001.flac", None, b"no audio", "train.tsv:3", "cannot read the header"),
    ("clips/u001.flac", None, None, "train.tsv:3", "is missing; unpack the archive again"),
]


@pytest.mark.parametrize(("file", "old", "new", "where", "complaint"), MISTAKES)
def test_mistakes_are_named(tmp_path, few, caplog, file, old, new, where, complaint):
    uri = formats.commonvoice(tmp_path, few)
    formats.plant(tmp_path / file, old, new)
    formats.assert_answered(uri, caplog, where, complaint)


def test_a_clip_that_is_a_link_out_of_the_folder(tmp_path, few, caplog):
    uri = formats.commonvoice(tmp_path / "in", few)
    (tmp_path / "in" / "clips" / "u001.flac").rename(tmp_path / "u001.flac")
    (tmp_path / "in" / "clips" / "u001.flac").symlink_to(tmp_path / "u001.flac")
    formats.assert_answered(uri, caplog, "train.tsv:3", "lies outside the data root")
