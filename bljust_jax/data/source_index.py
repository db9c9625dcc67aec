"""Index of a large source: its utterances as columns in one Arrow file, mapped into memory.

A source of at least `LEAST` utterances whose reader has `listing(rest, root)`, the files that
declare them, is read once. The index lies beside the first of these files, or in
$XDG_CACHE_HOME/bljust_jax/index (~/.cache) where that folder cannot be written. It is used while
size and time of change of all listed files are those of the time of reading; a stale, damaged or
older index is made again. Every checksum is compared when it is opened.
"""

import hashlib
import json
import logging
import os
import pathlib
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bljust_jax.common.errors import one_line
from bljust_jax.common.files import expand_user, replacing
from bljust_jax.data.strings import Coded, Strings
from bljust_jax.data.utterances import KINDS, Utterance, Utterances

VERSION = 1
LEAST = 20_000  # utterances; fewer are read in seconds
_KEY = b"bljust_jax"

Read = Callable[[], Iterable[Utterance]]


def open_indexed(
    uri: str, root: str, listing: Sequence[str | os.PathLike], read: Read
) -> Utterances:
    """The utterances of a source: of its index if there is a fresh one, else those of `read`, which
    are written to one if they are many."""
    stamp = _stamp(uri, root, listing)
    if stamp is None or not listing:
        return Utterances.of(read())
    for path in _places(uri, root, listing):
        began = time.monotonic()
        try:
            found = _load(path, stamp, root, listing)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            logging.info("index %s: %s; reading %s again", path, one_line(error), uri)
            break
        took = time.monotonic() - began
        logging.info("%s: %d utterances from its index %s in %.1f s", uri, len(found), path, took)
        return found
    found = Utterances.of(read())
    if len(found) >= LEAST and not found.fetched and stamp == _stamp(uri, root, listing):
        mode = os.stat(listing[0]).st_mode & 0o666
        _store(found, stamp, _places(uri, root, listing), uri, mode)
    return found


def _faults(found: Utterances) -> list[list]:
    """[path, size, time of change] of the files with faults, which may be repaired."""
    paths = sorted(set(found.select(found.faulty).paths()))
    return [[path, *_status(path)] for path in paths]


def _status(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _stamp(uri: str, root: str, listing: Sequence[str | os.PathLike]) -> str | None:
    """What an index must agree with: version, source, sizes and times; None for missing files."""
    try:
        status = [(os.fspath(path), os.stat(path)) for path in listing]
    except OSError:
        return None
    files = [[path, found.st_size, found.st_mtime_ns] for path, found in status]
    return json.dumps([VERSION, uri, os.path.realpath(root) if root else "", files])


def _places(uri: str, root: str, listing: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
    """Where an index may lie: beside the first file of the listing, and in the user's cache."""
    first = pathlib.Path(listing[0])
    named = json.dumps([uri, root, os.fspath(first)])
    name = hashlib.blake2b(os.fsencode(named), digest_size=4).hexdigest()
    cache = os.environ.get("XDG_CACHE_HOME") or expand_user("~/.cache")
    file = f"{first.name}.index-{name}.arrow"
    return [first.with_name(file), pathlib.Path(cache, "bljust_jax", "index", file)]


def _store(found: Utterances, stamp: str, places: list[pathlib.Path], uri: str, mode: int) -> None:
    """Write the index to the first place that can be written, with the listing's permissions."""
    for path in places:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(found, stamp, path)
            path.chmod(mode)
        except OSError as error:
            logging.info("index %s cannot be written: %s", path, error.strerror or error)
            continue
        size = path.stat().st_size / 1e6
        logging.info("%s: %d utterances indexed in %s, %.0f MB", uri, len(found), path, size)
        return
    logging.warning("%s: no index can be written, so that each start reads all of it", uri)


def _write(found: Utterances, stamp: str, path: pathlib.Path) -> None:
    import pyarrow

    columns = found.columns
    arrays = {name: _to_arrow(pyarrow, columns[name]) for name in KINDS}
    batch = pyarrow.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
    key = json.dumps({"stamp": stamp, "faults": _faults(found), "crc32": _checksum(columns)})
    schema = batch.schema.with_metadata({_KEY: key.encode()})
    with replacing(path) as file, pyarrow.ipc.new_file(file, schema) as writer:
        writer.write_batch(batch.replace_schema_metadata(schema.metadata))


def _load(
    path: pathlib.Path, stamp: str, root: str, listing: Sequence[str | os.PathLike]
) -> Utterances:
    """The utterances of an index file; ValueError if it is stale or damaged, and OSError."""
    with path.open("rb"):
        pass
    import pyarrow

    try:
        file = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
        key = json.loads((file.schema.metadata or {}).get(_KEY, b"{}"))
        if key.get("stamp") != stamp:
            raise ValueError("the source has changed, or the index is of another version")
        checksum, faults = key["crc32"], key["faults"]
        batch = file.get_batch(0)
        batch.validate()
        columns = {name: _from_arrow(batch.column(name)) for name in KINDS}
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is damaged: {one_line(error)[:100]}") from error
    if _checksum(columns) != checksum:
        raise ValueError("it is damaged: its checksum differs")
    found = Utterances(columns, {})
    if _faults(found) != faults:
        raise ValueError("files with faults have changed")
    _check_paths(found, root, listing)
    return found


def _check_paths(found: Utterances, root: str, listing: Sequence[str | os.PathLike]) -> None:
    """ValueError if a path may lie outside the data root, by default the folder of the listing: if
    a folder has become a link, or the index is not that of this source."""
    first = os.path.abspath(listing[0])
    limit = os.path.realpath(root or os.path.dirname(first))
    for name in ("folder", "fetch"):
        for folder in found.column(name).names:
            real = os.path.realpath(folder)
            resolved = real == folder and os.path.commonpath([real, limit]) == limit
            own = not root and folder.startswith(f"{first}/") and ".." not in folder.split("/")
            if not resolved and not own:
                raise ValueError(f"{folder} lies elsewhere")
    _, names, _ = found.column("name").arrays()
    if np.any(names == ord("/")):
        raise ValueError("a file's name is a path")


def _to_arrow(pyarrow: Any, column: Any) -> Any:
    if isinstance(column, Strings):
        offsets, data, nulls = column.arrays()
        valid = None if nulls is None else np.packbits(~nulls, bitorder="little")
        buffers = [valid, offsets.astype(np.int64), data]
        buffers = [b if b is None else pyarrow.py_buffer(np.ascontiguousarray(b)) for b in buffers]
        return pyarrow.Array.from_buffers(pyarrow.large_binary(), len(column), buffers)
    if isinstance(column, Coded):
        codes = pyarrow.array(column.codes, pyarrow.int32(), mask=column.null)
        return pyarrow.DictionaryArray.from_arrays(codes, _to_arrow(pyarrow, column.names))
    return pyarrow.array(column)


def _from_arrow(array: Any) -> Any:
    if hasattr(array, "dictionary"):
        codes = array.indices
        null = codes.is_null().to_numpy(zero_copy_only=False)
        values = np.frombuffer(codes.buffers()[1], np.int32)[: len(codes)]
        return Coded(np.where(null, np.int32(-1), values), _from_arrow(array.dictionary))
    if array.type == "large_binary":
        _, offsets, data = array.buffers()
        offsets = np.frombuffer(offsets, np.int64)[: len(array) + 1]
        data = np.frombuffer(data or b"", np.uint8)[: int(offsets[-1])]
        null = array.is_null().to_numpy(zero_copy_only=False)
        return Strings(offsets, data, null if null.any() else None)
    return array.to_numpy(zero_copy_only=True)


def _checksum(columns: Mapping[str, Any]) -> int:
    """crc32 of the types and values of all columns."""
    total = 0
    for column in columns.values():
        for part in (column.codes, column.names) if isinstance(column, Coded) else (column,):
            arrays = part.arrays() if isinstance(part, Strings) else (part,)
            for array in arrays:
                if array is not None:
                    total = zlib.crc32(array.dtype.str.encode(), total)
                    total = zlib.crc32(np.ascontiguousarray(array).view(np.uint8), total)
    return total
