"""Parts of a corpus, each written as one ArrayRecord shard, in any process.

Finished parts are found again after a kill. A part depends on its utterances and the sample rate
only, and so do the bytes of its files: `part-00003.array_record`, then `part-00003.json`, whose
presence marks the part as finished.
"""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bljust_jax.common.errors import UserError, one_line
from bljust_jax.common.files import read_json, write_text
from bljust_jax.data import sources
from bljust_jax.data.shards import LABELS, NAME, TEMPLATE, VERSION, checksum, file_checksum, tfds
from bljust_jax.data.sources import read_audio
from bljust_jax.data.utterances import Utterance

# An encoded utterance: (FLAC file, number of samples, their sha256), or why it has none
Encoded = tuple[bytes, int, str] | UserError


class Part(NamedTuple):
    """Utterances `start` to `stop` - 1 of a corpus. plan: fingerprint of what is written of them,
    64 hexadecimal digits."""

    number: int
    start: int
    stop: int
    plan: str

    def records(self, folder: pathlib.Path) -> pathlib.Path:
        """Path of the ArrayRecord file."""
        return folder / f"part-{self.number:05d}.array_record"

    def rows(self, folder: pathlib.Path) -> pathlib.Path:
        """Path of its description, a `Written` as JSON."""
        return folder / f"part-{self.number:05d}.json"


class Written(NamedTuple):
    """A finished part. rows: its lines of the index; bad: those of the quarantine; bytes: of its
    records; size, sha256: of its file."""

    plan: str
    rows: list[dict]
    bad: list[dict]
    bytes: int
    size: int
    sha256: str


def split(utterances: Sequence[Utterance], sample_rate: int, per_part: int) -> list[Part]:
    """The corpus in parts of `per_part` utterances, the last one shorter."""
    found = []
    for number, start in enumerate(range(0, len(utterances), per_part)):
        members = utterances[start : start + per_part]
        plan = fingerprint(members, sample_rate)
        found.append(Part(number, start, start + len(members), plan))
    return found


def fingerprint(members: Sequence[Utterance], sample_rate: int) -> str:
    """sha256 of everything that the files of a part depend on, but the audio itself."""
    digest = hashlib.sha256(json.dumps([VERSION, sample_rate]).encode())
    for u in members:
        labels = [getattr(u, name) for name in LABELS]
        row = json.dumps([*labels, u.path, u.offset, u.duration, u.fault])
        digest.update(row.encode(errors="surrogatepass"))
    return digest.hexdigest()


def finished(part: Part, folder: pathlib.Path) -> Written | None:
    """The part as an earlier run left it in the folder; None if it is unfinished, damaged or of
    another plan."""
    try:
        found = Written(**read_json(part.rows(folder)))
        whole = found.size == part.records(folder).stat().st_size
    except (OSError, ValueError, TypeError):
        return None
    same = len(found.rows) + len(found.bad) == part.stop - part.start
    return found if whole and same and found.plan == part.plan else None


def encode(u: Utterance, *, sample_rate: int) -> Encoded:
    """`read_audio(u, sample_rate)` as FLAC; for corrupt audio the error."""
    if u.fault:
        return UserError(u.fault)
    try:
        samples = read_audio(u, sample_rate)
    except UserError as error:
        return error
    return sources.encode_audio(samples, sample_rate, "FLAC"), len(samples), checksum(samples)


def write(
    part: Part, encoded: Iterable[tuple[Utterance, Encoded]], sample_rate: int, folder: pathlib.Path
) -> Written:
    """Write the files of a part, each when it is complete; `encoded`: its utterances in order.

    The same part gives the same bytes in each process. Raises OSError if it cannot be written.
    """
    rows: list[dict] = []
    bad: list[dict] = []
    path = part.records(folder)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        size = _store(scratch, _records(encoded, sample_rate, rows, bad))
        made = Written(part.plan, rows, bad, size, *file_checksum(scratch))
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    write_text(part.rows(folder), json.dumps(made._asdict()))
    return made


def _records(
    encoded: Iterable[tuple[Utterance, Encoded]],
    sample_rate: int,
    rows: list[dict],
    bad: list[dict],
) -> Iterator[dict]:
    """The records of decodable utterances; fills rows of the index and rows on corrupt audio."""
    for u, made in encoded:
        if isinstance(made, UserError):
            bad.append(bad_row(u, made))
            continue
        audio, samples, sha256 = made
        labels = {name: getattr(u, name) for name in LABELS}
        offset = u.offset - round(u.offset * sample_rate) / sample_rate
        rows.append({**labels, "offset": offset, "duration": u.duration, "sha256": sha256})
        stored = {name: value or "" for name, value in labels.items()}  # None for no text
        yield {**stored, "audio": audio, "samples": samples}


def bad_row(u: Utterance, error: UserError) -> dict[str, str]:
    """A line of the quarantine."""
    return {"id": u.id, "path": u.path, "line": u.line, "reason": str(error)}


def _store(path: pathlib.Path, records: Iterable[dict]) -> int:
    """Write an ArrayRecord file, on disk at return; the bytes of its records."""
    from array_record.python.array_record_module import ArrayRecordWriter

    described = features()
    serializer, total = _serializer(), 0
    try:
        writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
        try:
            for record in records:
                example = serializer.get_tf_example(described.encode_example(record))
                # in one order of fields, for equal bytes in each process
                encoded = example.SerializeToString(deterministic=True)
                writer.write(encoded)
                total += len(encoded)
        finally:
            writer.close()
    except RuntimeError as error:  # ArrayRecord's, for instance where the disk is full
        raise OSError(one_line(error)) from error
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return total


@functools.cache
def _serializer() -> Any:
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    return ExampleSerializer(features().get_serialized_info())


@functools.cache
def features() -> Any:
    """TFDS's description of a record: a FLAC file, its labels and its number of samples."""
    api = tfds()
    names = dict.fromkeys(LABELS, api.features.Text()) | {"samples": np.int64}
    audio = api.features.Scalar(np.object_)  # bytes of a FLAC file
    return api.features.FeaturesDict({"audio": audio, **names})


def describe(folder: pathlib.Path, split: str, counts: Sequence[int], size: int) -> None:
    """Write TFDS's description of a folder of shards with `counts` records each, `size` bytes."""
    core = tfds().core
    identity = core.DatasetIdentity(
        name=NAME, version=core.Version(VERSION), data_dir=str(folder), module_name=__name__
    )
    info = core.DatasetInfo(
        builder=identity,
        description="Utterances of a speech corpus, in the order of their source.",
        features=features(),
        disable_shuffling=True,
    )
    info.set_file_format("array_record")
    template = core.ShardedFileTemplate(
        data_dir=folder,
        dataset_name=NAME,
        split=split,
        filetype_suffix="array_record",
        template=TEMPLATE,
    )
    found = core.SplitInfo(
        name=split, shard_lengths=list(counts), num_bytes=size, filename_template=template
    )
    info.set_splits(core.SplitDict([found]))
    info.write_to_directory(folder)
