"""ArrayRecord shards of a corpus, written, read and verified without TensorFlow.

OUT/SPLIT is one TFDS version folder with one split: records of encoded audio, and an index
`utterances-SPLIT.jsonl` with the labels of each utterance in the order of the records. It is
written as OUT/.SPLIT.incomplete and renamed when complete.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import io
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Int16

from bljust_jax.common import threads
from bljust_jax.common.errors import UserError, one_line
from bljust_jax.data import sources
from bljust_jax.data.sources import Utterance, read_audio, read_lines, write_json_lines

NAME, VERSION = "bljust_speech", "1.0.0"
SHARD_BYTES = 256 << 20
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


# Writing


def write(
    utterances: Sequence[Utterance],
    out: str | os.PathLike,
    split: str,
    *,
    sample_rate: int = 16000,
    shards: int | None = None,
    max_bad_fraction: float = 0.01,
    progress: Progress = lambda done, total, seconds: None,
) -> Summary:
    """Write `read_audio(u, sample_rate)` of each utterance as FLAC, in order, as OUT/SPLIT.

    Training from the shards gives the same bits as from the source: the duration and the fields of
    LABELS are unchanged, and `offset` keeps its fraction of a sample, so that crops round to the
    same samples. (Crops of resampled WAV or FLAC differ: the source resamples each crop alone.)
    shards: largest number of files; None: as many as keep each near SHARD_BYTES.
    Corrupt audio is skipped and listed in OUT/quarantine-SPLIT.jsonl. Raises UserError if OUT/SPLIT
    exists, for a wrong name, or if more than `max_bad_fraction` is corrupt, and OSError if OUT
    cannot be written; no OUT/SPLIT remains then.
    """
    if not re.fullmatch(r"\w[\w-]*", split, re.ASCII) or split == "all":
        raise UserError(f"split {split!r} must be of letters, digits, - and _, and not 'all'")
    final = pathlib.Path(out, split).absolute()
    if final.exists():
        raise UserError(f"{final} exists already; remove it, or choose another --split or --out")
    # an estimate: FLAC takes about 9 of 16 bits per sample
    size = 9 / 8 * sample_rate * sum(u.duration for u in utterances) + 1
    per_file = math.ceil(len(utterances) / (shards or math.ceil(size / SHARD_BYTES)))
    index: list[dict] = []
    bad: list[dict] = []
    try:
        with _scratch(final.with_name(f".{split}.incomplete")) as work:
            records = _encoded(utterances, sample_rate, max_bad_fraction, progress, index, bad)
            _store(records, split, work, per_file)
            write_json_lines(index_path(work, split), index)
            work.rename(final)
    finally:
        listing = final.with_name(f"quarantine-{split}.jsonl")
        listing.unlink(missing_ok=True)
        if bad:
            write_json_lines(listing, bad)
    return dataclasses.replace(_summary(final, index), bad=len(bad))


@contextlib.contextmanager
def _scratch(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder, locked by this process and removed at the end; what a killed run left in it
    is deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise UserError(f"{folder}: another process is writing there; wait for its end") from error
    try:
        for path in folder.iterdir():
            path.unlink()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _store(records: Iterator[dict], split: str, folder: pathlib.Path, per_shard: int) -> None:
    """Stream records into ArrayRecord files and write TFDS's description of them.

    (TFDS's GeneratorBasedBuilder needs TensorFlow above 1 GB, to shuffle.)
    """
    api = tfds()
    text, number = api.features.Text(), np.int64
    names = dict.fromkeys(LABELS, text) | {"samples": number}
    audio = api.features.Scalar(np.object_)  # bytes of a FLAC file
    identity = api.core.DatasetIdentity(
        name=NAME, version=api.core.Version(VERSION), data_dir=str(folder), module_name=__name__
    )
    info = api.core.DatasetInfo(
        builder=identity,
        description="Utterances of a speech corpus, in the order of their source.",
        features=api.features.FeaturesDict({"audio": audio, **names}),
        disable_shuffling=True,
    )
    writer = api.core.SequentialWriter(info, per_shard, file_format="array_record")
    writer.initialize_splits([split])
    try:
        while chunk := list(itertools.islice(records, 100)):  # each call rewrites the description
            writer.add_examples({split: chunk})
        writer.close_all()
    except RuntimeError as error:  # ArrayRecord's, for instance where the disk is full
        raise OSError(one_line(error)) from error


def _encoded(
    utterances: Sequence[Utterance],
    sample_rate: int,
    limit: float,
    progress: Progress,
    index: list[dict],
    bad: list[dict],
) -> Iterator[dict]:
    """Records of the utterances, encoded by threads; appends to `index`, or to `bad`. UserError if
    more than a share `limit` is bad, or all."""
    seconds, total = 0.0, len(utterances)
    encoded = _by_threads(functools.partial(_encode, sample_rate=sample_rate), utterances)
    for done, (u, found) in enumerate(zip(utterances, encoded, strict=True), start=1):
        if isinstance(found, UserError):
            bad.append({"id": u.id, "path": u.path, "line": u.line, "reason": str(found)})
            if len(bad) > limit * total:
                raise UserError(
                    f"{found}; {len(bad)} of {total} utterances are bad by now, more than"
                    f" --max_bad_fraction={limit:g} allows"
                ) from found
        else:
            audio, samples, sha256 = found
            labels = {name: getattr(u, name) for name in LABELS}
            offset = u.offset - round(u.offset * sample_rate) / sample_rate
            times = {"offset": offset, "duration": u.duration, "sha256": sha256}
            index.append({**labels, **times})
            stored = {name: value or "" for name, value in labels.items()}  # None for no text
            yield {**stored, "audio": audio, "samples": samples}
        seconds += u.duration
        progress(done, total, seconds)
    if not index:
        raise UserError(f"none of {total} utterances can be decoded")


def _encode(u: Utterance, *, sample_rate: int) -> tuple[bytes, int, str] | UserError:
    """(FLAC file, number of samples, sha256 of the samples), or the error for corrupt audio."""
    if u.fault:
        return UserError(u.fault)
    try:
        samples = read_audio(u, sample_rate)
    except UserError as error:
        return error
    return sources.encode_audio(samples, sample_rate, "FLAC"), len(samples), checksum(samples)


def checksum(samples: Int16[np.ndarray, "s"]) -> str:
    """sha256 of the samples as little-endian bytes, in hexadecimal."""
    return hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()


def _by_threads(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    count = os.cpu_count() or 1
    return threads.in_order(function, items, threads=count, ahead=4 * count)


def _summary(folder: pathlib.Path, index: list[dict]) -> Summary:
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Summary(str(folder), len(index), math.fsum(row["duration"] for row in index), size)


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
    """Decode every record of a folder written by `write` and compare checksums with the index.

    Raises UserError naming the first record that differs, cannot be read or is missing.
    """
    rows = list(_rows(folder, split))
    utterances = read(folder, split)
    records = Records(folder, split)
    if len(records) != len(rows):
        raise UserError(f"{folder}: {len(records)} records, but the index lists {len(rows)}")
    seconds = 0.0
    checksums = _by_threads(_stored_checksum, utterances)
    for done, ((row, where), found) in enumerate(zip(rows, checksums, strict=True), start=1):
        if found != row["sha256"]:
            problem = f"the samples of {row['id']!r} are not those that were stored ({found})"
            raise UserError(f"{where}: {problem}; prepare the shards again")
        seconds += row["duration"]
        progress(done, len(rows), seconds)
    return _summary(pathlib.Path(folder), [row for row, _ in rows])


def _stored_checksum(u: Utterance) -> str:
    """Checksum of the stored samples of an utterance, or the reason why it cannot be read."""
    try:
        samples, _ = soundfile.read(io.BytesIO(u.fetch()), dtype="int16")
    except (soundfile.SoundFileError, OSError) as error:
        return str(error)
    return checksum(samples)
