"""Reader of tables: `table:FILE.csv`, one utterance per row, with a header or two columns.

The delimiter (tab, comma, semicolon, |) and the columns are detected from the first line, by the
names in `listings.COLUMNS`. Others are named in the address: `table:FILE.csv?audio=a&text=b`;
in a table without a header by number: `table:FILE.csv?audio=1&text=3`.
"""

import csv
import itertools
import os
import pathlib
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence

from bljust_jax.common.errors import UserError, nearest
from bljust_jax.data.listings import (
    AUDIO,
    COLUMNS,
    Finder,
    each_reported,
    match_columns,
    text_of,
    times,
)
from bljust_jax.data.sources import Utterance, each_with_duration, read_lines, require

DELIMITERS = "\t,;|"
# Texts in tables of these delimiters hold quotes as ordinary characters; no row has several lines.
_ONE_LINE = "\t|"
_KNOWN = frozenset(name for names in COLUMNS.values() for name in names)

Row = tuple[list[str], str]  # (fields, "file:line")


def read(rest: str, root: str = "") -> Iterator[Utterance]:
    """The utterances of a table (`rest`, relative to a given `root`), in its order.

    Columns: audio, a path relative to the table or to the `root`; optional text, translation, id
    (by default the path without extension), speaker, lang, and seconds as start, end and duration.
    Audio must lie in `root`, by default in the table's folder. Raises UserError with file:line.
    """
    path, chosen = _options(str(pathlib.Path(root, rest).absolute()), f"table:{rest}")
    cure = "name a file of comma- or tab-separated values"
    require(pathlib.Path(path), f"table:{rest}", cure, "file")
    return read_rows(path, chosen, root, f"table:{rest}")


def listing(rest: str, root: str = "") -> list[str]:
    """The file that declares the utterances."""
    return [_options(str(pathlib.Path(root, rest).absolute()), f"table:{rest}")[0]]


def read_rows(path: str, chosen: Mapping[str, str], root: str, what: str) -> Iterator[Utterance]:
    """`read` of the file at `path`; chosen: {field: column}; what: the source, for the log."""
    rows = _rows(path, chosen)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path}: is empty; write a header and one row per utterance")
    fields, where = first
    places, header = _columns(fields, where, chosen)
    folder, width = os.path.dirname(path), len(fields)
    audio = Finder((folder, root or folder), root or folder)
    rows = rows if header else itertools.chain([first], rows)
    found = (_utterance(row, width, places, audio) for row in rows)
    return each_reported(each_with_duration(found, bounded="end" in places), what)


def _options(path: str, what: str) -> tuple[str, dict[str, str]]:
    """(path, {field: column}) of PATH?FIELD=COLUMN&..."""
    name, mark, query = path.partition("?")
    if not mark or os.path.isfile(path):
        return path, {}
    chosen = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    for field, column in chosen.items():
        if field not in COLUMNS:
            raise UserError(f"{what}: there is no field {field!r}{nearest(field, COLUMNS)}")
        if not column:
            raise UserError(f"{what}: names no column for {field!r}; write {field}=COLUMN")
    return name, chosen


def _rows(path: str, chosen: Mapping[str, str]) -> Iterator[Row]:
    """The rows of a table; blank lines are skipped."""
    lines = read_lines(path, blank=True)
    start = next(((where, line) for where, line in lines if line.strip()), None)
    if start is None:
        return
    delimiter = _delimiter(start[1], start[0], chosen)
    if delimiter in _ONE_LINE:
        for where, line in [start, *lines]:
            if line.strip():
                yield _fields(line.rstrip("\r\n"), delimiter), where
        return
    wheres = []

    def texts() -> Iterator[str]:
        for where, line in (start, *lines):
            wheres.append(where)
            yield line

    reader = csv.reader(texts(), delimiter=delimiter, strict=True, skipinitialspace=True)
    while True:
        before = reader.line_num
        try:
            fields = next(reader, None)
        except csv.Error as error:
            problem = f"is no row: {error}"
            cure = 'close each quote, and write a quote within a text twice ("")'
            raise UserError(f"{wheres[before]}: {problem}; {cure}") from error
        if fields is None:
            return
        if any(field.strip() for field in fields):
            yield fields, wheres[before]


def _fields(line: str, delimiter: str) -> list[str]:
    """The fields of a line; its quotes are ordinary characters unless they enclose whole fields."""
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error:
        return line.split(delimiter)


def _delimiter(line: str, where: str, chosen: Mapping[str, str]) -> str:
    """The delimiter that gives most known names in the first line, or else most fields."""
    known = _KNOWN | {column.lower() for column in chosen.values()}

    def score(delimiter: str) -> tuple[int, int]:
        fields = _fields(line.rstrip("\r\n"), delimiter)
        return sum(field.strip().lower() in known for field in fields), len(fields)

    found = max(DELIMITERS, key=score)
    if score(found) == (0, 1):
        raise UserError(
            f"{where}: has neither tabs, commas, semicolons nor |; write a header such as"
            " audio,text"
        )
    return found


def _columns(
    fields: Sequence[str], where: str, chosen: Mapping[str, str]
) -> tuple[dict[str, int], bool]:
    """({field: place of its column}, whether the first line is a header)."""
    numbered = bool(chosen) and all(column.isdecimal() for column in chosen.values())
    bare = [field.strip().lower() for field in fields]
    if numbered:
        places = {field: int(column) - 1 for field, column in chosen.items()}
        wrong = next((n for n in places.values() if not 0 <= n < len(fields)), None)
        if wrong is not None:
            raise UserError(f"{where}: has no column {wrong + 1}; columns are 1 to {len(fields)}")
        if "audio" not in places:
            raise UserError(f"{where}: the address names no column of audio; add audio=NUMBER")
        return places, pathlib.PurePath(bare[places["audio"]]).suffix not in AUDIO
    audio = [n for n, name in enumerate(bare) if pathlib.PurePath(name).suffix in AUDIO]
    if not audio or _KNOWN & set(bare):
        return match_columns(fields, where, chosen), True
    if len(fields) != 2 or len(audio) != 1:
        cure = "insert one, or name the columns by number, as ?audio=1&text=2"
        raise UserError(f"{where}: holds an utterance where a header is expected; {cure}")
    return {"audio": audio[0], "text": 1 - audio[0]}, False


def _utterance(row: Row, width: int, places: Mapping[str, int], audio: Finder) -> Utterance:
    fields, where = row
    if len(fields) != width:
        counts = f"has {len(fields)} fields where the first line has {width}"
        cure = "put a text that holds the delimiter in quotes"
        raise UserError(f"{where}: {counts}; {cure}, or correct the row")
    values = {field: fields[place].strip() for field, place in places.items()}
    named = values["audio"]
    path = audio.find(named, where)
    offset, duration = times(values, where)
    identity = values.get("id") or ""
    if not identity:
        stem = str(pathlib.PurePath(named).with_suffix(""))
        identity = f"{stem}@{offset:.10g}" if offset else stem
    return Utterance(
        id=identity,
        path=path,
        offset=offset,
        duration=duration,
        text=text_of(values.get("text")),
        lang=values.get("lang", ""),
        speaker=values.get("speaker") or identity,
        line=where,
        translation=text_of(values.get("translation")),
    )
