"""Lists that name recordings: their columns, paths, times and texts, shared by several readers."""

import csv
import difflib
import itertools
import logging
import os
import pathlib
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

from bljust_jax.common.errors import UserError, nearest
from bljust_jax.data.sources import Utterance, inside, nfc, read_lines, to_seconds

LONGEST = 1e9  # seconds
Lines = dict[str, tuple[str, str]]  # {first word: (rest of the line, "file:line")}
# Suffixes of what libsndfile decodes, and of what it does not
AUDIO = frozenset(
    {
        *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".sph", ".nist", ".aif", ".aiff"),
        *(".aifc", ".au", ".snd", ".caf", ".w64", ".rf64"),
    }
)
UNDECODED = frozenset({".m4a", ".aac", ".mp4", ".wma", ".webm", ".amr", ".ape", ".mkv", ".3gp"})
# {field: names of its column or key in the formats of other toolkits, in order of preference}
COLUMNS = {
    "audio": (
        *("audio", "audio_filepath", "audio_path", "audio_file", "wav", "wav_path", "wav_filename"),
        *("file_name", "filename", "file_path", "filepath", "path", "file", "clip", "recording"),
    ),
    "text": (
        *("text", "sentence", "transcript", "transcription", "transcripts", "normalized_text"),
        *("raw_text", "wrd", "words", "utterance", "caption", "target"),
    ),
    "id": ("id", "utt_id", "utterance_id", "uttid", "utt", "segment_id", "key"),
    "speaker": ("speaker", "speaker_id", "spk_id", "spk", "client_id", "reader"),
    "lang": ("lang", "language", "locale"),
    "duration": ("duration", "seconds", "duration_seconds"),
    "start": ("start", "offset", "begin", "start_time", "begin_time"),
    "end": ("end", "stop", "end_time"),
    "translation": ("translation",),
}


def match_columns(
    names: Sequence[str], where: str, chosen: Mapping[str, str] | None = None
) -> dict[str, int]:
    """{field of COLUMNS: place of its column}, by the synonyms in any case, or as `chosen`.

    Raises UserError for a name that occurs twice, a chosen column that is missing, and for columns
    without one of audio.
    """
    bare = [name.strip().lower() for name in names]
    twice = next((name for n, name in enumerate(bare) if name and name in bare[:n]), None)
    if twice is not None:
        raise UserError(f"{where}: names the column {twice!r} twice; rename or remove one")
    places = {}
    for field, synonyms in COLUMNS.items():
        wanted = (chosen or {}).get(field)
        if wanted is not None and wanted.lower() not in bare:
            raise UserError(f"{where}: has no column {wanted!r}{nearest(wanted, names)}")
        found = (name for name in ([wanted.lower()] if wanted else synonyms) if name in bare)
        name = next(found, None)
        if name is not None:
            places[field] = bare.index(name)
    if "audio" not in places:
        near = [c for name in bare for c in difflib.get_close_matches(name, COLUMNS["audio"], n=1)]
        hint = f", such as {near[0]!r}" if near else ""
        listed = ", ".join(repr(name.strip()) for name in names)
        raise UserError(
            f"{where}: no column is named as audio files are{hint}, only {listed}; rename one, or"
            " name it as ?audio=COLUMN"
        )
    return places


def spelt(path: str) -> str:
    """The path, or its spelling in another Unicode normal form where only that exists: macOS writes
    NFD, most other systems NFC."""
    spellings = (path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))
    return next((spelling for spelling in spellings if os.path.lexists(spelling)), path)


class Finder:
    """Finds audio files that a list names, relative to the first of `folders` that has it.

    A folder is compared with the `root` once; only files that are links are resolved on their own.
    """

    def __init__(self, folders: Sequence[str | os.PathLike], root: str):
        self._folders, self._root = [os.fspath(folder) for folder in folders], root
        self._resolved: dict[str, str] = {}

    def regular(self, path: str) -> str:
        """The path of a regular file in a folder within the root, with links resolved; "" for other
        paths, of which `inside` decides."""
        folder, slash, name = path.rpartition("/")
        found = self._resolved.get(folder)
        if found is None:
            found = os.path.realpath(folder) if slash and folder else ""
            root = os.path.realpath(self._root) if self._root else found
            if not found or os.path.commonpath([found, root]) != root:
                found = ""
            self._resolved[folder] = found
        if not found or "\0" in name:
            return ""
        try:
            mode = os.lstat(f"{found}/{name}").st_mode
        except OSError:
            return ""
        return f"{found}/{name}" if stat.S_ISREG(mode) else ""

    def find(self, named: str, where: str, cure: str = "") -> str:
        """The path of an audio file. Raises UserError, naming the nearest file, if no folder has it
        or if it lies outside the root."""
        if not named or "\0" in named:
            problem = f"{where}: names no audio file: {named!r}"
            raise UserError(f"{problem}; write its path, or remove it")
        path = os.path.join(self._folders[0], named)
        if self._root and (found := self.regular(path)):
            return found
        for folder in self._folders:
            path = spelt(os.path.join(folder, named))
            if os.path.isfile(path):
                return inside(path, self._root, where)
        path = os.path.join(self._folders[0], named)
        inside(path, self._root, where)
        kind = "is a folder" if os.path.isdir(path) else "no such file"
        cure = cure or f"correct the path, relative to {self._folders[0]}"
        raise UserError(f"{where}: {kind}: {path!r}{_near_file(path)}; {cure}")


def _near_file(path: str) -> str:
    """End of the message on a missing file: the nearest name in its folder."""
    folder, name = os.path.split(path)
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in itertools.islice(entries, 20000)]
    except OSError:
        return ""
    near = difflib.get_close_matches(name, names, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def to_range(start: str, end: str, where: str) -> tuple[float, float]:
    """(offset, duration) of a segment written as two texts of seconds; UserError unless 0 <= start
    < end."""
    begin, stop = to_seconds(start), to_seconds(end)
    if not (0 <= begin < LONGEST and 0 <= stop < LONGEST):
        raise UserError(
            f"{where}: a segment from {start!r} to {end!r}; write two numbers of seconds, 0 or"
            " above"
        )
    if stop <= begin:
        raise UserError(f"{where}: the segment ends at {end} s, before it starts at {start} s")
    return begin, round(stop - begin, 9)


def to_duration(text: str, where: str) -> float:
    """Seconds above 0; UserError for another text."""
    seconds = to_seconds(text)
    if not 0 < seconds < LONGEST:
        raise UserError(f"{where}: the duration must be above 0 seconds, not {text!r}; correct it")
    return seconds


def to_offset(text: str, where: str) -> float:
    """Seconds, 0 or above; UserError for another text."""
    seconds = to_seconds(text)
    if not 0 <= seconds < LONGEST:
        raise UserError(f"{where}: the start must be 0 seconds or above, not {text!r}; correct it")
    return seconds


def times(row: Mapping[str, str], where: str) -> tuple[float, float]:
    """(offset, duration) of the fields start, end and duration, each "" for none; a duration of 0
    lasts to the end of the file."""
    start, end, duration = (row.get(name, "").strip() for name in ("start", "end", "duration"))
    if end:
        offset, length = to_range(start or "0", end, where)
        if duration and abs(to_duration(duration, where) - length) > 0.1:
            problem = f"lasts {duration} s, but from {start or 0} to {end} s it is {length:g} s"
            raise UserError(f"{where}: {problem}; correct one of them")
        return offset, length
    offset = to_offset(start, where) if start else 0.0
    return offset, to_duration(duration, where) if duration else 0.0


def text_of(text: str | None) -> str | None:
    """The text in NFC without spaces around it; None if nothing is left."""
    return nfc(text.strip()) or None if text else None


def each_reported(utterances: Iterable[Utterance], what: str) -> Iterator[Utterance]:
    """The utterances; logs at the end how many have no text, and where the first is declared, if
    others have one."""
    total, bare, first = 0, 0, ""
    for u in utterances:
        total += 1
        if u.text is None:
            bare, first = bare + 1, first or u.line or u.path
        yield u
    if 0 < bare < total:
        logging.warning(
            "%s: %d of %d utterances have no text, the first at %s: the supervised loss skips them",
            *(what, bare, total, first),
        )


def report_unlabelled(utterances: Sequence[Utterance], what: str) -> list[Utterance]:
    """The utterances, as `each_reported`."""
    return list(each_reported(utterances, what))


def keyed_lines(path: pathlib.Path, usage: str, least: int = 2) -> Lines:
    """The lines of a text file by their first word, in its order.

    usage: shown for a line of fewer than `least` words. Raises UserError for a key that occurs
    twice.
    """
    found: Lines = {}
    for where, line in read_lines(path):
        key, *rest = line.strip().split(maxsplit=1)
        if len(rest) + 1 < least:
            raise UserError(f"{where}: holds {key!r} alone; write {usage}")
        if key in found:
            number = found[key][1].rpartition(":")[2]
            raise UserError(f"{where}: {key!r} is in line {number}, too; remove one")
        found[key] = (rest[0].strip() if rest else ""), where
    return found


def unknown_key(key: str, where: str, known: Iterable[str], file: str) -> UserError:
    """The error for a key that another file lacks, with the nearest one."""
    near = difflib.get_close_matches(key, list(itertools.islice(known, 20000)), n=1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    return UserError(f"{where}: {key!r} is not in {file}{hint}; add it there, or remove this line")


def tsv_rows(
    path: pathlib.Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[dict[str, str], str]]:
    """({column: value}, "file:line") of each row of a TSV file with a header, by Common Voice's
    rules: quotes are ordinary characters, a backslash escapes.

    `optional` columns that are missing are left out. Raises UserError for other ones, and for rows
    of another number of fields.
    """
    lines = read_lines(path)
    header = next(((_tsv_fields(line, where), where) for where, line in lines), None)
    if header is None:
        raise UserError(f"{path}: is empty; unpack it again")
    names, where = header
    for column in columns:
        if column not in names:
            near = difflib.get_close_matches(column, names, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            cure = "the first line must name the columns, with tabs between them"
            raise UserError(
                f"{where}: has no column {column!r} among {', '.join(names)}{hint}; {cure}"
            )
    places = {name: names.index(name) for name in (*columns, *optional) if name in names}
    for where, line in lines:
        fields = _tsv_fields(line, where)
        if len(fields) != len(names):
            counts = f"has {len(fields)} fields where the first line names {len(names)}"
            cause = "a text may hold a tab or newline, or end with a backslash"
            raise UserError(f"{where}: {counts}; {cause}: correct or remove the row")
        yield {column: fields[place] for column, place in places.items()}, where


def _tsv_fields(line: str, where: str) -> list[str]:
    try:
        text = line.rstrip("\r\n")
        return next(csv.reader([text], delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\"))
    except csv.Error as error:
        raise UserError(f"{where}: is no row of a TSV file: {error}; remove it") from error
