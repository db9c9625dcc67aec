"""Columns of strings: millions of texts as UTF-8 bytes and offsets, decoded as they are read."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

CHUNK = 1 << 15  # rows that are decoded at a time
FEW = 50_000  # rows that are sorted without pyarrow, whose import takes as long
_ERRORS = "surrogatepass"  # names of files may hold bytes that are no text


class Strings(Sequence[str | None]):
    """Immutable sequence of strings, row i in data[offsets[i]:offsets[i + 1]] as UTF-8.

    nulls: rows that are None, [N] or None for none; rows: numbers of the rows that the sequence
    has, in its order, None for all. Compares equal to any sequence of the same strings.
    """

    __slots__ = ("_data", "_nulls", "_offsets", "_rows")
    __hash__ = None

    def __init__(
        self,
        offsets: np.ndarray,
        data: np.ndarray,
        nulls: np.ndarray | None = None,
        rows: np.ndarray | None = None,
    ):
        self._offsets, self._data, self._nulls, self._rows = offsets, data, nulls, rows

    @classmethod
    def of(cls, values: Iterable[str | None]) -> "Strings":
        """The strings as a column; a column as it is."""
        if isinstance(values, cls):
            return values
        made, rest = Builder(), iter(values)
        while some := list(itertools.islice(rest, CHUNK)):
            made.extend(some)
        return made.finish()

    @classmethod
    def blank(cls, size: int) -> "Strings":
        """A column of empty strings."""
        return cls(np.zeros(size + 1, np.int64), np.zeros(0, np.uint8))

    def __len__(self) -> int:
        return len(self._offsets) - 1 if self._rows is None else len(self._rows)

    def __getitem__(self, key):
        if isinstance(key, slice):
            return self.take(np.arange(len(self))[key])
        if not -len(self) <= key < len(self):
            raise IndexError(f"row {key} of {len(self)}")
        row = key % len(self) if self._rows is None else int(self._rows[key])
        if self._nulls is not None and self._nulls[row]:
            return None
        return str(self._data[self._offsets[row] : self._offsets[row + 1]].data, "utf-8", _ERRORS)

    def __iter__(self) -> Iterator[str | None]:
        for texts in self.chunks():
            yield from texts

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def chunks(self) -> Iterator[list[str | None]]:
        """The strings in lists of at most `CHUNK`."""
        for start in range(0, len(self), CHUNK):
            yield self._decoded(start, min(start + CHUNK, len(self)))

    def _decoded(self, start: int, stop: int) -> list[str | None]:
        rows = self._rows
        if rows is None:
            low, ends = int(self._offsets[start]), self._offsets[start : stop + 1]
            nulls = None if self._nulls is None else self._nulls[start:stop]
            starts, ends = (ends[:-1] - low).tolist(), (ends[1:] - low).tolist()
            data = self._data[low : int(self._offsets[stop])].tobytes()
        else:
            rows = rows[start:stop]
            nulls = None if self._nulls is None else self._nulls[rows]
            starts, ends = self._offsets[rows].tolist(), self._offsets[rows + 1].tolist()
            data = self._data.data
        if rows is None and data.isascii():
            text = data.decode("ascii")
            found = [text[a:b] for a, b in zip(starts, ends, strict=True)]
        else:
            pairs = zip(starts, ends, strict=True)
            found = [str(data[a:b], "utf-8", _ERRORS) for a, b in pairs]
        if nulls is not None:
            for n in np.flatnonzero(nulls).tolist():
                found[n] = None
        return found

    def take(self, rows: np.ndarray) -> "Strings":
        """The rows of these numbers, or those of a mask, without copying text."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        rows = rows if self._rows is None else self._rows[rows]
        return Strings(self._offsets, self._data, self._nulls, rows)

    @property
    def null(self) -> np.ndarray:
        """The rows that are None: bool [N]."""
        if self._nulls is None:
            return np.zeros(len(self), bool)
        return self._nulls if self._rows is None else self._nulls[self._rows]

    @property
    def empty(self) -> np.ndarray:
        """The rows that are "" or None: bool [N]."""
        if self._rows is None:
            return np.diff(self._offsets) == 0
        return self._offsets[self._rows + 1] == self._offsets[self._rows]

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """(offsets, data, nulls) of a column that has all its rows, else of a copy of these."""
        if self._rows is None:
            return self._offsets, self._data, self._nulls
        return joined([self]).arrays()

    def ranks(self) -> np.ndarray:
        """Number of distinct smaller strings of each row, in the order of code points: int32 [N].
        None counts as ""."""
        if len(self) < FEW:
            texts = [text or "" for text in self]
            places = {text: place for place, text in enumerate(sorted(set(texts)))}
            return np.array([places[text] for text in texts], np.int32)
        if self.empty.all():
            return np.zeros(len(self), np.int32)
        import pyarrow
        import pyarrow.compute

        offsets, data, _ = self.arrays()
        buffers = [None, *(pyarrow.py_buffer(np.ascontiguousarray(a)) for a in (offsets, data))]
        found = pyarrow.Array.from_buffers(pyarrow.large_binary(), len(self), buffers)
        ranked = pyarrow.compute.rank(found, tiebreaker="dense")
        return ranked.to_numpy().astype(np.int32) - 1


class Builder:
    """Collects strings, and makes them a column."""

    def __init__(self):
        self._waiting: list[str | None] = []
        self._parts: list[Strings] = []

    def extend(self, values: Iterable[str | None]) -> None:
        self._waiting += values
        if len(self._waiting) >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        values, self._waiting = self._waiting, []
        nulls = np.fromiter((value is None for value in values), bool, len(values))
        if nulls.any():
            values = [value or "" for value in values]
        text = "".join(values)
        if text.isascii():
            data = text.encode("ascii")
            lengths = np.fromiter(map(len, values), np.int64, len(values))
        else:
            encoded = [value.encode("utf-8", _ERRORS) for value in values]
            data = b"".join(encoded)
            lengths = np.fromiter(map(len, encoded), np.int64, len(values))
        offsets = np.append(0, np.cumsum(lengths))
        found = np.frombuffer(data, np.uint8)
        self._parts.append(Strings(offsets, found, nulls if nulls.any() else None))

    def finish(self) -> Strings:
        """The column of all strings; the builder is empty again."""
        self._flush()
        parts, self._parts = self._parts, []
        return joined(parts)


def joined(parts: Sequence[Strings]) -> Strings:
    """The rows of several columns as one column, copied."""
    lengths, data, nulls = [], [], []
    for part in parts:
        offsets, rows = part._offsets, part._rows
        nulls.append(part.null)
        if rows is None:
            lengths.append(np.diff(offsets))
            data.append(part._data[int(offsets[0]) : int(offsets[-1])])
            continue
        for start in range(0, len(rows), CHUNK):
            starts = offsets[rows[start : start + CHUNK]]
            lengths.append(offsets[rows[start : start + CHUNK] + 1] - starts)
            data.append(part._data[_spans(starts, lengths[-1])])
    sizes = np.concatenate([np.zeros(0, np.int64), *lengths])
    missing = np.concatenate([np.zeros(0, bool), *nulls])
    text = np.concatenate([np.zeros(0, np.uint8), *data])
    return Strings(np.append(0, np.cumsum(sizes)), text, missing if missing.any() else None)


def _spans(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """start_0, ..., start_0 + size_0 - 1, start_1, ...: positions of spans."""
    before = np.cumsum(sizes) - sizes
    return np.arange(int(sizes.sum())) + np.repeat(starts - before, sizes)


class Coded(Sequence[str | None]):
    """Column of strings that repeat: `codes` [N] into the distinct `names`, -1 for None."""

    __slots__ = ("codes", "names")
    __hash__ = None

    def __init__(self, codes: np.ndarray, names: Strings):
        self.codes, self.names = codes, names

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, key):
        if isinstance(key, slice):
            return self.take(np.arange(len(self))[key])
        code = int(self.codes[key])
        return None if code < 0 else self.names[code]

    def __iter__(self) -> Iterator[str | None]:
        used, places = np.unique(self.codes, return_inverse=True)
        names = list(self.names.take(used[used >= 0]))
        names = [None, *names] if len(names) < len(used) else names
        return (names[place] for place in places.tolist())

    __eq__ = Strings.__eq__

    def take(self, rows: np.ndarray) -> "Coded":
        """The rows of these numbers, or those of a mask."""
        return Coded(self.codes[rows], self.names)

    @property
    def null(self) -> np.ndarray:
        """The rows that are None: bool [N]."""
        return self.codes < 0

    def ranks(self) -> np.ndarray:
        """As `Strings.ranks`."""
        used, places = np.unique(self.codes, return_inverse=True)
        found = self.names.take(used[used >= 0])
        ranks = np.append(-1, found.ranks())[-len(used) :] if len(used) else np.zeros(0, np.int32)
        return ranks.astype(np.int32)[places]


class Coder:
    """Collects strings that repeat, and makes them a `Coded` column."""

    def __init__(self):
        self._places: dict[str | None, int] = {}
        self._codes: list[np.ndarray] = [np.zeros(0, np.int32)]

    def extend(self, values: Sequence[str | None]) -> None:
        place, places = self._places.setdefault, self._places
        self._codes.append(np.array([place(value, len(places)) for value in values], np.int32))

    def finish(self) -> Coded:
        codes, names = np.concatenate(self._codes), list(self._places)
        if None in self._places:
            null = self._places[None]
            names.remove(None)
            codes = codes - (codes > null)
            codes[np.concatenate(self._codes) == null] = -1
        return Coded(codes.astype(np.int32), Strings.of(names))


class Numbers:
    """Collects numbers, and makes them an array of `dtype`."""

    def __init__(self, dtype: type = np.int64):
        self.dtype = dtype
        self._arrays: list[np.ndarray] = [np.zeros(0)]

    def extend(self, values: list) -> None:
        self._arrays.append(np.array(values))

    def finish(self) -> np.ndarray:
        return np.concatenate([array.astype(self.dtype) for array in self._arrays])


def joined_codes(parts: Sequence[Coded]) -> Coded:
    """The rows of several coded columns as one, names that occur in several once."""
    places: dict[str, int] = {}
    codes = [np.zeros(0, np.int32)]
    for part in parts:
        own = [places.setdefault(name, len(places)) for name in part.names]
        codes.append(np.array([*own, -1], np.int32)[part.codes])
    return Coded(np.concatenate(codes), Strings.of(places))


def character_counts(texts: Iterable[str]) -> Counter[str]:
    """How often each character occurs in all texts together."""
    counts = np.zeros(0x110000, np.int64)
    for chunk in texts.chunks() if isinstance(texts, Strings) else [list(texts)]:
        text = "".join(filter(None, chunk))
        if text.isascii():
            counts[:128] += np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=128)
        else:
            points = np.frombuffer(text.encode("utf-32-le", _ERRORS), np.uint32)
            found, numbers = np.unique(points, return_counts=True)
            counts[found] += numbers
    return Counter({chr(c): int(counts[c]) for c in np.flatnonzero(counts).tolist()})
