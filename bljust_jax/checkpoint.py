"""Checkpoints: train state, best weights so far and open metric window as one unit, written by
Orbax.

`checkpoints/<step>/` holds the last few. A save that was cut short leaves a temporary folder, which
the next run removes; a restored step is always a committed one.
"""

from __future__ import annotations

import copy
import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from bljust_jax.system import TrainState, Weights

Tree = Any


class Checkpoints:
    """The checkpoints of one run; `keep` of them stay."""

    def __init__(self, workdir: pathlib.Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)

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
        self._manager.wait_until_finished()
        self._manager.close()


def digest(tree: Tree) -> str:
    """sha256 over paths, dtypes, shapes and bytes of all leaves: equal digests mean equal bits."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(jax.device_get(leaf))
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]
