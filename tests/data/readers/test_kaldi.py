"""Reader of Kaldi's data folders."""

import os

import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.data.sources import open_source
from tests.helpers import formats


@pytest.fixture(scope="module")
def few():
    return formats.spoken(9)


def test_utterances_of_segments(tmp_path, few):
    """A segment to the end of its recording, and languages."""
    uri = formats.kaldi_segments(tmp_path, few)
    last = few[8]
    formats.plant(tmp_path / "segments", f"{last.start:g} {last.end:g}", f"{last.start:g} -1")
    formats.write_lines(tmp_path / "utt2lang", ["u000 nl"])
    found = open_source(uri)
    assert (found[0].lang, found[1].lang) == ("nl", "")
    assert found[8].offset == last.start
    assert found[8].duration == pytest.approx(last.seconds + 0.1, abs=1e-9)  # of the recording
    assert found[2].line == f"{tmp_path}/text:3"
    assert found[2].path == os.path.realpath(tmp_path / "audio" / "s2.flac")


def test_a_command_is_never_run(tmp_path, few):
    uri = formats.kaldi(tmp_path, few)
    command = f"touch {tmp_path}/run; flac -c -d -s audio/u001.flac |"
    formats.plant(tmp_path / "wav.scp", "audio/u001.flac", command)
    with pytest.raises(
        UserError,
        match=r"wav\.scp:2: is a command, which is not run: .*; write its"
        r" file alone, as audio/u001\.flac$",
    ):
        open_source(uri)
    assert not (tmp_path / "run").exists()


def test_paths_outside_need_a_root(tmp_path, few):
    uri = formats.kaldi(tmp_path / "in", few)
    (tmp_path / "in" / "audio").rename(tmp_path / "audio")
    lines = (tmp_path / "in" / "wav.scp").read_text().replace("audio/", f"{tmp_path}/audio/")
    (tmp_path / "in" / "wav.scp").write_text(lines)
    with pytest.raises(UserError, match=r"wav\.scp:1: .* outside the data root.*data\.root"):
        open_source(uri)
    assert len(open_source(uri, str(tmp_path))) == 9
    (tmp_path / "in" / "wav.scp").write_text(lines.replace(f"{tmp_path}/", ""))
    assert len(open_source("kaldi:in", str(tmp_path))) == 9


# (file, old text, new text or None, the place that is named, complaint)
MISTAKES = [
    ("wav.scp", "audio/s1.flac", "audio/s.flac", "wav.scp:2", "no such file.*did you mean 's"),
    ("wav.scp", "audio/s1.flac", "sox audio/s1.flac -t wav - |", "wav.scp:2", "is a command"),
    ("wav.scp", "audio/s1.flac", "| cat", "wav.scp:2", "is a command"),
    ("wav.scp", "audio/s1.flac", "wav.ark:17", "wav.scp:2", "is a place in an archive"),
    ("wav.scp", "s1 audio/s1.flac", "s1", "wav.scp:2", "'s1' alone; write RECORDING PATH"),
    ("wav.scp", "s1 ", "s0 ", "wav.scp:2", "'s0' is in line 1, too; remove one"),
    ("wav.scp", None, None, "", "no such file: .*wav.scp; name the folder"),
    ("wav.scp", "s1 ", "\xe9 ".encode("latin-1"), "wav.scp:2", "is not UTF-8"),
    (
        "segments",
        "u003 s3",
        "u003 s33",
        "segments:4",
        "'s33' is not in .*wav.scp, did you mean",
    ),
    ("segments", "u000 s0 0 ", "u000 s0 9 ", "segments:1", "ends at .* s, before it starts at 9"),
    ("segments", "u000 s0 0 ", "u000 s0 -1 ", "segments:1", "write two numbers of seconds"),
    ("segments", "u000 s0 0 ", "u000 s0 zero ", "segments:1", "write two numbers of seconds"),
    ("segments", "u000 s0 ", "u000 ", "segments:1", "has 3 fields; write UTTERANCE RECORDING"),
    ("segments", "u003 ", "u002 ", "segments:4", "'u002' is in line 3, too"),
    ("text", "u003 ", "u03 ", "text:4", "'u03' is not in .*segments, did you mean 'u003'"),
    ("text", "u003 ", "u002 ", "text:4", "'u002' is in line 3, too"),
    ("text", "u003 e\u0301te\u0301 d'orabc", "u003", "", "1 of 9 utterances have no text.*text:4"),
    ("utt2spk", "u003 s3\n", "", "segments:4", "'u003' is not in .*utt2spk, did you mean 'u00"),
    ("utt2spk", "u003 s3", "u003", "utt2spk:4", "'u003' alone; write UTTERANCE SPEAKER"),
    ("audio/s1.flac", None, b"RIFF", "text:2", "cannot read the header of .*s1.flac"),
]


@pytest.mark.parametrize(("file", "old", "new", "where", "complaint"), MISTAKES)
def test_mistakes_are_named(tmp_path, few, caplog, file, old, new, where, complaint):
    uri = formats.kaldi_segments(tmp_path, few)
    formats.plant(tmp_path / file, old, new)
    first, *others = formats.answer(uri, caplog).splitlines()
    assert all("s1.flac" in line for line in others)  # the others of one damaged recording
    formats.assert_line(first, where, complaint)


def test_a_segment_past_the_end_is_a_fault(tmp_path, few, caplog):
    uri = formats.kaldi_segments(tmp_path, few)
    formats.plant(tmp_path / "segments", f"{few[8].start:g} {few[8].end:g}", f"{few[8].start:g} 99")
    (fault,) = formats.answer(uri, caplog).splitlines()
    formats.assert_line(fault, "text:9", r"ends at 99 s, past the end of .*s0\.flac \(")
