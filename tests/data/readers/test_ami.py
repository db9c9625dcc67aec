"""Reader of AMI."""

import re

import numpy as np
import pytest
import soundfile

from bljust_jax.common.errors import UserError
from bljust_jax.data.readers import ami
from bljust_jax.data.sources import open_source, read_audio

RATE = 16000
SAMPLES = np.random.default_rng(0).integers(-9999, 9999, 3 * RATE).astype(np.int16)
XML = (
    '<?xml version="1.0" encoding="ISO-8859-1"?>\n<nite:root xmlns:nite="http://x/">{}</nite:root>'
)
WORDS = """
<w nite:id="{m}.{a}.words0" starttime="0.1" endtime="0.3">It&#39;s</w>
<vocalsound nite:id="{m}.{a}.words1" type="laugh"/>
<w nite:id="{m}.{a}.words2" starttime="0.4" endtime="0.6">a</w>
<w nite:id="{m}.{a}.words3" starttime="0.6" endtime="0.8">T_V_ caf\xe9</w>
<w nite:id="{m}.{a}.words4" starttime="0.8" endtime="0.8" punc="true">.</w>
<gap nite:id="{m}.{a}.gap5"/>
<w nite:id="{m}.{a}.words6" starttime="1.5" endtime="1.8" trunc="true">re</w>
"""
# begin, end, first and last token
SEGMENTS = [(0.0, 0.9, 0, 4), (1.0, 1.2, 1, None), (1.25, 2.0, 6, None), (2.5, 3.5, 2, 3)]


def segment(m, a, number, begin, end, first, last):
    span = f"{m}.{a}.words.xml#id({m}.{a}.words{first})"
    span += f"..id({m}.{a}.words{last})" if last is not None else ""
    times = f'transcriber_start="{begin}" transcriber_end="{end}"'
    child = f'<nite:child href="{span}"/>'
    return f'<segment nite:id="{m}.sync.{number}" channel="0" {times}>{child}</segment>'


def write(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(XML.format(body), encoding="iso-8859-1")


def meeting(top, name="ES2002a", segments=SEGMENTS, notes="", audio=""):
    """A meeting of two people; the second, on headset 3, has the same words later."""
    speakers = ""
    for agent, channel in (("A", 0), ("B", 3)):
        rows = [segment(name, agent, i, *row) for i, row in enumerate(segments)]
        write(top / notes / "segments" / f"{name}.{agent}.segments.xml", "".join(rows))
        words = WORDS.format(m=name, a=agent)
        write(top / notes / "words" / f"{name}.{agent}.words.xml", words)
        speakers += f'<speaker nxt_agent="{agent}" global_name="F{agent}1" channel="{channel}"/>'
        path = top / audio / name / "audio" / f"{name}.Headset-{channel}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, SAMPLES + channel, RATE)
    soundfile.write(path.parent / f"{name}.Array1-01.wav", SAMPLES // 2, RATE)
    people = top / notes / "corpusResources" / "meetings.xml"
    known = people.read_text().partition("<meeting ")[2] if people.is_file() else ""
    known = f"<meeting {known.removesuffix('</nite:root>')}" if known else ""
    write(people, f'{known}<meeting observation="{name}">{speakers}</meeting>')
    return top


def test_segments_of_a_meeting(tmp_path, caplog):
    meeting(tmp_path)
    found = open_source(f"ami:{tmp_path}/ihm/train")
    first, second, third = found[:3]
    assert first.id == "ES2002a-A-ihm-0000000-0000900"
    assert [u.text for u in found[:3]] == ["It's a T V café", "re", "a T V café"]
    assert (first.speaker, found[3].speaker, first.lang) == ("FA1", "FB1", "en")
    assert first.path == str(tmp_path / "ES2002a/audio/ES2002a.Headset-0.wav")
    assert found[3].path.endswith("Headset-3.wav")
    assert first.line.endswith("ES2002a.A.segments.xml: ES2002a.sync.0")
    assert (second.offset, second.duration) == (1.25, 0.75)
    assert (third.offset, third.duration) == (2.5, 0.5)  # cut at the recording's end
    assert np.array_equal(read_audio(second), SAMPLES[20000:32000])
    assert np.array_equal(read_audio(found[5]), SAMPLES[40000:] + 3)
    assert len(found) == 6
    assert "2 segments skipped" in caplog.text  # one laugh per speaker


def test_the_distant_microphone_has_all_speakers(tmp_path):
    meeting(tmp_path)
    found = open_source(f"ami:{tmp_path}/sdm/train")
    assert [u.id for u in found[::3]] == [
        "ES2002a-A-sdm-0000000-0000900",
        "ES2002a-B-sdm-0000000-0000900",
    ]
    assert {u.path for u in found} == {str(tmp_path / "ES2002a/audio/ES2002a.Array1-01.wav")}
    both = open_source(f"ami:{tmp_path}/ihm/train+ami:{tmp_path}/sdm/train")
    assert len({u.id for u in both}) == 12
    assert {(u.part, u.id.split("-")[2]) for u in both} == {("train", "ihm"), ("train-2", "sdm")}


def test_splits_are_the_official_sessions(tmp_path):
    for name in ("EN2001a", "IB4005", "ES2011c", "IB4010", "EN2002d", "TS3003a", "IS1003b"):
        meeting(tmp_path, name, SEGMENTS[:1])

    def meetings(uri):
        return {u.id[:7].rstrip("-") for u in open_source(f"ami:{tmp_path}/{uri}")}

    assert meetings("ihm/train") == {"EN2001a", "IB4005", "IS1003b"}
    assert meetings("ihm/dev") == {"ES2011c", "IB4010"}
    assert meetings("ihm/eval") == {"EN2002d", "TS3003a"}
    assert meetings("sdm/train") == {"EN2001a", "IB4005"}  # IS1003b has no array
    assert len(ami.SESSIONS) == 13


def test_the_published_folders_are_found(tmp_path):
    meeting(tmp_path, notes="ami_public_manual_1.6.2", audio="amicorpus")
    assert len(open_source("ami:ihm/train", str(tmp_path))) == 6


def test_repeated_late_and_unknown_segments_are_skipped(tmp_path, caplog):
    rows = [SEGMENTS[0], SEGMENTS[0], (3.0, 3.5, 0, 4), (1.0, 1.0, 0, 4), (1.0, 1.5, 0, 99)]
    meeting(tmp_path, segments=rows)
    assert len(open_source(f"ami:{tmp_path}/ihm/train")) == 2
    assert "8 segments skipped" in caplog.text


def test_segments_beyond_the_end_of_a_truncated_recording_are_faults(tmp_path):
    path = meeting(tmp_path) / "ES2002a/audio/ES2002a.Headset-0.wav"
    whole = {u.id: u for u in open_source(f"ami:{tmp_path}/ihm/train")}
    path.write_bytes(path.read_bytes()[: 44 + 2 * round(1.3 * RATE)])
    found = open_source(f"ami:{tmp_path}/ihm/train")
    assert [(u.id, u.duration) for u in found] == [(u.id, u.duration) for u in whole.values()]
    for u in found:
        beyond = u.path == str(path) and u.offset + u.duration > 1.4
        assert bool(u.fault) == beyond
        if beyond:
            assert re.search(r"segments\.xml.*Headset-0\.wav ends early: 1\.30 of 3\.00 s", u.fault)
    assert sum(bool(u.fault) for u in found) == 2


@pytest.mark.parametrize("uri", ["ihm", "mdm/train", "ihm/test", "train"])
def test_a_wrong_name_lists_the_right_ones(tmp_path, uri):
    with pytest.raises(UserError, match=r"MIC is one of ihm, sdm, SPLIT one of train, dev, eval"):
        open_source(f"ami:{tmp_path}/{uri}")


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("words/ES2002a.A.words.xml", "</w>", "", "is not XML: mismatched tag"),
        ("words/ES2002a.A.words.xml", "<nite:root", "<!DOCTYPE a><nite:root", "a document type"),
        ("segments/ES2002a.A.segments.xml", "A.words.xml#", "B.words.xml#", "is no range of"),
        ("segments/ES2002a.A.segments.xml", "A.words.xml#", "../A.xml#", "is no range of"),
        ("segments/ES2002a.A.segments.xml", "href=", "ref=", "<nite:child> has no href"),
        ("segments/ES2002a.A.segments.xml", '"0.9"', '"soon"', "transcriber_end='soon' must be"),
        ("segments/ES2002a.A.segments.xml", '"0.0"', '"-1"', "transcriber_start='-1' must be"),
        ("corpusResources/meetings.xml", 'channel="0"', "", "channel of speaker A of ES2002a"),
        ("corpusResources/meetings.xml", 'channel="0"', 'channel="../0"', "channel of speaker A"),
    ],
)
def test_bad_annotations_are_named(tmp_path, file, old, new, complaint):
    path = meeting(tmp_path) / file
    text = path.read_text(encoding="iso-8859-1")
    path.write_text(text.replace(old, new), encoding="iso-8859-1")
    with pytest.raises(UserError, match=complaint) as caught:
        open_source(f"ami:{tmp_path}/ihm/train")
    assert "\n" not in str(caught.value)
    assert ".xml" in str(caught.value)


def test_entities_are_never_expanded(tmp_path):
    """A file of a few hundred bytes that would expand to gigabytes."""
    bomb = '<!DOCTYPE r [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><r><w>&b;</w></r>'
    meeting(tmp_path)
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "words" / "ES2002a.A.words.xml").write_bytes(bomb.encode(encoding))
        with pytest.raises(UserError, match="declares a document type"):
            open_source(f"ami:{tmp_path}/ihm/train")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no folder MEETING/audio in"):
        open_source(f"ami:{tmp_path}/ihm/train")
    top = meeting(tmp_path / "a")
    (top / "words/ES2002a.B.words.xml").unlink()
    with pytest.raises(UserError, match=r"B\.words\.xml: No such file"):
        open_source(f"ami:{top}/ihm/train")
    (top / "ES2002a/audio/ES2002a.Headset-0.wav").write_text("not audio")
    with pytest.raises(UserError, match=r"Headset-0\.wav is no recording"):
        open_source(f"ami:{top}/ihm/train")
    (top / "ES2002a/audio/ES2002a.Headset-0.wav").unlink()
    with pytest.raises(UserError, match=r"its recording is missing: .*Headset-0\.wav"):
        open_source(f"ami:{top}/ihm/train")
    with pytest.raises(UserError, match="no utterance found"):
        open_source(f"ami:{top}/ihm/dev")


def test_nothing_outside_the_root_is_read(tmp_path):
    meeting(tmp_path / "in")
    meeting(tmp_path / "out")
    root = str(tmp_path / "in")
    assert len(open_source("ami:sdm/train", root)) == 6
    with pytest.raises(UserError, match="outside the data root"):
        open_source("ami:../out/ihm/train", root)
    path = tmp_path / "in/ES2002a/audio/ES2002a.Array1-01.wav"
    path.unlink()
    path.symlink_to(tmp_path / "out/ES2002a/audio/ES2002a.Array1-01.wav")
    with pytest.raises(UserError, match=r"segments\.xml: .* outside the data root"):
        open_source("ami:sdm/train", root)
