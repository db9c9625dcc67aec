"""ArrayRecord shards of a corpus, read and verified without TensorFlow.

OUT/SPLIT is one TFDS version folder with one split: records of encoded audio, and an index
`utterances-SPLIT.jsonl` with the labels of each utterance in the order of the records.
`shard_writing.write` makes it.
"""

import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Int16

from bljust_jax.common import threads
from bljust_jax.common.errors import UserError, one_line
from bljust_jax.data.sources import Utterance, read_lines

NAME, VERSION = "bljust_speech", "1.0.0"
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"  # TFDS's names of shards
# Fields of an utterance that are stored; the others are of its place in a corpus
LABELS = ("id", "text", "translation", "lang", "speaker", "part")
ADDED = ("translation", "part")  # an index of an earlier version lacks them

# Called with (done, total, seconds of audio done) after each utterance.
Progress = Callable[[int, int, float], None]


@dataclasses.dataclass(frozen=True)
class Summary:
    """Utterances written or verified, `seconds` of audio in `bytes` on disk; `bad`: skipped."""

    folder: str
    utterances: int
    seconds: float
    bytes: int
    bad: int = 0


def tfds() -> Any:
    """The module tensorflow_datasets, without network access and progress bars."""
    import tensorflow_datasets
    from tensorflow_datasets.core.utils import gcs_utils

    gcs_utils._is_gcs_disabled = True
    tensorflow_datasets.disable_progress_bar()
    return tensorflow_datasets


def index_path(folder: str | os.PathLike, split: str) -> pathlib.Path:
    """Path of the index of a folder written by `write`."""
    return pathlib.Path(folder, f"utterances-{split}.jsonl")


def shard_name(split: str, number: int) -> str:
    """Name of a shard."""
    return f"{NAME}-{split}.array_record-{number:05d}"


def checksums_path(folder: str | os.PathLike, split: str) -> pathlib.Path:
    """Path of the sha256 of each shard, in the format of `sha256sum`; folders of earlier versions
    have none."""
    return pathlib.Path(folder, f"shards-{split}.sha256")


def file_checksum(path: pathlib.Path) -> tuple[int, str]:
    """(bytes, their sha256 in hexadecimal) of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def checksum(samples: Int16[np.ndarray, "s"]) -> str:
    """sha256 of the samples as little-endian bytes, in hexadecimal."""
    return hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()


def by_threads(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    count = os.cpu_count() or 1
    return threads.in_order(function, items, threads=count, ahead=4 * count)


def summarise(folder: pathlib.Path, durations: Sequence[float]) -> Summary:
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Summary(str(folder), len(durations), math.fsum(durations), size)


# Reading


class Records:
    """Thread-safe access to the records of one split of a TFDS folder; opened at the first read."""

    def __init__(self, folder: str, split: str):
        self.folder, self.split = folder, split
        self._source: Any = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open())

    def sample_rate(self, feature: str) -> int | None:
        """Sample rate of a feature in Hz, if the folder declares it."""
        return getattr(self._open().dataset_info.features[feature], "sample_rate", None)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """The i-th record; OSError if its shard is damaged or missing."""
        source = self._open()
        try:
            return source[i]
        except RuntimeError as error:  # ArrayRecord's
            raise OSError(f"record {i}: {one_line(error)}") from error

    def _open(self) -> Any:
        with self._lock:
            if self._source is None:
                try:
                    builder = tfds().builder_from_directory(self.folder)
                    self._source = builder.as_data_source(self.split)
                except Exception as error:
                    raise UserError(explain(self.folder, error)) from error
        return self._source

    def encoded(self, i: int, identity: str) -> bytes:
        """The audio file in the i-th record of a folder written by `write`; UserError for a record
        of another id."""
        record = self[i]
        found = record["id"].decode()
        if found != identity:
            where = f"{index_path(self.folder, self.split)}:{i + 1}"
            problem = f"names {identity!r}, but the record holds {found!r}"
            raise UserError(f"{where}: {problem}; prepare the shards again")
        return record["audio"]


def explain(what: str, error: Exception) -> str:
    """Message with the cure for a folder or data set that TFDS cannot open."""
    reason = one_line(error)[:200]
    if isinstance(error, ImportError) and "tensorflow" in reason.lower():
        return (
            f"tfds:{what}: its features need TensorFlow: `pip install tensorflow-cpu"
            " importlib_resources`, or name a folder made by `python -m bljust_jax.prepare`"
        )
    if "Random access data source" in reason:
        return (
            f"tfds:{what}: only the file format array_record can be read at random: build the data"
            " set again with `tfds build --file_format=array_record`"
        )
    return f"tfds:{what}: TFDS cannot open it: {reason or type(error).__name__}"


def read(folder: str, split: str) -> list[Utterance]:
    """The utterances of a folder written by `write`, from its index alone; reads no audio.

    Raises UserError naming a damaged line of the index.
    """
    records, found = Records(folder, split), []
    for i, (row, where) in enumerate(_rows(folder, split)):
        try:
            labels = {name: row[name] for name in LABELS if name in row or name not in ADDED}
            offset, duration = float(row["offset"]), float(row["duration"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: lacks {error}; prepare the shards again") from error
        place = {"path": f"{folder}#{i}", "offset": offset, "duration": duration, "line": where}
        fetch = functools.partial(records.encoded, i, labels["id"])
        found.append(Utterance(**labels, **place, fetch=fetch))
    return found


def _rows(folder: str, split: str) -> Iterator[tuple[dict, str]]:
    """(object, "file:line") of each line of an index."""
    for where, line in read_lines(index_path(folder, split)):
        try:
            yield json.loads(line), where
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: is not JSON; prepare the shards again") from error


def verify(
    folder: str, split: str, progress: Progress = lambda done, total, seconds: None
) -> Summary:
    """Decode every record of a folder written by `write` and compare checksums with the index, then
    the bytes of each shard with its checksum.

    Raises UserError naming the first record that differs, cannot be read or is missing, or the
    first such shard.
    """
    rows = list(_rows(folder, split))
    utterances = read(folder, split)
    records = Records(folder, split)
    if len(records) != len(rows):
        raise UserError(f"{folder}: {len(records)} records, but the index lists {len(rows)}")
    seconds = 0.0
    checksums = by_threads(_stored_checksum, utterances)
    for done, ((row, where), found) in enumerate(zip(rows, checksums, strict=True), start=1):
        if found != row["sha256"]:
            problem = f"the samples of {row['id']!r} are not those that were stored ({found})"
            raise UserError(f"{where}: {problem}; prepare the shards again")
        seconds += row["duration"]
        progress(done, len(rows), seconds)
    _verify_shards(pathlib.Path(folder), split)
    return summarise(pathlib.Path(folder), [row["duration"] for row, _ in rows])


def _verify_shards(folder: pathlib.Path, split: str) -> None:
    """UserError for a shard of other bytes than were written."""
    path = checksums_path(folder, split)
    if not path.is_file():  # of an earlier version
        return
    for where, line in read_lines(path):
        wanted, _, name = line.strip().partition("  ")
        try:
            _, found = file_checksum(folder / name)
        except OSError as error:
            found = error.strerror or str(error)
        if found != wanted:
            problem = f"{name} does not have the bytes that were written ({found})"
            raise UserError(f"{where}: {problem}; prepare the shards again")


def _stored_checksum(u: Utterance) -> str:
    """Checksum of the stored samples of an utterance, or the reason why it cannot be read."""
    try:
        samples, _ = soundfile.read(io.BytesIO(u.fetch()), dtype="int16")
    except (soundfile.SoundFileError, OSError) as error:
        return str(error)
    return checksum(samples)
