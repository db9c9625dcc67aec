"""Reader of Kaldi's data folders: `kaldi:DIR`, with `wav.scp`, `text`, `utt2spk` and `segments`.

    wav.scp     RECORDING PATH                   a command, `... |`, is refused and never run
    segments    UTTERANCE RECORDING START END    optional: seconds; an END of -1 is the file's end
    text        UTTERANCE WORD WORD ...          optional: without a line, unlabelled
    utt2spk     UTTERANCE SPEAKER                optional, as is utt2lang

(kaldi-asr.org/doc/data_prep.html)
"""

import pathlib
import re
from typing import NamedTuple

from bljust_jax.common.errors import UserError
from bljust_jax.data.listings import (
    AUDIO,
    Finder,
    Lines,
    keyed_lines,
    report_unlabelled,
    text_of,
    to_offset,
    to_range,
    unknown_key,
)
from bljust_jax.data.sources import Utterance, require, with_durations


class _Segment(NamedTuple):
    """A part of a recording; a duration of 0 lasts to its end."""

    recording: str
    offset: float
    duration: float
    where: str


def read(rest: str, root: str = "") -> list[Utterance]:
    """The utterances of a data folder (`rest`, relative to a given `root`), in the order of
    `segments`, or else of `wav.scp`.

    Paths are relative to DIR, or to the `root`; audio must lie in `root`, by default in DIR. A
    segment that ends past the end of its recording has a `fault`. Raises UserError for a piped
    command, an id that another file lacks, a repeated id and a malformed line.
    """
    folder = pathlib.Path(root, rest).absolute()
    cure = "name the folder that holds wav.scp"
    require(folder, f"kaldi:{rest}", cure)
    require(folder / "wav.scp", f"kaldi:{rest}", cure, "file")
    recordings = keyed_lines(folder / "wav.scp", "RECORDING PATH")
    segments = _segments(folder, recordings)
    texts = _labels(folder / "text", segments, "UTTERANCE TEXT", least=1)
    speakers = _labels(folder / "utt2spk", segments, "UTTERANCE SPEAKER")
    langs = _labels(folder / "utt2lang", segments, "UTTERANCE LANGUAGE")
    paths, audio = {}, Finder((folder, root or folder), root or str(folder))
    for name in dict.fromkeys(segment.recording for segment in segments.values()):
        named, where = recordings[name]
        paths[name] = audio.find(_file(named, where), where)
    found = []
    for identity, segment in segments.items():
        if speakers and identity not in speakers:
            raise unknown_key(identity, segment.where, speakers, str(folder / "utt2spk"))
        text, where = texts.get(identity, ("", segment.where))
        lang, _ = langs.get(identity, ("", ""))
        speaker, _ = speakers.get(identity, (identity, ""))
        path = paths[segment.recording]
        place = (path, segment.offset, segment.duration)
        found.append(Utterance(identity, *place, text_of(text), lang, speaker, where))
    return report_unlabelled(with_durations(found, bounded=True), f"kaldi:{rest}")


def listing(rest: str, root: str = "") -> list[pathlib.Path]:
    """The files that declare the utterances."""
    folder = pathlib.Path(root, rest).absolute()
    files = ("wav.scp", "segments", "text", "utt2spk", "utt2lang")
    return [folder / name for name in files if (folder / name).is_file()]


def _segments(folder: pathlib.Path, recordings: Lines) -> dict[str, _Segment]:
    """{utterance: its segment}; whole recordings without a file `segments`."""
    path = folder / "segments"
    if not path.is_file():
        return {name: _Segment(name, 0.0, 0.0, where) for name, (_, where) in recordings.items()}
    found = {}
    usage = "UTTERANCE RECORDING START END"
    for identity, (line, where) in keyed_lines(path, usage).items():
        fields = line.split()
        if len(fields) != 3:
            problem = f"has {len(fields) + 1} fields; write {usage}"
            raise UserError(f"{where}: {problem}, with recordings of one channel")
        recording, start, end = fields
        if recording not in recordings:
            raise unknown_key(recording, where, recordings, str(folder / "wav.scp"))
        last = end in ("-1", "-1.0")
        times = (to_offset(start, where), 0.0) if last else to_range(start, end, where)
        found[identity] = _Segment(recording, *times, where)
    return found


def _labels(path: pathlib.Path, known: dict[str, _Segment], usage: str, least: int = 2) -> Lines:
    """The lines of an optional file by utterance, all of which must be known."""
    lines = keyed_lines(path, usage, least) if path.is_file() else {}
    for identity, (_, where) in lines.items():
        if identity not in known:
            segments = path.with_name("segments")
            file = segments if segments.is_file() else path.with_name("wav.scp")
            raise unknown_key(identity, where, known, str(file))
    return lines


def _file(named: str, where: str) -> str:
    """The path of a line of wav.scp; UserError for a command or a place in an archive."""
    if named.endswith("|") or named.startswith("|"):
        suffixes = "|".join(suffix[1:] for suffix in AUDIO)
        files = re.findall(rf"[^\s|<>\"']+\.(?:{suffixes})\b", named, re.IGNORECASE)
        cure = f"write its file alone, as {files[0]}" if len(files) == 1 else "write a file's path"
        raise UserError(f"{where}: is a command, which is not run: {named!r}; {cure}")
    if re.search(r"\.ark:\d+$", named):
        cure = "write its recordings as files (wav-copy ark:- with a wav.scp of paths)"
        raise UserError(f"{where}: is a place in an archive, {named!r}, which is not read; {cure}")
    return named
