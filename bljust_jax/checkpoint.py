"""Checkpoints: the whole train state and the open metric window as one unit, written by Orbax.

`checkpoints/<step>/` holds the last few states, `best/<step>/` the EMA weights with the best dev
score. A save that was cut short leaves a temporary folder, which the next run removes; a restored
step is always a committed one.
"""

from __future__ import annotations

import copy
import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from bljust_jax.step import TrainState

Tree = Any


class Checkpoints:
    """The two folders of one run."""

    def __init__(self, workdir: pathlib.Path, keep: int):
        def manager(name: str, keep: int) -> ocp.CheckpointManager:
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
            return ocp.CheckpointManager((workdir / name).absolute(), options=options)

        self._steps = manager("checkpoints", keep)
        self._best = manager("best", 1)

    def latest(self) -> int | None:
        return self._steps.latest_step()

    def save(self, step: int, state: TrainState, meta: dict) -> None:
        """Asynchronous; arrays and `meta` are copied before this returns, so the state may be
        donated and `meta` may change."""
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(copy.deepcopy(meta))
        )
        self._steps.save(step, args=args, force=True)

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict]:
        """The state of `step`, laid out as `abstract` (shapes, dtypes, shardings) says."""
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
        )
        found = self._steps.restore(step, args=args)
        return found.state, found.meta

    def save_best(self, step: int, ema: Tree) -> None:
        """Keep these weights as the best so far; a run that was killed after it kept them keeps
        them again."""
        if step in self._best.all_steps():
            self._best.delete(step)
        for later in [s for s in self._best.all_steps() if s > step]:
            self._best.delete(later)
        self._best.save(step, args=ocp.args.Composite(ema=ocp.args.StandardSave(ema)), force=True)

    def restore_best(self, step: int, abstract: Tree) -> Tree:
        args = ocp.args.Composite(ema=ocp.args.StandardRestore(abstract))
        return self._best.restore(step, args=args).ema

    def wait(self) -> None:
        self._steps.wait_until_finished()
        self._best.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._steps.close()
        self._best.close()


def digest(tree: Tree) -> str:
    """sha256 over paths, dtypes, shapes and bytes of all leaves: equal digests mean equal bits."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(jax.device_get(leaf))
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]
