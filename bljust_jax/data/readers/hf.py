"""Reader of Hugging Face data sets on disk: `hf:DIR`, or `hf:DIR/SPLIT` where it holds several.

    data/train-00000-of-00004.parquet    Parquet as on the hub; also train/0000.parquet
    state.json, data-00000-of-00001.arrow    a folder of `save_to_disk`, one per split

A column of audio holds encoded files {bytes, path}, or paths relative to its file. Bytes are read
at their places in Arrow files, and by row groups in Parquet files; nothing is copied. Needs
pyarrow. (huggingface.co/docs/datasets/audio_dataset)
"""

import concurrent.futures
import itertools
import json
import os
import pathlib
import re
from typing import Any

from bljust_jax.common.errors import UserError, nearest
from bljust_jax.common.files import visible
from bljust_jax.data import columnar
from bljust_jax.data.listings import (
    Finder,
    match_columns,
    report_unlabelled,
    text_of,
    to_duration,
)
from bljust_jax.data.sources import Utterance, inside, nfc, require, with_durations

SUFFIXES = (".parquet", ".arrow")
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?")
# Segments of Hugging Face data sets are cut already; their times are of the original recording.
FIELDS = ("audio", "text", "translation", "id", "speaker", "lang", "duration")


def read(rest: str, root: str = "") -> list[Utterance]:
    """The rows of a split (`rest`, relative to a given `root`), in the order of its files.

    Columns are found by the names in `listings.COLUMNS`. id: by default the stems of the paths, if
    they are unique, else SPLIT-NUMBER. Without a duration, lengths are read from the audio's
    headers. A row without audio has a `fault`. Raises UserError for a missing or damaged file, a
    missing shard, several splits, and columns without audio.
    """
    what = f"hf:{rest}"
    split, files = _files(pathlib.Path(root, rest).absolute(), what)
    files = [pathlib.Path(inside(path, root, what)) for path in files]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        rows = pool.map(lambda path: _rows(str(path), root), files)
        rows = list(itertools.chain.from_iterable(rows))
    stems = [pathlib.PurePath(row["named"]).stem for row in rows]
    unique = all(stems) and len(set(stems)) == len(stems)
    found = []
    for number, (row, stem) in enumerate(zip(rows, stems, strict=True)):
        del row["named"]
        row["id"] = row["id"] or (stem if unique else f"{split}-{number}")
        row["speaker"] = row["speaker"] or row["id"]
        found.append(Utterance(offset=0.0, **row))
    return report_unlabelled(with_durations(found), what)


def _files(path: pathlib.Path, what: str) -> tuple[str, list[pathlib.Path]]:
    """(split, its files in order) of a folder, a folder's split, or a file."""
    if path.is_file() and path.suffix in SUFFIXES:
        return path.stem, [path]
    if path.is_dir():
        if (path / "state.json").is_file():
            return path.name, _saved(path)
        splits = _splits(path)
        if len(splits) == 1:
            return next(iter(splits.items()))
        if not splits:
            raise UserError(f"{what}: no *.parquet and no state.json in {path}; name the data set")
        raise UserError(
            f"{what}: holds several splits; name one as hf:DIR/SPLIT: {', '.join(sorted(splits))}"
        )
    require(path.parent, what, "name the folder of the data set, or a split in it")
    splits = _splits(path.parent)
    if path.name not in splits:
        raise UserError(f"{what}: there is no split {path.name!r}{nearest(path.name, splits)}")
    return path.name, splits[path.name]


def _saved(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of a folder of `save_to_disk`."""
    state = folder / "state.json"
    try:
        found = json.loads(state.read_text(encoding="utf-8"))
        names = [entry["filename"] for entry in found["_data_files"]]
        indices = found.get("_indices_data_files") or found.get("_indices_files")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{state}: is no state of save_to_disk: {error}; save it again") from error
    if indices:
        raise UserError(f"{state}: selects rows; save it again after flatten_indices()")
    for name in names:
        if not isinstance(name, str) or name != pathlib.PurePath(name).name:
            raise UserError(f"{state}: names {name!r}, no file of its folder; save it again")
        require(folder / name, str(state), "fetch it again", "file")
    return [folder / name for name in names]


def _splits(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """{split: its files} of a folder, by the names of files, or of the folders that hold them."""
    found: dict[str, list[pathlib.Path]] = {}
    counts: dict[tuple[str, str], int] = {}
    if (folder / "dataset_dict.json").is_file():
        saved = (p for p in folder.iterdir() if (p / "state.json").is_file())
        return {path.name: _saved(path) for path in sorted(saved)}
    for path in visible(folder.rglob("*.parquet")):
        shard = _SHARD.fullmatch(path.stem)
        if shard:
            split = shard["split"]
            counts[split, shard["count"]] = counts.get((split, shard["count"]), 0) + 1
        elif path.stem.isdigit():
            split = path.parent.name
        else:
            split = path.stem
        found.setdefault(split, []).append(path)
    for (split, count), held in counts.items():
        if held != int(count):
            problem = f"{held} of the {int(count)} files of split {split!r} are there"
            raise UserError(f"{folder}: {problem}; download the others")
    return found


def _rows(path: str, root: str) -> list[dict[str, Any]]:
    """The fields of the utterance in each row of a file, and `named`: the path of its audio."""
    names = columnar.names(path)
    places = match_columns(names, path)
    columns = {field: names[place] for field, place in places.items() if field in FIELDS}
    audio = columns.pop("audio")
    values = columnar.values(path, columns.values())
    rows = []
    for number, blob in enumerate(columnar.blobs(path, audio)):
        where = f"{path}:{number + 1}"
        row = {field: values[column][number] for field, column in columns.items()}
        rows.append(_row(row, blob, where, path, number, root))
    return rows


def _row(
    row: dict[str, Any], blob: columnar.Blob, where: str, path: str, number: int, root: str
) -> dict[str, Any]:
    texts = {field: _text(value, field, where) for field, value in row.items()}
    duration = texts.get("duration") or ""
    fields = {
        "path": f"{path}#{number}",
        "named": blob.path,
        "id": texts.get("id") or "",
        "duration": to_duration(duration, where) if duration else 0.0,
        "text": text_of(texts.get("text")),
        "lang": texts.get("lang") or "",
        "speaker": texts.get("speaker") or "",
        "line": where,
        "fetch": blob.fetch,
        "fault": "",
        "translation": text_of(texts.get("translation")),
    }
    if blob.fetch is None and not blob.path:
        fields["fault"] = f"{where}: has no audio; remove the row, or fetch the file again"
    elif blob.fetch is None:
        folder = os.path.dirname(path)
        limit = root or folder
        fields["path"] = Finder((folder, root or folder), limit).find(blob.path, where)
    return fields


def _text(value: Any, field: str, where: str) -> str:
    """The value of a column as text, "" for null; UserError for a list or an object."""
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise UserError(f"{where}: {field} must be a text or a number, not {type(value).__name__}")
    return nfc(str(value))
