"""Write a corpus as ArrayRecord shards: by all cores, in order, resumable after a kill.

OUT/SPLIT is written as OUT/.SPLIT.incomplete and renamed when complete. A killed run leaves that
folder; the same call goes on after its last finished shard.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from bljust_jax.common.errors import UserError, one_line
from bljust_jax.common.files import read_json, write_text
from bljust_jax.data import sources
from bljust_jax.data.shards import (
    LABELS,
    NAME,
    VERSION,
    Progress,
    Summary,
    by_threads,
    checksum,
    index_path,
    summarise,
    tfds,
)
from bljust_jax.data.sources import Utterance, read_audio, write_json_lines

SHARD_BYTES = 256 << 20
CHUNK = 100  # records between two descriptions on disk
PLAN, BAD = "plan.json", "bad.jsonl"  # files of an incomplete folder


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
    Finished shards of a killed run with the same utterances and arguments are kept. Corrupt audio
    is skipped and listed in OUT/quarantine-SPLIT.jsonl. Raises UserError if OUT/SPLIT exists, for a
    wrong name, or if more than `max_bad_fraction` is corrupt, and OSError if OUT cannot be written;
    no OUT/SPLIT remains then.
    """
    if not re.fullmatch(r"\w[\w-]*", split, re.ASCII) or split == "all":
        raise UserError(f"split {split!r} must be of letters, digits, - and _, and not 'all'")
    final = pathlib.Path(out, split).absolute()
    if final.exists():
        raise UserError(f"{final} exists already; remove it, or choose another --split or --out")
    # an estimate: FLAC takes about 9 of 16 bits per sample
    size = 9 / 8 * sample_rate * sum(u.duration for u in utterances) + 1
    per_file = math.ceil(len(utterances) / (shards or math.ceil(size / SHARD_BYTES)))
    bad: list[dict] = []
    try:
        with _scratch(final.with_name(f".{split}.incomplete")) as work:
            plan = _plan(utterances, sample_rate, per_file)
            with contextlib.closing(_Unfinished(work, split, plan)) as done:
                bad = done.bad
                records = _encoded(utterances, sample_rate, max_bad_fraction, progress, done)
                _store(records, split, work, per_file)
            for name in (PLAN, BAD):
                (work / name).unlink()
            work.rename(final)
    finally:
        listing = final.with_name(f"quarantine-{split}.jsonl")
        listing.unlink(missing_ok=True)
        if bad:
            write_json_lines(listing, bad)
    return dataclasses.replace(summarise(final, done.durations), bad=len(bad))


@contextlib.contextmanager
def _scratch(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder locked by this process, with what a killed run left in it; an error removes it, an
    interruption leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise UserError(f"{folder}: another process is writing there; wait for its end") from error
    try:
        yield folder
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _plan(utterances: Sequence[Utterance], sample_rate: int, per_file: int) -> str:
    """Fingerprint of what a run writes, 64 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps([VERSION, sample_rate, per_file]).encode())
    for u in utterances:
        labels = [getattr(u, name) for name in LABELS]
        row = json.dumps([*labels, u.path, u.offset, u.duration, u.fault])
        digest.update(row.encode(errors="surrogatepass"))
    return digest.hexdigest()


class _Unfinished:
    """The index and the corrupt utterances of an incomplete folder, on disk as they are found.

    position: of the first utterance that is not in a finished shard; durations: of those before it,
    in seconds; bad: rows on corrupt ones.
    """

    def __init__(self, folder: pathlib.Path, split: str, plan: str):
        self.position = 0
        self.durations: list[float] = []
        self.bad: list[dict] = []
        self._folder, self._index_path = folder, index_path(folder, split)
        rows, bad = self._kept(plan)
        if rows is None:
            for path in folder.iterdir():
                path.unlink()
            write_text(folder / PLAN, json.dumps({"plan": plan}))
        else:
            self.position = len(rows) + len(bad)
            self.durations = [row["duration"] for row in rows]
            self.bad = [{k: v for k, v in row.items() if k != "position"} for row in bad]
            logging.warning(
                "%s: %d utterances are written already; going on after them", folder, len(rows)
            )
        write_json_lines(self._index_path, rows or [])
        write_json_lines(folder / BAD, bad)
        self._index = self._index_path.open("ab")
        self._bad = (folder / BAD).open("ab")

    def _kept(self, plan: str) -> tuple[list[dict] | None, list[dict]]:
        """(rows of the index in finished shards, rows on corrupt utterances before their end); None
        without a folder of this plan."""
        try:
            if read_json(self._folder / PLAN) != {"plan": plan}:
                return None, []
            (described,) = read_json(self._folder / "dataset_info.json")["splits"]
            finished = sum(map(int, described["shardLengths"]))
            rows = _whole_rows(self._index_path)[:finished]
            bad = _whole_rows(self._folder / BAD)
        except (OSError, ValueError, KeyError, TypeError):
            return None, []
        if not finished or len(rows) < finished:
            return None, []
        end, kept = finished, []
        for row in bad:
            if row["position"] < end:
                end += 1
                kept.append(row)
        return rows, kept

    def add(self, row: dict) -> None:
        """Add a row of the index."""
        self.durations.append(row["duration"])
        _append(self._index, row)

    def add_bad(self, position: int, row: dict) -> None:
        """Add a row on a corrupt utterance."""
        self.bad.append(row)
        _append(self._bad, {"position": position, **row})

    def close(self) -> None:
        """Close the files; the index is then on disk."""
        os.fsync(self._index.fileno())
        self._index.close()
        self._bad.close()


def _append(file: IO[bytes], row: Mapping[str, Any]) -> None:
    """Write a row before the record that it describes."""
    file.write((json.dumps(row, ensure_ascii=False) + "\n").encode(errors="surrogateescape"))
    file.flush()


def _whole_rows(path: pathlib.Path) -> list[dict]:
    """The rows before a last line that a kill cut."""
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _store(records: Iterator[dict], split: str, folder: pathlib.Path, per_shard: int) -> None:
    """Stream records into ArrayRecord files after those that TFDS's description in the folder
    lists, and bring that up to date.

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
    form = {"file_format": "array_record", "overwrite": False}
    writer = api.core.SequentialWriter(info, per_shard, **form)
    writer.initialize_splits([split], fail_if_exists=False)
    try:
        while chunk := list(itertools.islice(records, CHUNK)):  # each rewrites the description
            writer.add_examples({split: chunk})
        writer.close_all()
    except RuntimeError as error:  # ArrayRecord's, for instance where the disk is full
        raise OSError(one_line(error)) from error


def _encoded(
    utterances: Sequence[Utterance],
    sample_rate: int,
    limit: float,
    progress: Progress,
    found: _Unfinished,
) -> Iterator[dict]:
    """Records of the utterances after the finished ones, encoded by threads; lists each in `found`.
    UserError if more than a share `limit` is bad, or all."""
    total, start = len(utterances), found.position
    seconds = math.fsum(u.duration for u in utterances[:start])
    rest = utterances[start:]
    encoded = by_threads(functools.partial(_encode, sample_rate=sample_rate), rest)
    for position, (u, made) in enumerate(zip(rest, encoded, strict=True), start=start):
        if isinstance(made, UserError):
            row = {"id": u.id, "path": u.path, "line": u.line, "reason": str(made)}
            found.add_bad(position, row)
            if len(found.bad) > limit * total:
                raise UserError(
                    f"{made}; {len(found.bad)} of {total} utterances are bad by now, more than"
                    f" --max_bad_fraction={limit:g} allows"
                ) from made
        else:
            audio, samples, sha256 = made
            labels = {name: getattr(u, name) for name in LABELS}
            offset = u.offset - round(u.offset * sample_rate) / sample_rate
            times = {"offset": offset, "duration": u.duration, "sha256": sha256}
            found.add({**labels, **times})
            stored = {name: value or "" for name, value in labels.items()}  # None for no text
            yield {**stored, "audio": audio, "samples": samples}
        seconds += u.duration
        progress(position + 1, total, seconds)
    if not found.durations:
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
