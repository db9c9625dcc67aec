"""Reader of TED-LIUM: ROOT/train|dev|test with sph/TALK.sph and stm/TALK.stm.

An .stm file (NIST's segment time marks) holds one segment per line, times in seconds; a line that
starts with `;;` is a comment:

    TALK CHANNEL SPEAKER BEGIN END <LABEL> TEXT
"""

import logging
import math
import pathlib
import re
from typing import NamedTuple

from bljust_jax.common.durations import in_hours
from bljust_jax.common.errors import UserError
from bljust_jax.common.files import visible
from bljust_jax.data.sources import Utterance, inside, nfc, read_lines, require, to_seconds

IGNORED = "ignore_time_segment_in_scoring"
UNKNOWN = "<unk>"  # a word outside the aligner's vocabulary
# Marks that are no words: <sil>, {NOISE}, [BREATH], the pronunciation in A(2), a segment's (id).
_MARK = re.compile(r"<[^<>\s]*>|\{[^{}\s]*\}|\[[^\[\]\s]*\]|\([^()\s]*\)")
# The release separates "it 's", "don 't", "parents '"; other words with ', as 'em, stand alone.
_CLITIC = re.compile(r"(?<=\w) (?='(?:s|t|m|d|re|ve|ll)?(?: |$))", re.IGNORECASE)
_SUFFIXES = (".flac", ".wav", ".sph")  # a converted recording is preferred to its original


class _Segment(NamedTuple):
    talk: str
    speaker: str
    begin: float
    end: float
    text: str
    where: str


def read(rest: str, root: str = "") -> list[Utterance]:
    """The segments of a split folder (`rest`, relative to a given `root`), by talk, then line.

    `rest` is ROOT/SPLIT, or ROOT/legacy/SPLIT if that is missing (release 3). The audio of TALK is
    TALK.flac, TALK.wav or TALK.sph in the split's sph folder. id: TALK-BEGIN-END in milliseconds.
    Segments marked ignore_time_segment_in_scoring are skipped, and their number is logged. text:
    lower case as in the release, marks removed, clitics joined to their word ("it 's" gives
    "it's"). A segment of the split `train` with <unk> has no text, as its label would lack a word;
    in other splits <unk> is removed, as scoring tools do. Raises UserError for a missing folder, a
    malformed line, a missing or shorten-compressed recording, or a split or recording outside a
    given `root`.
    """
    split = _folder(rest, root)
    audio = {}
    for suffix in reversed(_SUFFIXES):
        audio |= {path.stem: path for path in visible((split / "sph").glob(f"*{suffix}"))}
    utterances, ignored = [], []
    known: dict[str, str] = {}
    for stm in visible((split / "stm").glob("*.stm")):
        lines = ((line.strip(), where) for where, line in read_lines(stm))
        for segment in (_segment(*line) for line in lines if not line[0].startswith(";;")):
            if segment.text == IGNORED:
                ignored.append(segment)
                continue
            if segment.talk not in known:
                known[segment.talk] = _recording(segment, audio, root)
            utterances.append(_utterance(segment, known[segment.talk], split.name == "train"))
    if ignored:
        length = in_hours(sum(s.end - s.begin for s in ignored))
        logging.warning(
            "tedlium:%s: %d segments (%s) skipped: %s", rest, len(ignored), length, IGNORED
        )
    return utterances


def _folder(rest: str, root: str) -> pathlib.Path:
    split = pathlib.Path(root, rest).absolute()
    if not split.is_dir():
        legacy = split.parent / "legacy" / split.name
        split = legacy if legacy.is_dir() else split
    inside(split, root, f"tedlium:{rest}")
    for folder in (split, split / "stm", split / "sph"):
        cure = (
            "name ROOT/train, ROOT/dev or ROOT/test of an unpacked release, each with sph and stm"
        )
        require(folder, f"tedlium:{rest}", cure)
    return split


def _segment(line: str, where: str) -> _Segment:
    fields = line.split(maxsplit=5)
    if len(fields) < 5:
        raise UserError(
            f"{where}: has {len(fields)} fields; write TALK CHANNEL SPEAKER BEGIN END <LABEL> TEXT"
        )
    talk, channel, speaker, *times = fields[:5]
    if channel not in ("1", "A", "a"):
        raise UserError(f"{where}: is of channel {channel}; only mono recordings, 1 or A, are read")
    if talk != pathlib.PurePath(talk).name:
        raise UserError(f"{where}: {talk!r} is no file name; write the talk's name without a path")
    begin, end = map(to_seconds, times)
    if not 0 <= begin < end < math.inf:
        given = f"a segment from {times[0]} to {times[1]}"
        raise UserError(f"{where}: {given}; write seconds, 0 <= BEGIN < END")
    label, _, text = fields[5].partition(" ") if len(fields) > 5 else ("", "", "")
    if not (label.startswith("<") and label.endswith(">") and label != UNKNOWN):
        text = f"{label} {text}"  # the label is optional in the format
    text = " ".join(text.split())
    return _Segment(talk.removesuffix(".sph"), speaker, begin, end, text, where)


def _recording(segment: _Segment, audio: dict[str, pathlib.Path], root: str) -> str:
    if segment.talk not in audio:
        problem = f"its recording {segment.talk}.sph is missing from the split's folder sph"
        raise UserError(f"{segment.where}: {problem}; unpack the release again")
    found = str(audio[segment.talk])
    path = inside(found, root, segment.where)
    with open(path, "rb") as file:
        header = file.read(1024)
    if header.startswith(b"NIST_1A") and b"shorten" in header:
        wav = pathlib.Path(found).with_suffix(".wav")
        raise UserError(
            f"{segment.where}: {found} is compressed by shorten, which libsndfile does not read;"
            f" convert it: sph2pipe -p -f wav {found} {wav}"
        )
    return path


def _utterance(segment: _Segment, path: str, training: bool) -> Utterance:
    begin, end = (round(1000 * seconds) for seconds in (segment.begin, segment.end))
    return Utterance(
        id=f"{segment.talk}-{begin:07d}-{end:07d}",
        path=path,
        offset=segment.begin,
        duration=round(segment.end - segment.begin, 6),
        text=None if training and UNKNOWN in segment.text.lower() else words(segment.text),
        lang="en",
        speaker=segment.speaker,
        line=segment.where,
    )


def words(text: str) -> str:
    """The words of a segment's text: marks removed, also within a word as in `the(2)`, clitics
    joined, NFC."""
    bare = " ".join(_MARK.sub(" ", text).split())
    return nfc(_CLITIC.sub("", bare))
