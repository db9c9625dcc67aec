"""Utterances as columns: a sequence whose elements are made as they are read.

An object per utterance costs 600 bytes, and a loop over five million of them half a minute; the
columns cost what their texts do, and filters and plans work on whole columns.
"""

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bljust_jax.data.byte_ranges import ByteRange
from bljust_jax.data.strings import (
    Builder,
    Coded,
    Coder,
    Numbers,
    Strings,
    joined,
    joined_codes,
)

CHUNK = 4096  # utterances that are made at a time
_PLAIN, _CODED, _NUMBERS = range(3)
# {column: its kind}. path is folder/name; line is file:number, a number of -1 stands for no number;
# a speaker of None is the utterance's id; start, size: of a ByteRange in the file `fetch`.
KINDS = {
    "id": _PLAIN,
    "folder": _CODED,
    "name": _PLAIN,
    "offset": _NUMBERS,
    "duration": _NUMBERS,
    "text": _PLAIN,
    "lang": _CODED,
    "speaker": _CODED,
    "file": _CODED,
    "number": _NUMBERS,
    "part": _CODED,
    "fetch": _CODED,
    "start": _NUMBERS,
    "size": _NUMBERS,
    "fault": _CODED,
    "translation": _PLAIN,
}
_TYPES = {"offset": np.float64, "duration": np.float64}  # of numbers; others are int64


@dataclasses.dataclass(frozen=True, slots=True)
class Utterance:
    """A segment of one audio file, with its labels.

    id: unique in a corpus; path: absolute; offset, duration: seconds; text: None if unlabelled;
    line: "file:line" that declared it, for messages; part: the one of several joined sources that
    it comes from, "" for a single source; fetch: returns the encoded file, for audio in a shard or
    made on demand (`path` is then a name, unique per utterance); fault: the reason why the audio is
    known to be unusable, or ""; translation: the text in another language, or None.
    """

    id: str
    path: str
    offset: float
    duration: float
    text: str | None
    lang: str
    speaker: str
    line: str = ""
    part: str = ""
    fetch: Callable[[], bytes] | None = None
    fault: str = ""
    translation: str | None = None


class Utterances(Sequence[Utterance]):
    """Immutable sequence of utterances; compares equal to any sequence of the same ones.

    columns: {name of KINDS: column} of all rows; fetches: {row: function} where `fetch` is none of
    a ByteRange; rows: numbers of the rows that the sequence has, in its order, None for all.
    """

    __hash__ = None

    def __init__(
        self,
        columns: Mapping[str, Any],
        fetches: Mapping[int, Callable[[], bytes]],
        rows: np.ndarray | None = None,
    ):
        self._columns, self._fetches, self._rows = dict(columns), fetches, rows

    @classmethod
    def of(cls, utterances: Iterable[Utterance]) -> "Utterances":
        """The utterances as columns; columns as they are."""
        return utterances if isinstance(utterances, cls) else _collect(utterances)

    def __len__(self) -> int:
        return len(self._columns["id"]) if self._rows is None else len(self._rows)

    def __getitem__(self, key):
        if isinstance(key, slice):
            return self.select(np.arange(len(self))[key])
        if not -len(self) <= key < len(self):
            raise IndexError(f"utterance {key} of {len(self)}")
        row = key % len(self) if self._rows is None else int(self._rows[key])
        return self._build(*(_scalar(self._columns[name], row) for name in KINDS), row)

    def __iter__(self) -> Iterator[Utterance]:
        for start in range(0, len(self), CHUNK):
            yield from self._made(np.arange(start, min(start + CHUNK, len(self))))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"<{len(self)} utterances>"

    def _made(self, places: np.ndarray) -> Iterator[Utterance]:
        rows = places if self._rows is None else self._rows[places]
        columns = {name: _take(column, rows) for name, column in self._columns.items()}
        listed = (
            list(c) if isinstance(c, Strings | Coded) else c.tolist() for c in columns.values()
        )
        named = dict(zip(columns, listed, strict=True))
        yield from map(self._build, *(named[name] for name in KINDS), rows.tolist())

    def _build(
        self,
        identity: str,
        folder: str | None,
        name: str,
        offset: float,
        duration: float,
        text: str | None,
        lang: str,
        speaker: str | None,
        file: str,
        number: int,
        part: str,
        source: str | None,
        start: int,
        size: int,
        fault: str,
        translation: str | None,
        row: int,
    ) -> Utterance:
        """The utterance of a row's values, in the order of KINDS."""
        return Utterance(
            identity,
            name if folder is None else f"{folder}/{name}",
            offset,
            duration,
            text,
            lang,
            identity if speaker is None else speaker,
            file if number < 0 else f"{file}:{number}",
            part,
            ByteRange(source, start, size) if source else self._fetches.get(row),
            fault,
            translation,
        )

    # Columns

    def column(self, name: str) -> Any:
        """A column of KINDS, a `Strings`, a `Coded` or an array of numbers, by row: [N]."""
        return _take(self._columns[name], self._rows)

    @property
    def durations(self) -> np.ndarray:
        """Seconds, float64 [N]."""
        return self.column("duration")

    @property
    def ids(self) -> Strings:
        return self.column("id")

    @property
    def texts(self) -> Strings:
        return self.column("text")

    @property
    def faulty(self) -> np.ndarray:
        """Those with a `fault`: bool [N]."""
        faults = self.column("fault")
        return (~faults.names.empty)[faults.codes] if len(faults.names) else np.zeros(0, bool)

    @property
    def named_speakers(self) -> np.ndarray:
        """Those whose speaker is another name than their id: bool [N]."""
        return ~self.column("speaker").null

    @property
    def speakers(self) -> Coded | Strings:
        """The speaker of each."""
        found = self.column("speaker")
        if not found.null.any():
            return found
        return (
            self.ids
            if found.null.all()
            else Strings.of(
                identity if name is None else name
                for identity, name in zip(self.ids, found, strict=True)
            )
        )

    def paths(self) -> Iterator[str]:
        """The path of each."""
        pairs = zip(self.column("folder"), self.column("name"), strict=True)
        return (name if folder is None else f"{folder}/{name}" for folder, name in pairs)

    # Other sequences

    def select(self, rows: np.ndarray) -> "Utterances":
        """Those of these numbers, or of a mask [N]."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        if self._rows is not None:
            rows = self._rows[rows]
        return Utterances(self._columns, self._fetches, rows.astype(np.int32))

    def with_part(self, part: str) -> "Utterances":
        """The utterances with this `part`."""
        size = len(self._columns["id"])
        found = Coded(np.zeros(size, np.int32), Strings.of([part]))
        return Utterances({**self._columns, "part": found}, self._fetches, self._rows)

    def with_translation_as_text(self) -> "Utterances":
        """The utterances with their translation as `text`."""
        columns = {**self._columns, "text": self._columns["translation"]}
        return Utterances(columns, self._fetches, self._rows)

    @property
    def columns(self) -> dict[str, Any]:
        """{name of KINDS: column}, without functions that fetch audio."""
        return {name: self.column(name) for name in KINDS}

    @property
    def fetched(self) -> dict[int, Callable[[], bytes]]:
        """{row: function that fetches its audio} of those without a ByteRange."""
        if self._rows is None or not self._fetches:
            return dict(self._fetches)
        rows = enumerate(self._rows.tolist())
        return {n: self._fetches[row] for n, row in rows if row in self._fetches}


def _scalar(column: Any, row: int) -> Any:
    return column[row].item() if isinstance(column, np.ndarray) else column[row]


def _take(column: Any, rows: np.ndarray | None) -> Any:
    if rows is None:
        return column
    return column[rows] if isinstance(column, np.ndarray) else column.take(rows)


def concatenated(parts: Sequence[Utterances]) -> Utterances:
    """The utterances of several sequences as one."""
    if len(parts) == 1:
        return parts[0]
    kinds = {_PLAIN: joined, _CODED: joined_codes, _NUMBERS: np.concatenate}
    columns = {
        name: kinds[kind]([part.column(name) for part in parts]) for name, kind in KINDS.items()
    }
    fetches, before = {}, 0
    for part in parts:
        fetches |= {before + row: fetch for row, fetch in part.fetched.items()}
        before += len(part)
    return Utterances(columns, fetches)


def _collect(utterances: Iterable[Utterance]) -> Utterances:
    columns = {
        name: {_PLAIN: Builder, _CODED: Coder, _NUMBERS: Numbers}[kind]()
        for name, kind in KINDS.items()
    }
    fetches: dict[int, Callable[[], bytes]] = {}
    rest, size = iter(utterances), 0
    while some := list(itertools.islice(rest, CHUNK)):
        for name, values in _split(some).items():
            columns[name].extend(values)
        if any(u.fetch is not None for u in some):
            others = ((n, u.fetch) for n, u in enumerate(some, size))
            fetches |= {n: f for n, f in others if f is not None and not isinstance(f, ByteRange)}
        size += len(some)
    for name, dtype in _TYPES.items():
        columns[name].dtype = dtype
    return Utterances({name: column.finish() for name, column in columns.items()}, fetches)


def _split(some: Sequence[Utterance]) -> dict[str, list]:
    """{name of KINDS: values} of some utterances."""
    paths = [u.path.rpartition("/") for u in some]
    lines = [_file_and_number(u.line) for u in some]
    ranges = [_range(u.fetch) for u in some]
    return {
        "id": [u.id for u in some],
        "folder": [folder if slash else None for folder, slash, _ in paths],
        "name": [name for _, _, name in paths],
        "offset": [u.offset for u in some],
        "duration": [u.duration for u in some],
        "text": [u.text for u in some],
        "lang": [u.lang for u in some],
        "speaker": [None if u.speaker == u.id else u.speaker for u in some],
        "file": [file for file, _ in lines],
        "number": [number for _, number in lines],
        "part": [u.part for u in some],
        "fetch": [path for path, _, _ in ranges],
        "start": [start for _, start, _ in ranges],
        "size": [size for _, _, size in ranges],
        "fault": [u.fault for u in some],
        "translation": [u.translation for u in some],
    }


def _range(fetch: Callable[[], bytes] | None) -> tuple[str | None, int, int]:
    """(path, start, size) of a ByteRange."""
    return (fetch.path, fetch.start, fetch.size) if isinstance(fetch, ByteRange) else (None, 0, 0)


def _file_and_number(line: str) -> tuple[str, int]:
    """("a.csv", 3) of "a.csv:3"; (line, -1) of another text."""
    file, _, number = line.rpartition(":")
    plain = number.isdecimal() and number.isascii() and number[0] != "0" and len(number) < 18
    return (file, int(number)) if plain and len(number) < len(line) else (line, -1)


def hours(utterances: Iterable[Utterance]) -> float:
    """Total duration in hours."""
    return sum(durations_of(utterances).tolist()) / 3600


def durations_of(utterances: Iterable[Utterance]) -> np.ndarray:
    """Seconds of each utterance: float64 [N]."""
    if isinstance(utterances, Utterances):
        return utterances.durations
    return np.array([u.duration for u in utterances], np.float64)


def checksums(strings: Iterable[str]) -> np.ndarray:
    """crc32 of each string: uint32 [N]."""
    found = (zlib.crc32(text.encode("utf-8", "surrogatepass")) for text in strings)
    return np.fromiter(found, np.uint32)


def first_repeated(strings: Strings) -> tuple[int, int] | None:
    """(row of its first occurrence, row) of the first string that occurs before; None without."""
    sums = checksums(strings)
    order = np.argsort(sums, kind="stable")
    equal = np.flatnonzero(sums[order[1:]] == sums[order[:-1]])
    rows = np.unique(order[np.concatenate([equal, equal + 1])])
    first: dict[str, int] = {}
    for row, text in zip(rows.tolist(), strings.take(rows), strict=True):
        if first.setdefault(text, row) != row:
            return first[text], row
    return None


def unique(utterances: Utterances) -> Utterances:
    """Those of the same audio and id once: the last of them, in the place of the first."""
    numbers = _numbers(utterances)
    _, places, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    doubtful = np.flatnonzero(counts[places] > 1)
    rows, first = np.arange(len(utterances)), {}
    for row, key in zip(doubtful.tolist(), _keys(utterances.select(doubtful)), strict=True):
        place = first.setdefault(key, row)
        if place != row:
            rows[place], rows[row] = row, -1
    return utterances if rows.min(initial=0) >= 0 else utterances.select(rows[rows >= 0])


def among(utterances: Utterances, known: Utterances) -> np.ndarray:
    """Which utterances have the audio and id of one of the known: bool [N]."""
    found = np.isin(_numbers(utterances), _numbers(known))
    if not found.any():
        return found
    keys, rows = set(_keys(known)), np.flatnonzero(found)
    doubtful = utterances.select(rows)
    found[rows] = np.fromiter((key in keys for key in _keys(doubtful)), bool, len(rows))
    return found


def _numbers(utterances: Utterances) -> np.ndarray:
    """A number per utterance, equal for equal keys: int64 [N]."""
    return np.fromiter(map(hash, _keys(utterances)), np.int64, len(utterances))


def _keys(utterances: Utterances) -> Iterator[tuple[str, float, float, str]]:
    """What utterances of the same audio and id share."""
    offsets, durations = utterances.column("offset").tolist(), utterances.durations.tolist()
    return zip(utterances.paths(), offsets, durations, utterances.ids, strict=True)
