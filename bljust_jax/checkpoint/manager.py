"""Checkpoints: train state, best weights so far and open metric window as one unit, written by
Orbax.

`checkpoints/<step>/` holds the last few. A save that was cut short leaves a temporary folder, which
the next run removes; a restored step is always a committed one, whose files have the sums that were
written with it and whose arrays have the fingerprints that they had on the devices. A damaged step
is moved to `<step>.bad`, for good, and the one before it is taken; where none is whole, that is a
`UserError`: a run never starts afresh over what it finds.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import logging
import os
import pathlib
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.path import atomicity

from bljust_jax.bilevel.types import TrainState, Weights
from bljust_jax.checkpoint import integrity
from bljust_jax.common.errors import UserError

Tree = Any


class Restored(NamedTuple):
    """A checkpoint: all that was saved."""

    step: int
    state: TrainState
    best: Weights
    meta: dict


class Checkpoints:
    """The checkpoints of one run.

    A save that fails, at once or behind the run's back, is a `UserError` of the next `save` or of
    `close`, or a warning where the disk is full and the policy says so; what it left is removed,
    and the checkpoints before it stay.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        keep: int = 1,
        *,
        keep_every: int = 0,
        on_full_disk: str = "stop",
        read_only: bool = False,
    ):
        """The last `keep` stay, and those of every `keep_every`-th step (0: none) for good.
        `on_full_disk`: "stop" or "warn". `read_only`: leaves alone what a run that is still
        training may be writing, and looks into what `restore_best` reads alone. UserError where no
        checkpoint is whole."""
        if on_full_disk == "warn" and jax.process_count() > 1:
            raise UserError(
                "config.on_full_disk='warn' is for one process alone, as others may have met no "
                "full disk: set it to 'stop', and start all again when there is space"
            )
        self._folder = (workdir / "checkpoints").absolute()
        self._read_only, self._on_full_disk = read_only, on_full_disk
        self._newest = self._choose()
        if read_only:
            self._options = ocp.CheckpointManagerOptions(read_only=True)
        else:
            self._options = ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                keep_period=keep_every or None,
                cleanup_tmp_directories=True,
                temporary_path_class=_Summed,
            )
        self._open()

    def latest(self) -> int | None:
        """The newest step that is whole, when this was made; None where nothing was saved yet."""
        return self._newest

    def save(self, step: int, state: TrainState, best: Weights, meta: dict) -> None:
        """Asynchronous; all is copied before this returns, so the state may be donated and `meta`
        may change."""
        with self._saying_what_failed():
            self._manager.wait_until_finished()
        described = {"meta": copy.deepcopy(meta)}
        described["fingerprints"] = integrity.fingerprints({"state": state, "best": best})
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            best=ocp.args.StandardSave(best),
            meta=ocp.args.JsonSave(described),
        )
        with self._saying_what_failed():
            self._manager.save(step, args=args, force=True)

    def restore_newest(self, state: TrainState) -> Restored | None:
        """The newest checkpoint that is whole, laid out as the abstract `state` says; None where
        nothing was saved yet. UserError where it has other arrays than `state`."""
        assert not self._read_only
        while self._newest is not None:
            found, changed = self._restore(self._newest, state)
            if not changed:
                return found
            if jax.process_index() == 0:
                self._set_aside({self._newest: f"array {changed} is not the one that was saved"})
            self._manager.reload()
            self._newest = self._choose()
        return None

    def restore_best(self, step: int, weights: Weights) -> Weights:
        """The best weights alone, laid out as the abstract `weights` say."""
        args = ocp.args.Composite(best=ocp.args.StandardRestore(weights))
        return self._manager.restore(step, args=args).best

    def close(self) -> None:
        """Wait until what was saved is on disk."""
        if self._manager is None:
            return
        with self._saying_what_failed():
            self._manager.wait_until_finished()
        self._manager.close()

    def _open(self) -> None:
        self._manager: Any = ocp.CheckpointManager(self._folder, options=self._options)

    def _restore(self, step: int, state: TrainState) -> tuple[Restored, str]:
        """The checkpoint, and the path of an array that is not the one saved, "" without."""
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(state),
            best=ocp.args.StandardRestore(state.weights),
            meta=ocp.args.JsonRestore(),
        )
        try:
            found = self._manager.restore(step, args=args)
        except (KeyError, TypeError, ValueError) as error:
            if _error_code(error) is not None:
                raise
            raise UserError(
                f"{self._folder / str(step)} is of another config or version: "
                f"{' '.join(str(error).split())[:200]}; name a new --workdir"
            ) from error
        saved = found.meta["fingerprints"]
        arrays = integrity.fingerprints({"state": found.state, "best": found.best})
        changed = next((path for path, value in arrays.items() if saved.get(path) != value), "")
        return Restored(step, found.state, found.best, found.meta["meta"]), changed

    def _choose(self) -> int | None:
        """The newest step that is whole, None where there is no step at all; the first process
        looks, and moves aside what it found damaged."""
        nothing, none_whole = -1, -2
        step, damaged = nothing, {}
        if jax.process_index() == 0 and any_saved(self._folder.parent):
            parts = ("best", "meta") if self._read_only else None
            newest, damaged = _newest_whole(self._folder, parts)
            step = none_whole if newest is None else newest
            if newest is not None:
                self._set_aside(damaged)
        if jax.process_count() > 1:
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if step == none_whole:
            why = "; ".join(f"step {n}: {reason}" for n, reason in damaged.items())
            raise UserError(
                f"{self._folder} holds no whole checkpoint ({why or 'all were damaged'}): put one "
                "back from a copy, or name a new --workdir to start afresh"
            )
        return None if step == nothing else step

    def _set_aside(self, damaged: dict[int, str]) -> None:
        for step, reason in damaged.items():
            folder, bad = self._folder / str(step), self._folder / f"{step}{BAD}"
            moved = "" if self._read_only else f", moved to {bad.name}"
            logging.warning("checkpoint %s is damaged: %s%s", folder, reason, moved)
            if not self._read_only:
                shutil.rmtree(bad, ignore_errors=True)
                folder.rename(bad)

    @contextlib.contextmanager
    def _saying_what_failed(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError) as error:
            code = _error_code(error)
            if code is None:
                raise
            self._abandon_manager()
            said = f"{self._folder}: a checkpoint could not be written: {os.strerror(code)}"
            if code in FULL and self._on_full_disk == "warn":
                logging.warning("%s; the run goes on, the checkpoints before it are whole", said)
                self._open()
                return
            cure = "free some space" if code in FULL else "mend that"
            raise UserError(
                f"{said}; the checkpoints before it are whole: {cure} and run the same command "
                "again"
            ) from error

    def _abandon_manager(self) -> None:
        """It never is rid of its error, may still be writing, and among several would wait for the
        others; what it left is removed."""
        manager, self._manager = self._manager, None
        if jax.process_count() == 1:
            with contextlib.suppress(ValueError, OSError):
                manager.close()
            for thread in threading.enumerate():
                if type(thread).__module__.startswith("orbax."):
                    threading.Thread.join(thread, timeout=10)
        for _ in range(4):  # threads that nobody can wait for may still be making folders
            for left in self._folder.glob(f"*{TEMPORARY}*"):
                shutil.rmtree(left, ignore_errors=True)
            time.sleep(0.1)


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
TEMPORARY = atomicity.TMP_DIR_SUFFIX


def _error_code(error: Exception) -> int | None:
    """The system's number for what a write met; None for an error of another kind."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else None


class _Summed(atomicity.AtomicRenameTemporaryPath):
    """A step whose sums are written when all its files are, and before it has its name: no kill
    leaves a step without them. Its parts (state, best, meta) get their names as usual."""

    async def finalize(self) -> None:
        step = self._final_path
        if TEMPORARY in step.parent.name:
            return await super().finalize()
        self._final_path = step.with_name(f"{self.get().name}-whole")
        await super().finalize()
        whole, self._final_path = self._final_path, step
        integrity.write_sums(pathlib.Path(whole))
        whole.rename(step)


def _newest_whole(
    folder: pathlib.Path, parts: Sequence[str] | None
) -> tuple[int | None, dict[int, str]]:
    """(the newest step of which all files, or those of these parts, are as they were saved; what is
    wrong with those after it)."""
    damaged = {}
    for step in sorted((int(p.name) for p in _steps(folder) if p.suffix != BAD), reverse=True):
        reason = integrity.find_damage(folder / str(step), parts)
        if reason is None:
            return step, damaged
        if (folder / str(step)).exists():  # a run at work may have removed it
            damaged[step] = reason
    return None, damaged


BAD = ".bad"


def _steps(folder: pathlib.Path) -> list[pathlib.Path]:
    """Of the steps that were committed, the damaged ones too."""
    return [p for p in folder.glob("[0-9]*") if re.fullmatch(rf"\d+(\{BAD})?", p.name)]


def any_saved(workdir: pathlib.Path) -> bool:
    """Whether a run has left a checkpoint in `workdir`, be it damaged; touches nothing."""
    return bool(_steps(workdir / "checkpoints"))


class Timer:
    """Whether `minutes` have gone by since the last save; asked for at every step, it looks at the
    clock of the first process before each `every`-th: all processes get the same answer."""

    def __init__(self, minutes: float | int, every: int):
        """`minutes` 0: never."""
        self._seconds, self._every = 60 * minutes, every
        self.restart()

    def restart(self) -> None:
        self._began = time.monotonic()

    def is_due(self, step: int) -> bool:
        if self._seconds == 0 or step % self._every:
            return False
        due = time.monotonic() - self._began >= self._seconds
        if jax.process_count() > 1:
            due = bool(multihost_utils.broadcast_one_to_all(np.bool_(due)))
        return due


def _is_noise(record: logging.LogRecord) -> bool:
    """Orbax logs the traceback of each of its threads, and then raises the same error again; and
    three times, as warnings, that what was opened read-only is read-only."""
    repeated = record.exc_info is not None or re.search("read.only=", str(record.msg))
    return "orbax" in record.pathname and bool(repeated)


def _is_unwritten(record: logging.LogRecord) -> bool:
    """asyncio logs every write that failed beside the one that Orbax raises."""
    error = record.exc_info and record.exc_info[1]
    return isinstance(error, Exception) and _error_code(error) is not None


logging.getLogger("absl").addFilter(lambda record: not _is_noise(record))
logging.getLogger("asyncio").addFilter(lambda record: not _is_unwritten(record))


def _is_left_behind(unraisable: Any) -> bool:
    """Where one of Orbax's writes fails, Python tells of each of the others: that nobody waits for
    them any more, and that their event loop is closed."""
    code = getattr(unraisable.object, "cr_code", None)
    ours = code is not None and "orbax" in code.co_filename
    return ours or str(unraisable.exc_value) == "Event loop is closed"


def _tell_unraisable(unraisable: Any, tell: Any = sys.unraisablehook) -> None:
    if not _is_left_behind(unraisable):
        tell(unraisable)


sys.unraisablehook = _tell_unraisable
