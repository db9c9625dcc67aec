"""Reader of a folder of recordings: `folder:DIR`, audio beside its texts or one list of texts.

Texts are, by recording or for all:

    a/0001.flac, a/0001.txt            or 0001.lab: the text of the recording of that name
    transcripts.txt, *.trans.txt       NAME TEXT, with a tab, | or space after the name
    metadata.csv                       NAME|TEXT or NAME|TEXT|NORMALISED TEXT (LJ Speech, whose
                                       audio is in wavs), or a table with a header (`table:`)
"""

import difflib
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Iterator

from bljust_jax.common.errors import UserError
from bljust_jax.data.listings import AUDIO, UNDECODED, report_unlabelled, text_of
from bljust_jax.data.readers import table
from bljust_jax.data.sources import Utterance, inside, read_lines, require, with_durations

LISTS = ("transcripts.txt", "transcript.txt", "transcriptions.txt", "transcripts.tsv")
TABLES = ("metadata.csv", "metadata.tsv", "transcripts.csv")
SIDECARS = (".txt", ".lab")
# A line of HTK's label files, with times in 100 ns
_TIMED = re.compile(r"\d+\s+\d+\s+\S+")

Texts = dict[str, tuple[str, str]]  # {recording: (text, "file:line")}


def read(rest: str, root: str = "") -> Iterable[Utterance]:
    """The recordings of a folder (`rest`, relative to a given `root`) and of those in it, by name.

    id: the path within DIR without extension; no speaker is assumed. A recording without a text is
    unlabelled. Audio must lie in `root`, by default in DIR. Raises UserError for a missing folder,
    one without audio, two recordings of one name, a line whose recording is missing, and texts in
    several forms.
    """
    folder = pathlib.Path(root, rest).absolute()
    what = f"folder:{rest}"
    require(folder, what, "name a folder of recordings")
    inside(folder, root, what)
    files = sorted(_files(folder))
    lists = [folder / name for name in (*LISTS, *TABLES) if name in files]
    chapters = [folder / name for name in files if name.endswith(".trans.txt")]
    if len(lists) > 1 or (lists and chapters):
        names = " and ".join(str(path) for path in [*lists, *chapters][:2])
        raise UserError(f"{what}: has several lists of texts: {names}; keep one of them")
    if lists and lists[0].name in TABLES and not _is_ljspeech(lists[0]):
        return table.read_rows(str(lists[0]), {}, root or str(folder), what)
    recordings = _recordings(folder, files, what)
    texts: Texts = {}
    for path in [*lists, *chapters]:
        _add_listed(texts, path, recordings, folder)
    if not (lists or chapters):
        texts = _beside(folder, files, recordings, what)
    found = []
    for identity, name in recordings.items():
        path = inside(folder / name, root or str(folder), what)
        text, where = texts.get(identity, ("", str(folder / name)))
        found.append(Utterance(identity, path, 0.0, 0.0, text_of(text), "", identity, where))
    return report_unlabelled(with_durations(found), what)


def _files(folder: pathlib.Path) -> Iterator[str]:
    """The names of all visible files, relative to the folder, with "/"."""
    for top, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inner = pathlib.Path(top).relative_to(folder)
        yield from ((inner / name).as_posix() for name in names if not name.startswith("."))


def _recordings(folder: pathlib.Path, files: list[str], what: str) -> dict[str, str]:
    """{path without suffix: path} of the audio files."""
    found: dict[str, str] = {}
    other = None
    for name in files:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in UNDECODED:
            other = other or name
        if suffix.lower() not in AUDIO:
            continue
        if stem in found:
            raise UserError(f"{folder / name}: {found[stem]} has the same name; remove one of them")
        found[stem] = name
    if found:
        if other:
            logging.warning("%s: %s and others of its kind are not read: convert them", what, other)
        return found
    if other:
        cure = f"convert its files: ffmpeg -i {other} {os.path.splitext(other)[0]}.flac"
        raise UserError(f"{what}: {folder / other} is in a format that is not read; {cure}")
    raise UserError(f"{what}: no audio in {folder}; its names end with {', '.join(sorted(AUDIO))}")


def _is_ljspeech(path: pathlib.Path) -> bool:
    """Whether the first line has | and no name of a column."""
    line = next((line for _, line in read_lines(path)), "")
    names = {name.strip().lower() for name in line.split("|")}
    return "|" in line and not names & set(table.COLUMNS["audio"])


def _add_listed(
    texts: Texts, path: pathlib.Path, recordings: dict[str, str], folder: pathlib.Path
) -> None:
    """Add the texts of a list, whose names are relative to its folder, to DIR, or unique in it."""
    beside = path.parent.relative_to(folder).as_posix()
    inner = "" if beside == "." else f"{beside}/"
    stems: dict[str, list[str]] = {}
    for identity in recordings:
        stems.setdefault(identity.rpartition("/")[2], []).append(identity)
    for where, line in read_lines(path):
        name, text = _name_and_text(line, where)
        stem = os.path.splitext(name)[0] if os.path.splitext(name)[1].lower() in AUDIO else name
        exact = (f"{inner}{stem}", stem, f"wavs/{stem}")
        matches = [key for key in exact if key in recordings][:1] or stems.get(stem, [])
        if not matches:
            near = difflib.get_close_matches(stem, list(stems)[:20000], n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{where}: no recording is named {name!r}{hint}; add it, or remove it")
        if len(matches) > 1:
            both = " or ".join(recordings[key] for key in matches[:2])
            raise UserError(f"{where}: {name!r} may be {both}; write the path within {folder}")
        first = texts.setdefault(matches[0], (text, where))
        if first[1] != where:
            raise UserError(f"{where}: {name!r} has a text before, at {first[1]}; remove one")


def _name_and_text(line: str, where: str) -> tuple[str, str]:
    """(name, text) of a line: after a tab, | or space; of three fields with |, the last."""
    line = line.strip()
    mark = next((mark for mark in "\t|" if mark in line), None)
    fields = line.split(mark) if mark else line.split(maxsplit=1)
    if len(fields) == 1 or not fields[0].strip():
        raise UserError(f"{where}: expected a recording's name and its text, with a tab or space")
    if len(fields) > 3 or (mark == "\t" and len(fields) > 2):
        problem = f"has {len(fields)} fields; write NAME and TEXT"
        raise UserError(f"{where}: {problem}, or a table with a header as metadata.csv")
    return fields[0].strip(), fields[-1] or fields[1]


def _beside(folder: pathlib.Path, files: list[str], recordings: dict[str, str], what: str) -> Texts:
    """The texts of files beside the recordings, several lines joined by spaces."""
    texts: Texts = {}
    alone = []
    for name in files:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in SIDECARS:
            continue
        if stem not in recordings:
            alone.append(name)
            continue
        if stem in texts:
            first = texts[stem][1].rpartition(":")[0]
            raise UserError(f"{folder / name}: {first} is the text of that recording, too")
        lines = list(read_lines(folder / name))
        if suffix.lower() == ".lab" and lines and all(_TIMED.match(line) for _, line in lines):
            cure = "write the words alone, without times"
            raise UserError(f"{lines[0][0]}: is a label with times, as HTK's; {cure}")
        text = " ".join(line.strip() for _, line in lines)
        texts[stem] = text, lines[0][0] if lines else f"{folder / name}:1"
    if alone:
        logging.warning(
            "%s: %d texts have no recording of their name, the first is %s",
            what,
            len(alone),
            folder / alone[0],
        )
    return texts
