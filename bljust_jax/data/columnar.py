"""Parquet and Arrow files of a data set: columns of values, and bytes that stay in the file."""

import collections
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from bljust_jax.common.errors import UserError, one_line
from bljust_jax.data.byte_ranges import ByteRange

GROUP_BYTES = 1 << 29  # of row groups in memory, for all files
Fetch = Callable[[], bytes]


class Blob(NamedTuple):
    """An encoded file in a row: how to read it, None for none, and its path, "" for none."""

    fetch: Fetch | None
    path: str


def names(path: str) -> list[str]:
    """The columns of a *.parquet or *.arrow file. Raises UserError if it is damaged."""
    file = _open(path)
    return (file.schema_arrow if path.endswith(".parquet") else file.schema).names


def values(path: str, columns: Iterable[str]) -> dict[str, list[Any]]:
    """{column: its values, None for null} of the named columns."""
    columns = list(columns)
    try:
        file = _open(path)
        table = file.read(columns=columns) if path.endswith(".parquet") else file.select(columns)
        return {column: table[column].to_pylist() for column in columns}
    except (_arrow().ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def blobs(path: str, column: str) -> list[Blob]:
    """The files in a column of structs {bytes, path}, of bytes or of paths, one per row.

    Those of an Arrow file stay there; those of a Parquet file are read by row group. Raises
    UserError for a column of another kind.
    """
    arrow = _arrow()
    try:
        if path.endswith(".parquet"):
            return _parquet_blobs(path, column)
        mapped = arrow.memory_map(path)
        table = arrow.ipc.open_stream(mapped).read_all()
        mapped.seek(0)
        whole = mapped.read_buffer(mapped.size())
        found: list[Blob] = []
        for chunk in table[column].chunks:
            binary, paths = _parts(chunk, column, path)
            places = _places(binary, whole, path) if binary is not None else [None] * len(chunk)
            found += [Blob(*pair) for pair in zip(places, paths, strict=True)]
        return found
    except (arrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _arrow() -> Any:
    """The module pyarrow, with pyarrow.parquet."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("Parquet and Arrow files need pyarrow: pip install pyarrow") from error
    return pyarrow


def _damaged(path: str, error: Exception) -> UserError:
    kind = "Parquet" if path.endswith(".parquet") else "Arrow"
    return UserError(f"{path}: cannot be read as {kind}: {one_line(error)[:200]}; fetch it again")


def _open(path: str) -> Any:
    """A ParquetFile, or the table of a stream of Arrow batches, mapped into memory."""
    arrow = _arrow()
    try:
        if path.endswith(".parquet"):
            return arrow.parquet.ParquetFile(path, memory_map=True)
        return arrow.ipc.open_stream(arrow.memory_map(path)).read_all()
    except (arrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _parts(chunk: Any, column: str, path: str) -> tuple[Any, list[str]]:
    """(array of bytes or None, path of each row) of a chunk of audio."""
    types = _arrow().types
    kind, empty = chunk.type, [""] * len(chunk)
    if types.is_struct(kind):
        names = [field.name for field in kind]
        fields = dict(zip(names, chunk.flatten(), strict=True))  # null where the struct is
        paths = fields["path"].to_pylist() if "path" in fields else empty
        binary = fields.get("bytes")
        if "path" in fields if binary is None else _is_binary(binary.type):
            return binary, [value or "" for value in paths]
    elif types.is_string(kind) or types.is_large_string(kind):
        return None, [value or "" for value in chunk.to_pylist()]
    elif _is_binary(kind):
        return chunk, empty
    raise UserError(
        f"{path}: its column {column!r} is {kind}, no encoded audio; write it with the feature"
        " Audio(), as bytes and path"
    )


def _is_binary(kind: Any) -> bool:
    types = _arrow().types
    return types.is_binary(kind) or types.is_large_binary(kind)


def _places(binary: Any, whole: Any, path: str) -> list[ByteRange | None]:
    """The place in the file of each row's bytes, None for null; `whole`: the mapped file."""
    import numpy as np

    wide = _arrow().types.is_large_binary(binary.type)
    _, offsets, data = binary.buffers()
    ends = np.frombuffer(offsets, np.int64 if wide else np.int32)
    ends = ends[binary.offset : binary.offset + len(binary) + 1].tolist()
    start = data.address - whole.address if data is not None else 0
    if data is not None and not 0 <= start <= whole.size - data.size:
        raise UserError(f"{path}: its buffers are compressed; write it again without compression")
    there = binary.is_valid().to_pylist()
    pairs = zip(ends[:-1], ends[1:], there, strict=True)
    return [ByteRange(path, start + a, b - a) if valid else None for a, b, valid in pairs]


def _parquet_blobs(path: str, column: str) -> list[Blob]:
    """The files of a Parquet file; only their paths, and which are null, are read."""
    file = _open(path)
    found: list[Blob] = []
    kind = file.schema_arrow.field(column).type
    sample = _arrow().nulls(0, kind)
    binary, _ = _parts(sample, column, path)
    nested = _arrow().types.is_struct(kind) and "path" in {field.name for field in kind}
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        named, there = [""] * rows, [binary is not None] * rows
        if nested:
            read = file.read_row_group(group, columns=[f"{column}.path"])[column]
            named = [(value or {}).get("path") or "" for value in read.to_pylist()]
        elif binary is None:
            named = file.read_row_group(group, columns=[column])[column].to_pylist()
        nulls = _null_count(file.metadata.row_group(group), column)
        if binary is not None and nulls != 0:
            whole = nulls == rows
            there = [False] * rows if whole else _groups.get(path, column, group).is_valid()
        for row, (name, valid) in enumerate(zip(named, there, strict=True)):
            held = valid if isinstance(valid, bool) else valid.as_py()
            found.append(Blob(_Row(path, column, group, row) if held else None, name or ""))
    return found


def _null_count(group: Any, column: str) -> int | None:
    """Number of rows without bytes by the statistics of a row group; None without statistics."""
    for n in range(group.num_columns):
        chunk = group.column(n)
        if chunk.path_in_schema in (column, f"{column}.bytes"):
            return chunk.statistics.null_count if chunk.statistics else None
    return None


class _Row(NamedTuple):
    """Reads the bytes of a row of a Parquet file."""

    path: str
    column: str
    group: int
    row: int

    def __call__(self) -> bytes:
        return _groups.get(self.path, self.column, self.group)[self.row].as_py()


class _Groups:
    """Thread-safe LRU cache of the audio of row groups, limited in bytes."""

    def __init__(self, limit: int):
        self._limit, self._bytes = limit, 0
        self._kept: collections.OrderedDict = collections.OrderedDict()
        self._lock = threading.Lock()
        self._reading = [threading.Lock() for _ in range(64)]

    def get(self, path: str, column: str, group: int) -> Any:
        """The bytes of each row of a group; OSError if it is damaged."""
        key = (path, column, group)
        with self._reading[hash(key) % len(self._reading)]:
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key]
            found = self._read(path, column, group)
            with self._lock:
                self._kept[key] = found
                self._bytes += found.nbytes
                while self._bytes > self._limit and len(self._kept) > 1:
                    self._bytes -= self._kept.popitem(last=False)[1].nbytes
            return found

    @staticmethod
    def _read(path: str, column: str, group: int) -> Any:
        arrow = _arrow()
        try:
            file = arrow.parquet.ParquetFile(path, memory_map=True)
            nested = arrow.types.is_struct(file.schema_arrow.field(column).type)
            wanted = f"{column}.bytes" if nested else column
            table = file.read_row_group(group, columns=[wanted], use_threads=False)
            found = table[column].combine_chunks()
            return found.flatten()[0] if nested else found
        except (arrow.ArrowException, OSError) as error:
            raise OSError(f"row group {group} is damaged: {one_line(error)[:200]}") from error


_groups = _Groups(GROUP_BYTES)
