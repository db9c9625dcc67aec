"""Checkpoints: train state, best weights so far and open metric window as one unit, written by
Orbax.

`checkpoints/<step>/` holds the last few. A save that was cut short leaves a temporary folder, which
the next run removes; a restored step is always a committed one.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from bljust_jax.errors import UserError
from bljust_jax.system import TrainState, Weights

Tree = Any


class Checkpoints:
    """The checkpoints of one run; `keep` of them stay.

    A save that fails, at once or behind the run's back, is a `UserError` of the next `save` or of
    `close`; what it left is removed, and the checkpoints before it stay.
    """

    def __init__(self, workdir: pathlib.Path, keep: int = 1, *, read_only: bool = False):
        """`read_only`: leaves alone what a run that is still training may be writing."""
        self._folder = (workdir / "checkpoints").absolute()
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True)
        else:
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, best: Weights, meta: dict) -> None:
        """Asynchronous; all is copied before this returns, so the state may be donated and `meta`
        may change."""
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            best=ocp.args.StandardSave(best),
            meta=ocp.args.JsonSave(copy.deepcopy(meta)),
        )
        with self._saying_what_failed():
            self._manager.save(step, args=args, force=True)

    def restore(self, step: int, state: TrainState) -> tuple[TrainState, Weights, dict]:
        """(state, best weights, meta) of `step`, laid out as the abstract `state` says."""
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(state),
            best=ocp.args.StandardRestore(state.weights),
            meta=ocp.args.JsonRestore(),
        )
        found = self._manager.restore(step, args=args)
        return found.state, found.best, found.meta

    def restore_best(self, step: int, weights: Weights) -> Weights:
        """The best weights alone, laid out as the abstract `weights` say."""
        args = ocp.args.Composite(best=ocp.args.StandardRestore(weights))
        return self._manager.restore(step, args=args).best

    def close(self) -> None:
        """Wait until what was saved is on disk."""
        with self._saying_what_failed():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()

    @contextlib.contextmanager
    def _saying_what_failed(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError) as error:
            if isinstance(error, ValueError) and "os_error_code" not in str(error):
                raise
            for left in self._folder.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(left, ignore_errors=True)
            reason = re.search(r"([A-Z][a-z ]+) \[os_error_code", str(error))
            raise UserError(
                f"{self._folder}: a checkpoint could not be written: "
                f"{reason[1] if reason else error}; the checkpoints before it are whole: free some "
                "space and run the same command again"
            ) from error


def any_saved(workdir: pathlib.Path) -> bool:
    """Whether a run has left a checkpoint in `workdir`; touches nothing."""
    return any((workdir / "checkpoints").glob("[0-9]*"))


def _is_noise(record: logging.LogRecord) -> bool:
    """Orbax logs the traceback of each of its threads, and then raises the same error again; and
    three times, as warnings, that what was opened read-only is read-only."""
    repeated = record.exc_info is not None or re.search("read.only=", str(record.msg))
    return "orbax" in record.pathname and bool(repeated)


def _is_unwritten(record: logging.LogRecord) -> bool:
    """asyncio logs every write that failed beside the one that Orbax raises."""
    return "os_error_code" in str(record.exc_info and record.exc_info[1])


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


def digest(tree: Tree) -> str:
    """sha256 over paths, dtypes, shapes and bytes of all leaves: equal digests mean equal bits."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(jax.device_get(leaf))
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]
