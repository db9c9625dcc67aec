"""Files: written whole or not at all, read with damaged lines left out; paths with `~`."""

import contextlib
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, Any

from bljust_jax.common.errors import UserError, one_line


def expand_user(path: str) -> str:
    """The path with `~` or `~name` at its beginning replaced by the user's home folder.

    Raises UserError if that is unknown: HOME is unset and the user has no entry in passwd.
    """
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path and not os.path.exists(path):
        raise UserError(f"{path}: the home folder of the user is unknown; set HOME, or name it")
    return expanded


def visible(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """The paths in order, without names that begin with a dot, such as macOS's `._name`."""
    return sorted(path for path in paths if not path.name.startswith("."))


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a UTF-8 file by `replacing`. Bytes of file names that are no text are written as they
    are."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", errors="surrogateescape"))


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Context with a new binary file, which replaces the one of that name when it is on disk; an
    error in the context leaves the old one as it is."""
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        with scratch.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise


def require_writable(path: pathlib.Path) -> None:
    """Raise OSError if a file of that name cannot be written; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:100]}."):
        pass


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file; a byte order mark is skipped. Raises ValueError for a damaged
    file, and OSError."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_arrays(path: pathlib.Path) -> dict[str, Any]:
    """The arrays of an .npz file. Raises ValueError for a damaged file or one with pickled objects,
    and OSError."""
    import numpy as np

    # numpy leaves a file open that it opened and could not read
    with path.open("rb") as opened:
        try:
            with np.load(opened, allow_pickle=False) as file:
                return dict(file)
        except Exception as error:  # of zipfile, zlib, ast, ...: each byte has its own
            raise ValueError(one_line(error) or type(error).__name__) from error


def read_json_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The objects of a file of one JSON object per line.

    Lines that are none are left out, with a warning: a killed run leaves an incomplete last line, a
    loss of power zeros, two writers lines within lines. Raises OSError, and ValueError if no line
    is whole.
    """
    rows, damaged = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged.append(number)
    if damaged and not rows:
        raise ValueError("no line is a JSON object")
    if damaged:
        first = f"line {damaged[0]}" if len(damaged) == 1 else f"the first is line {damaged[0]}"
        logging.warning("%s: %d damaged lines left out, %s", path, len(damaged), first)
    return rows
