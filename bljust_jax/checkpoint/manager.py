"""Checkpoints: save and restore train state, best weights and run metadata, verified by checksums.

`checkpoints/<step>/` holds the last few steps, written by Orbax. An interrupted save leaves a
temporary folder, which the next run removes. A restored step is always a committed one, whose files
match the checksums written with it and whose arrays match the fingerprints computed on the devices.
A damaged step is renamed to `<step>.bad` and the step before it is restored; if none is valid, that
is a `UserError`: a run never starts anew over existing checkpoints.
"""

import contextlib
import copy
import errno
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from bljust_jax.bilevel.types import TrainState, Weights
from bljust_jax.checkpoint import integrity
from bljust_jax.checkpoint.orbax_workarounds import ChecksummedPath, abandon, error_code
from bljust_jax.common.errors import UserError, one_line

Tree = Any
# Format version, stored with each checkpoint. A change that older code cannot read raises it; each
# earlier version stays readable (tests/fixtures has a workdir of each).
#   1  state, best, meta = {"meta", "fingerprints"}; the version is not stored
#   2  the same, and meta["format"]
FORMAT = 2
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
BAD = ".bad"  # suffix of damaged steps


class Restored(NamedTuple):
    """A checkpoint: all that was saved."""

    step: int
    state: TrainState
    best: Weights
    meta: dict


class Checkpoints:
    """The checkpoints of one run.

    A failed save, synchronous or in the background, is a `UserError` of the next `save` or of
    `close`, or a warning if the disk is full and the policy is "warn"; its files are removed, and
    the checkpoints before it stay.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        keep: int = 1,
        *,
        keep_every: int = 0,
        keep_steps: Collection[int] = (),
        on_full_disk: str = "stop",
        read_only: bool = False,
    ):
        """keep, keep_every, keep_steps: the last `keep` steps are kept, and for good those that
            are multiples of `keep_every` (0: none) and those in `keep_steps`
        on_full_disk: "stop" or "warn"
        read_only: change nothing in the folder, which a running training may be writing, and
            verify only the files that `restore_best` reads

        UserError if no checkpoint is valid."""
        if on_full_disk == "warn" and jax.process_count() > 1:
            raise UserError(
                "config.on_full_disk='warn' is for one process alone, as others may have met no "
                "full disk: set it to 'stop', and start all again when there is space"
            )
        self._folder = (workdir / "checkpoints").absolute()
        self._read_only, self._on_full_disk = read_only, on_full_disk
        self._newest = self._find_newest()
        if read_only:
            self._options = ocp.CheckpointManagerOptions(read_only=True)
        else:
            kept = [policies.LatestN(keep), policies.CustomSteps(keep_steps)]
            kept += [policies.EveryNSteps(keep_every)] if keep_every else []
            self._options = ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=True,
                temporary_path_class=ChecksummedPath,
            )
        self._open()

    def latest(self) -> int | None:
        """The newest valid step when this object was made; None if nothing was saved yet."""
        return self._newest

    def save(self, step: int, state: TrainState, best: Weights, meta: dict) -> None:
        """Save in the background. Arrays and `meta` (JSON types) are copied before this returns, so
        the state may be donated."""
        with self._report_write_errors():
            self._manager.wait_until_finished()
        described = {"format": FORMAT, "meta": copy.deepcopy(meta)}
        described["fingerprints"] = integrity.fingerprints({"state": state, "best": best})
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            best=ocp.args.StandardSave(best),
            meta=ocp.args.JsonSave(described),
        )
        with self._report_write_errors():
            self._manager.save(step, args=args, force=True)

    def restore_newest(self, state: TrainState) -> Restored | None:
        """The newest valid checkpoint, with the shardings of the abstract `state`; None if nothing
        was saved yet. UserError if it has other arrays than `state` or a newer format."""
        assert not self._read_only
        while self._newest is not None:
            restored, changed = self._restore(self._newest, state)
            if not changed:
                return restored
            if jax.process_index() == 0:
                self._rename_damaged(
                    {self._newest: f"array {changed} is not the one that was saved"}
                )
            self._manager.reload()
            self._newest = self._find_newest()
        return None

    def restore_best(self, step: int, weights: Weights) -> Weights:
        """The best weights alone, with the shardings of the abstract `weights`. UserError for a
        newer format."""
        self._read_meta(step)
        args = ocp.args.Composite(best=ocp.args.StandardRestore(weights))
        return self._manager.restore(step, args=args).best

    def restore_fields(self, step: int, fields: Tree) -> Tree:
        """Some fields of the state of one step, verified: {"ema": arrays on the host, ...} for the
        abstract, replicated `fields`, {name of a field of `TrainState`: its tree}. UserError if
        there is no such step, if it is damaged, or of a newer format."""
        folder = self._folder / str(step)
        if not folder.is_dir():
            there = sorted(int(p.name) for p in _committed(self._folder) if p.suffix != BAD)
            raise UserError(
                f"{self._folder.parent} has no checkpoint {step}: there are "
                f"{', '.join(map(str, there))}"
            )
        damage = integrity.find_damage(folder, ("state", "meta"))
        if damage is None:
            saved = self._read_meta(step)["fingerprints"]
            with ocp.PyTreeCheckpointer() as reader:
                args = ocp.args.PyTreeRestore(
                    item=fields,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(fields),
                    partial_restore=True,
                )
                # host arrays, as the devices may be others than those of the mesh in use
                found = jax.tree.map(np.asarray, reader.restore(folder / "state", args=args))
            state = TrainState(**(dict.fromkeys(TrainState._fields) | found))
            hashes = integrity.fingerprints({"state": state})
            changed = (path for path, value in hashes.items() if saved.get(path) != value)
            damage = next((f"array {path} is not the one that was saved" for path in changed), None)
        if damage is not None:
            raise UserError(f"{folder} is damaged: {damage}; take another checkpoint")
        return found

    def close(self) -> None:
        """Wait until all saves are on disk."""
        if self._manager is None:
            return
        with self._report_write_errors():
            self._manager.wait_until_finished()
        self._manager.close()

    def _open(self) -> None:
        self._manager: Any = ocp.CheckpointManager(self._folder, options=self._options)

    def _read_meta(self, step: int) -> dict[str, Any]:
        """{"meta", "fingerprints", "format"}; UserError for a newer format than this code's."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        described = self._manager.restore(step, args=args).meta
        version = described.get("format", 1)
        if version > FORMAT:
            raise UserError(
                f"{self._folder / str(step)} has checkpoint format {version}, but this version of "
                f"bljust_jax reads formats up to {FORMAT}: update it, or name a new --workdir"
            )
        return described

    def _restore(self, step: int, state: TrainState) -> tuple[Restored, str]:
        """(the checkpoint, path of the first array that differs from its fingerprint or "")."""
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(state), best=ocp.args.StandardRestore(state.weights)
        )
        try:
            described = self._read_meta(step)
            found = self._manager.restore(step, args=args)
        except (KeyError, TypeError, ValueError) as error:
            if error_code(error) is not None:
                raise
            problem = f"{self._folder / str(step)} is of another config or version"
            why = f"{one_line(error)[:200]}; name a new --workdir"
            raise UserError(f"{problem}: {why}") from error
        saved = described["fingerprints"]
        arrays = integrity.fingerprints({"state": found.state, "best": found.best})
        changed = next((path for path, value in arrays.items() if saved.get(path) != value), "")
        return Restored(step, found.state, found.best, described["meta"]), changed

    def _find_newest(self) -> int | None:
        """The newest valid step, None if there is no step at all. The first process verifies the
        files and renames damaged steps."""
        no_step, none_valid = -1, -2
        step, damaged = no_step, {}
        if jax.process_index() == 0 and has_checkpoint(self._folder.parent):
            items = ("best", "meta") if self._read_only else None
            newest, damaged = _newest_valid(self._folder, items)
            step = none_valid if newest is None else newest
            if newest is not None:
                self._rename_damaged(damaged)
        if jax.process_count() > 1:
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if step == none_valid:
            why = "; ".join(f"step {n}: {reason}" for n, reason in damaged.items())
            raise UserError(
                f"{self._folder} holds no whole checkpoint ({why or 'all were damaged'}): put one "
                "back from a copy, or name a new --workdir to start afresh"
            )
        return None if step == no_step else step

    def _rename_damaged(self, damaged: dict[int, str]) -> None:
        """Warn of damaged steps {step: reason}, and rename them unless read-only."""
        for step, reason in damaged.items():
            folder, bad = self._folder / str(step), self._folder / f"{step}{BAD}"
            moved = "" if self._read_only else f", moved to {bad.name}"
            logging.warning("checkpoint %s is damaged: %s%s", folder, reason, moved)
            if not self._read_only:
                shutil.rmtree(bad, ignore_errors=True)
                folder.rename(bad)

    @contextlib.contextmanager
    def _report_write_errors(self) -> Iterator[None]:
        """Turn a failed write into a UserError, or into a warning by `on_full_disk`."""
        try:
            yield
        except (ValueError, OSError) as error:
            code = error_code(error)
            if code is None:
                raise
            manager, self._manager = self._manager, None
            abandon(manager, self._folder)
            problem = f"{self._folder}: a checkpoint could not be written: {os.strerror(code)}"
            if code in DISK_FULL and self._on_full_disk == "warn":
                logging.warning("%s; the run goes on, the checkpoints before it are whole", problem)
                self._open()
                return
            cure = "free some space" if code in DISK_FULL else "mend that"
            cure += " and run the same command again"
            raise UserError(f"{problem}; the checkpoints before it are whole: {cure}") from error


def _newest_valid(
    folder: pathlib.Path, items: Sequence[str] | None
) -> tuple[int | None, dict[int, str]]:
    """(the newest step whose files, or those of these items, match their checksums; {step: problem}
    of the steps after it)."""
    damaged = {}
    for step in sorted((int(p.name) for p in _committed(folder) if p.suffix != BAD), reverse=True):
        reason = integrity.find_damage(folder / str(step), items)
        if reason is None:
            return step, damaged
        if (folder / str(step)).exists():  # a running training may have removed it
            damaged[step] = reason
    return None, damaged


def _committed(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders of committed steps, damaged ones included."""
    return [p for p in folder.glob("[0-9]*") if re.fullmatch(rf"\d+(\{BAD})?", p.name)]


def has_checkpoint(workdir: pathlib.Path) -> bool:
    """Whether `workdir` holds a committed checkpoint, valid or damaged; changes nothing."""
    return bool(_committed(workdir / "checkpoints"))
