"""Where arrays live: one mesh from the config, one regex table for the state, the batch split over
all devices.

`config.mesh = {data, fsdp}`: `data` replicates the parameters, `fsdp` splits them; the batch is
split over both. The loop holds no parallel code: it puts arrays with these shardings and XLA
inserts the collectives.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bljust_jax.errors import UserError
from bljust_jax.system import TrainState

Tree = Any
AXES = ("data", "fsdp")

# First match wins. "split" puts the largest divisible axis over `fsdp`; "replicate" copies.
# Optimizer state and EMA end in the same path as their parameter, so one table serves all.
RULES: tuple[tuple[str, str], ...] = (
    (r"(^|/)(step|stats|count|levels)(/|$)", "replicate"),
    (r".*", "split"),
)


def make_mesh(data: int, fsdp: int) -> Mesh:
    """The mesh of `data * fsdp` devices; data = -1 takes all that fsdp leaves."""
    count = jax.device_count()
    data = count // fsdp if data == -1 else data
    if data * fsdp > count or data < 1 or fsdp < 1:
        raise UserError(
            f"config.mesh: data={data} x fsdp={fsdp} devices wanted, {count} found; "
            "lower one of them"
        )
    devices = jax.devices()[: data * fsdp]
    return jax.make_mesh((data, fsdp), AXES, devices=devices, axis_types=(AxisType.Auto,) * 2)


def spec(name: str, shape: Sequence[int], fsdp: int) -> P:
    """The PartitionSpec of one array by its path and shape."""
    rule = next(rule for pattern, rule in RULES if re.search(pattern, name))
    if rule == "replicate" or fsdp == 1:
        return P()
    axes = [a for a in np.argsort(shape, kind="stable")[::-1] if shape[a] and shape[a] % fsdp == 0]
    return P(*(("fsdp" if a == axes[0] else None) for a in range(len(shape)))) if axes else P()


def state_sharding(state: TrainState, mesh: Mesh, path_name) -> TrainState:
    """A `NamedSharding` for each leaf of the state (abstract or concrete)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: NamedSharding(mesh, spec(path_name(path), x.shape, mesh.shape["fsdp"])),
        state,
    )


def place(abstract: Tree, placed: Tree) -> Tree:
    """The abstract arrays, each with the sharding that `placed` has for it."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, placed
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over every device."""
    return NamedSharding(mesh, P(AXES))


def put_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Host rows -> global arrays. Each process passes its own rows."""
    where = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.tree.map(lambda x: jax.device_put(x, where), batch)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(where, x), batch)


def put_whole(batch: Tree, mesh: Mesh) -> Tree:
    """Rows that every process has all of -> global arrays."""
    where = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.tree.map(lambda x: jax.device_put(x, where), batch)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, where, x.__getitem__), batch
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device, which every process can fetch."""
    return NamedSharding(mesh, P())


def to_host(tree: Tree) -> Tree:
    """numpy arrays, on every process; all call it, as what lies on others is gathered."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
