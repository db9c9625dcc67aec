"""Reader of Lhotse's cuts: `lhotse:CUTS.jsonl.gz`, or uncompressed.

One MonoCut per line: `start` and `duration` in a `recording`, whose `sources` name a file, with
`supervisions` that hold the texts. Commands and addresses in sources are refused, never run.
(lhotse.readthedocs.io/en/latest/cuts.html)
"""

import gzip
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from bljust_jax.common.errors import UserError
from bljust_jax.data.listings import LONGEST, Finder, report_unlabelled, text_of
from bljust_jax.data.sources import Utterance, require, with_durations

TOLERANCE = 1e-3  # seconds by which a supervision may differ from its cut


def read(rest: str, root: str = "") -> list[Utterance]:
    """The utterances of a file of cuts (`rest`, relative to a given `root`), in its order.

    A cut with one supervision, or none, is an utterance with the cut's id; of several, each is one
    with its own id and times. Paths are relative to the file or to the `root`; audio must lie in
    `root`, by default in the file's folder. Raises UserError with file:line for other kinds of
    cuts, sources that are no files, changed recordings (`transforms`), one channel of several, and
    a damaged file.
    """
    path = pathlib.Path(root, rest).absolute()
    require(path, f"lhotse:{rest}", "name a file of cuts, *.jsonl.gz or *.jsonl", "file")
    parent = str(path.parent)
    audio = Finder((parent, root or parent), root or parent)
    found: list[Utterance] = []
    for where, line in _lines(path):
        cut = _cut(line, where)
        found += _utterances(cut, audio.find(_file(cut, where), where), where)
    return report_unlabelled(with_durations(found, bounded=True), f"lhotse:{rest}")


def listing(rest: str, root: str = "") -> list[pathlib.Path]:
    """The file that declares the utterances."""
    return [pathlib.Path(root, rest).absolute()]


def _lines(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """("path:number", line) of each non-blank line of a text file that may be compressed."""
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    problem = f"is not UTF-8 text: {error.reason}"
                    raise UserError(f"{path}:{number}: {problem}; write the cuts again") from error
                if text.strip():
                    yield f"{path}:{number}", text
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        problem = f"is cut or damaged from here on: {error}"
        raise UserError(f"{path}:{number + 1}: {problem}; fetch it again") from error


def _cut(line: str, where: str) -> dict[str, Any]:
    """The object of a line, a MonoCut."""
    try:
        cut = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON: {error}; write one cut per line") from error
    kind = cut.get("type") if isinstance(cut, dict) else None
    if kind != "MonoCut":
        cure = "write cuts of recordings: CutSet.to_eager() of MonoCut, after cut.save_audio"
        if isinstance(cut, dict) and "sources" in cut:
            cure = "is a recording: make cuts by CutSet.from_manifests(recordings, supervisions)"
        raise UserError(f"{where}: has the type {kind!r}, not 'MonoCut'; {cure}")
    for field in ("start", "duration"):
        value = cut.get(field)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < LONGEST or (field == "duration" and value == 0):
            raise UserError(f"{where}: {field} must be a number of seconds, not {value!r}")
    cut |= {"start": float(cut["start"]), "duration": float(cut["duration"])}
    if not isinstance(cut.get("id"), str) or not isinstance(cut.get("supervisions", []), list):
        raise UserError(f"{where}: lacks an id or a list of supervisions; write the cuts again")
    return cut


def _file(cut: dict[str, Any], where: str) -> str:
    """The path of the cut's audio."""
    recording = cut.get("recording")
    if not isinstance(recording, dict):
        raise UserError(f"{where}: has no recording, only features; cut the recordings' manifest")
    if recording.get("transforms"):
        cure = "write the audio: CutSet.save_audios"
        raise UserError(f"{where}: its recording has transforms, which are not applied; {cure}")
    channel = cut.get("channel", 0)
    sources = recording.get("sources")
    sources = sources if isinstance(sources, list) else []
    holding = [s for s in sources if isinstance(s, dict) and channel in (s.get("channels") or [0])]
    if not holding:
        raise UserError(f"{where}: no source of its recording has channel {channel}; add one")
    source = holding[0]
    kind, named = source.get("type"), source.get("source")
    if kind != "file" or not isinstance(named, str):
        not_run = ", which is not run" if kind == "command" else ""
        cure = "write the audio to files: CutSet.save_audios"
        raise UserError(f"{where}: its source is of the type {kind!r}{not_run}; {cure}")
    if len(source.get("channels") or [0]) > 1:
        problem = f"is channel {channel} of a file with {len(source['channels'])} channels"
        raise UserError(f"{where}: {problem}; write one file per channel: CutSet.save_audios")
    return named


def _utterances(cut: dict[str, Any], path: str, where: str) -> Iterator[Utterance]:
    """The utterances of a cut: its supervisions, or all of it."""
    supervisions = cut.get("supervisions") or [{}]
    alone = len(supervisions) == 1
    for supervision in supervisions:
        if not isinstance(supervision, dict):
            raise UserError(f"{where}: a supervision is no object; write the cuts again")
        identity = cut["id"] if alone else supervision.get("id")
        text, speaker = supervision.get("text"), supervision.get("speaker")
        lang = supervision.get("language") or ""
        if not isinstance(identity, str) or not isinstance(text, str | None):
            raise UserError(f"{where}: id and text of a supervision must be texts; correct them")
        begin, end = _times(supervision, cut, where)
        whole = begin <= TOLERANCE and end >= cut["duration"] - TOLERANCE
        yield Utterance(
            id=identity,
            path=path,
            offset=cut["start"] if whole else round(cut["start"] + begin, 9),
            duration=cut["duration"] if whole else round(end - begin, 9),
            text=text_of(text),
            lang=str(lang),
            speaker=str(speaker) if speaker else identity,
            line=where,
        )


def _times(supervision: dict[str, Any], cut: dict[str, Any], where: str) -> tuple[float, float]:
    """(begin, end) of a supervision in seconds from the start of its cut, and within it."""
    begin, duration = supervision.get("start", 0), supervision.get("duration", cut["duration"])
    for value in (begin, duration):
        if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > LONGEST:
            raise UserError(f"{where}: times of a supervision must be numbers, not {value!r}")
    begin, end = max(float(begin), 0.0), min(float(begin + duration), cut["duration"])
    if end <= begin:
        problem = f"from {begin:g} s on lasts {duration:g} s, none of it in its cut"
        raise UserError(f"{where}: a supervision {problem} of {cut['duration']:g} s; correct it")
    return begin, end
