"""Reader of the AMI meetings: `ami:ROOT/ihm/SPLIT`, headsets; `ami:ROOT/sdm/SPLIT`, far field.

ROOT holds the recordings as published, MEETING/audio/MEETING.Headset-0.wav and .Array1-01.wav, and
the manual annotations (release 1.6.2), words, segments and corpusResources; either may also lie in
a folder of ROOT with its published name, amicorpus or ami_public_manual_1.6.2. Splits are those of
the partition Full-corpus-ASR: train (137 meetings), dev (18), eval (16).
"""

import logging
import math
import pathlib
import re
from collections.abc import Iterable, Iterator
from xml.etree import ElementTree
from xml.parsers import expat

import soundfile

from bljust_jax.common.errors import UserError
from bljust_jax.data import containers
from bljust_jax.data.containers import SLACK, Length
from bljust_jax.data.sources import Utterance, inside, nfc, to_seconds

MICROPHONES = ("ihm", "sdm")
SPLITS = ("train", "dev", "eval")
# The split of a session, the first six characters of a meeting's name; all others train.
SESSIONS = {
    **dict.fromkeys(("ES2011", "IS1008", "TS3004"), "dev"),
    **dict.fromkeys(("IB4001", "IB4002", "IB4003", "IB4004", "IB4010", "IB4011"), "dev"),
    **dict.fromkeys(("ES2004", "IS1009", "TS3003", "EN2002"), "eval"),
}
NO_ARRAY = ("IS1003b", "IS1007d")  # published without distant microphones
_NAME = re.compile(r"((?:EN|ES|IB|IN|IS|TS)\d{4}[a-e]?)\.([A-E])\.segments\.xml")
_RANGE = re.compile(r"(?P<file>[^#]+)#id\((?P<first>[^()]+)\)(?:\.\.id\((?P<last>[^()]+)\))?")


def read(rest: str, root: str = "") -> list[Utterance]:
    """The segments of a split's meetings, by meeting, speaker and time.

    Segments are the transcribers', with their times and the words in their range. Skipped, and
    counted in a warning: segments without words (laughter, coughs, a range outside the words file),
    segments that begin after the end of the recording, and repeated ones. A segment that ends after
    the recording is cut; one in a part that a damaged recording lacks has a `fault`. text: the
    words without punctuation; spelled letters, L_C_D_, are separated. With sdm the two meetings
    without such a recording are skipped. id: MEETING-SPEAKER-MIC-BEGIN-END in milliseconds;
    speaker: the person's name in all meetings.
    Raises UserError for a missing folder, recording or annotation, XML that cannot be read, or a
    folder or recording outside a given `root`.
    """
    top, microphone, split = _locate(rest, root)
    audio = _folder(top, "amicorpus", "*/audio")
    notes = _folder(top, "ami_public_manual*", "segments")
    if not audio or not notes:
        missing = "MEETING/audio" if not audio else "words, segments and corpusResources"
        raise UserError(f"ami:{rest}: no folder {missing} in {top}; unpack the corpus there")
    for folder in (audio, notes):
        inside(folder, root, f"ami:{rest}")
    speakers = _speakers(notes / "corpusResources" / "meetings.xml")
    found, skipped = [], 0
    for segments, meeting, agent in _files(notes / "segments", split, microphone):
        name, channel = speakers.get((meeting, agent), ("", ""))
        if not name or not channel.isdigit():
            lacks = f"meetings.xml has no global_name and channel of speaker {agent} of {meeting}"
            raise UserError(f"{segments}: {lacks}; unpack the annotations again")
        recording = f"{meeting}.{'Array1-01' if microphone == 'sdm' else f'Headset-{channel}'}.wav"
        path, length = _recording(audio / meeting / "audio" / recording, segments, root)
        prefix = f"{meeting}-{agent}-{microphone}"
        kept, left = _utterances(segments, notes / "words", prefix, path, length, name)
        found += kept
        skipped += left
    if skipped:
        logging.warning(
            "ami:%s: %d segments skipped: without words, after the end, or repeated", rest, skipped
        )
    return found


def words(tokens: Iterable[str]) -> str:
    """The text of word tokens: spelled letters, L_C_D_, are separated; NFC."""
    return nfc(" ".join(" ".join(tokens).replace("_", " ").split()))


def _locate(rest: str, root: str) -> tuple[pathlib.Path, str, str]:
    """(ROOT, microphone, split)."""
    path = pathlib.Path(root, rest).absolute()
    microphone, split = path.parent.name, path.name
    if microphone not in MICROPHONES or split not in SPLITS or "/" not in rest:
        known = f"MIC is one of {', '.join(MICROPHONES)}, SPLIT one of {', '.join(SPLITS)}"
        raise UserError(f"ami:{rest}: name ROOT/MIC/SPLIT; {known}")
    return path.parents[1], microphone, split


def _files(
    folder: pathlib.Path, split: str, microphone: str
) -> Iterator[tuple[pathlib.Path, str, str]]:
    """(segments file, meeting, speaker's letter) of a split's meetings with that microphone."""
    for path in sorted(folder.iterdir()):
        named = _NAME.fullmatch(path.name)
        if named and SESSIONS.get(named[1][:6], "train") == split:
            meeting, agent = named.groups()
            if microphone == "ihm" or meeting not in NO_ARRAY:
                yield path, meeting, agent


def _folder(top: pathlib.Path, name: str, content: str) -> pathlib.Path | None:
    """ROOT or its folder `name`: the first that has `content`."""
    places = [top, *sorted(top.glob(name))]
    return next((place for place in places if any(place.glob(content))), None)


def _recording(path: pathlib.Path, segments: pathlib.Path, root: str) -> tuple[str, Length]:
    """(path, length) of the recording of a segments file."""
    if not path.is_file():
        raise UserError(f"{segments}: its recording is missing: {path}; download it")
    found = inside(path, root, str(segments))
    try:
        return found, containers.length(found)
    except soundfile.SoundFileError as error:
        raise UserError(f"{segments}: {path} is no recording: download it again") from error


def _speakers(path: pathlib.Path) -> dict[tuple[str, str], tuple[str, str]]:
    """(meeting, letter) -> the person's name and headset, "" without one."""
    return {
        (meeting.get("observation", ""), speaker.get("nxt_agent", "")): (
            speaker.get("global_name", ""),
            speaker.get("channel", ""),
        )
        for meeting in _parse(path).iter("meeting")
        for speaker in meeting.iter("speaker")
    }


def _utterances(
    segments: pathlib.Path, folder: pathlib.Path, prefix: str, path: str, length: Length, name: str
) -> tuple[list[Utterance], int]:
    """(segments of one speaker in one meeting, number of segments skipped)."""
    words_file = folder / segments.name.replace(".segments.", ".words.")
    tokens = list(_parse(words_file))
    places = {token.get("nite:id", ""): i for i, token in enumerate(tokens)}
    found: dict[str, Utterance] = {}
    rows = list(_parse(segments).iter("segment"))
    for row in rows:
        begin, end = (_seconds(row, f"transcriber_{side}", segments) for side in ("start", "end"))
        end = min(end, length.seconds)
        ranges = [_attribute(child, "href", segments) for child in row.iter("nite:child")]
        spans = [_span(href, words_file.name, places, segments) for href in ranges]
        inner = [token for span in spans for token in tokens[span]]
        text = words(t.text or "" for t in inner if t.tag == "w" and t.get("punc") != "true")
        identity = f"{prefix}-{round(1000 * begin):07d}-{round(1000 * end):07d}"
        if text and begin < end and identity not in found:
            where = f"{segments}: {row.get('nite:id', '')}"
            duration = round(end - begin, 6)
            fault = ""
            if length.problem and end > min(length.seconds, length.held) + SLACK:
                fault = f"{where}: {path} {length.problem}; download it again"
            place = path, begin, duration
            found[identity] = Utterance(identity, *place, text, "en", name, where, fault=fault)
    return sorted(found.values(), key=lambda u: u.offset), len(rows) - len(found)


def _span(href: str, name: str, places: dict[str, int], where: pathlib.Path) -> slice:
    """Tokens of `FILE#id(FIRST)..id(LAST)` or `FILE#id(ONLY)`; empty if the file lacks an end."""
    parts = _RANGE.fullmatch(href)
    if not parts or parts["file"] != name:
        raise UserError(f"{where}: {href!r} is no range of {name}; unpack the annotations again")
    first, last = (places.get(parts[end] or parts["first"]) for end in ("first", "last"))
    return slice(0) if first is None or last is None else slice(first, last + 1)


def _seconds(element: ElementTree.Element, name: str, path: pathlib.Path) -> float:
    text = _attribute(element, name, path)
    seconds = to_seconds(text)
    if not 0 <= seconds < math.inf:
        raise UserError(f"{path}: {name}={text!r} must be seconds, 0 or above")
    return seconds


def _attribute(element: ElementTree.Element, name: str, path: pathlib.Path) -> str:
    value = element.get(name)
    if value is None:
        raise UserError(f"{path}: a <{element.tag}> has no {name}; unpack the annotations again")
    return value


def _parse(path: pathlib.Path) -> ElementTree.Element:
    """The root element of an XML file; names keep their prefixes, as in nite:id.

    A document type, which may declare entities, is refused: AMI's files have none.
    """
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise UserError(f"{path}: declares a document type, which is not read; remove it")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        raise UserError(f"{path}: is not XML: {error}; unpack the annotations again") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; unpack the annotations there") from error
    return builder.close()
