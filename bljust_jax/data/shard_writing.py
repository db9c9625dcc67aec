"""Write a corpus as ArrayRecord shards: by all cores, in order, resumable after a kill.

OUT/SPLIT is written as OUT/.SPLIT.incomplete and renamed when complete. A killed run leaves that
folder; the same call goes on after its last finished shard.
"""

import contextlib
import dataclasses
import fcntl
import functools
import itertools
import json
import logging
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence

from bljust_jax.common.errors import UserError
from bljust_jax.common.files import replacing, write_text
from bljust_jax.data import shard_parts
from bljust_jax.data.shard_parts import Encoded, Part
from bljust_jax.data.shards import (
    Progress,
    Summary,
    by_threads,
    checksums_path,
    index_path,
    shard_name,
    summarise,
)
from bljust_jax.data.sources import write_json_lines
from bljust_jax.data.utterances import Utterance

SHARD_BYTES = 256 << 20
OTHER_MACHINES = "all machines must read and write --out under one path"

# Called with the unfinished parts and their folder: writes the files of each.
Executor = Callable[[Sequence[Part], pathlib.Path], None]


def write(
    utterances: Sequence[Utterance],
    out: str | os.PathLike,
    split: str,
    *,
    sample_rate: int = 16000,
    shards: int | None = None,
    max_bad_fraction: float = 0.01,
    progress: Progress = lambda done, total, seconds: None,
    executor: Executor | None = None,
) -> Summary:
    """Write `read_audio(u, sample_rate)` of each utterance as FLAC, in order, as OUT/SPLIT.

    Training from the shards gives the same bits as from the source: the duration and the fields of
    LABELS are unchanged, and `offset` keeps its fraction of a sample, so that crops round to the
    same samples. (Crops of resampled WAV or FLAC differ: the source resamples each crop alone.)
    shards: largest number of files; None: as many as keep each near SHARD_BYTES. executor: writes
    the parts elsewhere (`beam_shards`); None: the cores of this machine. The files have the same
    bytes by either, each with its sha256 in the file that `shards.checksums_path` names.
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
    total = len(utterances)
    listing = Quarantined(final.with_name(f"quarantine-{split}.jsonl"), total, max_bad_fraction)
    try:
        with _scratch(final.with_name(f".{split}.incomplete")) as work:
            parts = shard_parts.split(
                utterances, sample_rate, _per_part(utterances, sample_rate, shards)
            )
            todo = _unfinished(parts, work, listing)
            if executor:
                executor(todo, work)
            else:
                _write_here(utterances, todo, sample_rate, work, listing, progress)
            durations = _finish(parts, work, split, listing)
            work.rename(final)
    finally:
        listing.write()
    return dataclasses.replace(summarise(final, durations), bad=len(listing.rows))


def _per_part(utterances: Sequence[Utterance], sample_rate: int, shards: int | None) -> int:
    """Number of utterances per shard."""
    # an estimate: FLAC takes about 9 of 16 bits per sample
    size = 9 / 8 * sample_rate * sum(u.duration for u in utterances) + 1
    return max(1, math.ceil(len(utterances) / (shards or math.ceil(size / SHARD_BYTES))))


class Unfinished(UserError):
    """Some parts were not written; the finished ones are kept for the next call."""


class Quarantined:
    """Rows on corrupt audio, of which a share `limit` of `total` utterances is allowed."""

    def __init__(self, path: pathlib.Path, total: int, limit: float):
        self.rows: list[dict] = []
        self._path, self._total, self._limit = path, total, limit

    def add(self, row: dict) -> None:
        """Add a row; UserError if it is one too many."""
        self.rows.append(row)
        if len(self.rows) > self._limit * self._total:
            raise UserError(
                f"{row['reason']}; {len(self.rows)} of {self._total} utterances are bad by now, "
                f"more than --max_bad_fraction={self._limit:g} allows"
            )

    def write(self) -> None:
        """Write the listing; without rows, remove that of an earlier run."""
        self._path.unlink(missing_ok=True)
        if self.rows:
            write_json_lines(self._path, self.rows)


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
    except Unfinished:
        raise
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _unfinished(parts: Sequence[Part], work: pathlib.Path, listing: Quarantined) -> list[Part]:
    """The parts to write; removes all files but those of finished ones."""
    kept, todo = set(), []
    for part in parts:
        found = shard_parts.finished(part, work)
        if found is None:
            todo.append(part)
        else:
            kept |= {part.records(work), part.rows(work)}
            for row in found.bad:
                listing.add(row)
    for path in work.iterdir():
        if path not in kept:
            path.unlink()
    done = sum(part.stop - part.start for part in parts) - sum(p.stop - p.start for p in todo)
    if done:
        logging.warning("%s: %d utterances are written already; going on after them", work, done)
    return todo


def _write_here(
    utterances: Sequence[Utterance],
    todo: Sequence[Part],
    sample_rate: int,
    work: pathlib.Path,
    listing: Quarantined,
    progress: Progress,
) -> None:
    """Write the parts one after the other, their audio decoded and encoded by all cores."""
    rest = [n for part in todo for n in range(part.start, part.stop)]
    total, done = len(utterances), len(utterances) - len(rest)
    seconds = math.fsum(u.duration for u in utterances) - math.fsum(
        utterances[n].duration for n in rest
    )
    encode = functools.partial(shard_parts.encode, sample_rate=sample_rate)
    encoded = by_threads(lambda n: (utterances[n], encode(utterances[n])), rest)

    def counted() -> Iterator[tuple[Utterance, Encoded]]:
        nonlocal done, seconds
        for u, made in encoded:
            if isinstance(made, UserError):
                listing.add(shard_parts.bad_row(u, made))
            done, seconds = done + 1, seconds + u.duration
            progress(done, total, seconds)
            yield u, made

    members = counted()
    for part in todo:
        shard_parts.write(
            part, itertools.islice(members, part.stop - part.start), sample_rate, work
        )


def _finish(
    parts: Sequence[Part], work: pathlib.Path, split: str, listing: Quarantined
) -> list[float]:
    """Turn the folder of finished parts into a TFDS folder with index and checksums; the durations
    of its utterances. A part without decodable audio becomes no shard."""
    listing.rows.clear()  # now in the order of the source
    durations: list[float] = []
    kept, checksums, size = [], "", 0
    with replacing(index_path(work, split)) as index:
        for part in parts:
            made = shard_parts.finished(part, work)
            if made is None:
                raise UserError(f"{part.rows(work)} is missing; {OTHER_MACHINES}")
            for row in made.bad:
                listing.add(row)
            for row in made.rows:
                durations.append(row["duration"])
                line = json.dumps(row, ensure_ascii=False) + "\n"
                index.write(line.encode(errors="surrogateescape"))
            if made.rows:
                checksums += f"{made.sha256}  {shard_name(split, len(kept))}\n"
                kept.append((part, len(made.rows)))
                size += made.bytes
    if not kept:
        raise UserError(f"none of {len(listing.rows)} utterances can be decoded")
    shard_parts.describe(work, split, [count for _, count in kept], size)
    write_text(checksums_path(work, split), checksums)
    for number, (part, _) in enumerate(kept):
        part.records(work).rename(work / shard_name(split, number))
    for part in parts:
        part.records(work).unlink(missing_ok=True)
        part.rows(work).unlink()
    return durations
