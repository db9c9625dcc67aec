"""The device mesh of `config.mesh`, and the shardings of state (by `rules.py`) and batch on it.

    axis of the mesh   splits                                        config.mesh
    dcn                the batch, over slices of a pod               dcn
    data               the batch                                     data
    fsdp               the batch; parameters and optimizer state     fsdp
    tensor             attention heads and feed-forward units        tensor

The loop holds no parallel code: it puts arrays with these shardings and XLA inserts the
collectives. Over `dcn` and `data` only gradients are summed; over `fsdp` parameters are gathered
before their use and gradients scattered after it; over `tensor` the outputs of attention and of
feed-forwards are summed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bljust_jax.common.errors import UserError
from bljust_jax.parallel.rules import spec

Tree = Any
AXES = ("dcn", "data", "fsdp", "tensor")
BATCH = AXES[:-1]


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, dcn: int = 1) -> Mesh:
    """The mesh of dcn * data * fsdp * tensor devices; data = -1 takes all that the others leave.
    UserError for numbers that the devices cannot have."""
    given = {"dcn": dcn, "data": data, "fsdp": fsdp, "tensor": tensor}
    devices, asked = jax.devices(), ", ".join(f"{name}={n}" for name, n in given.items())
    if min(n for name, n in given.items() if name != "data") < 1:
        raise UserError(f"config.mesh: {asked}: each must be at least 1")
    others = math.prod(n for name, n in given.items() if name != "data")
    if given["data"] == -1:
        given["data"] = len(devices) // others
    wanted = others * given["data"]
    if not 1 <= wanted <= len(devices):
        raise UserError(f"config.mesh: {asked} in all, but {len(devices)} found; lower one of them")
    if jax.local_device_count() % given["tensor"]:
        raise UserError(
            f"config.mesh.tensor={given['tensor']} must divide the {jax.local_device_count()} "
            "devices of a host: the devices that share rows of the batch are on one"
        )
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if len(slices) > 1 and given["dcn"] % len(slices):
        raise UserError(
            f"config.mesh.dcn={given['dcn']}, but the devices are {len(slices)} slices: set it to "
            f"{len(slices)}"
        )
    return lay_out(tuple(given.values()), devices[:wanted], len(slices))


def lay_out(shape: tuple[int, int, int, int], devices: Sequence[Any], slices: int = 1) -> Mesh:
    """A mesh of this shape: slices along `dcn`, and inside a slice as its network is wired."""
    auto = (AxisType.Auto,) * len(AXES)
    if slices == 1:
        return jax.make_mesh(shape, AXES, devices=devices, axis_types=auto)
    dcn, *inner = shape
    placed = mesh_utils.create_hybrid_device_mesh(
        (dcn // slices, *inner),
        (slices, 1, 1, 1),
        devices=devices,
        allow_split_physical_axes=True,
    )
    return Mesh(placed, AXES, axis_types=auto)


def batch_devices(mesh: Mesh) -> int:
    """The devices that share a batch: its rows are a multiple of them."""
    return mesh.size // mesh.shape["tensor"]


def state_sharding(state: Tree, mesh: Mesh, path_name) -> Tree:
    """A `NamedSharding` for each leaf of the state (abstract or concrete)."""
    sizes = mesh.shape["fsdp"], mesh.shape["tensor"]
    return jax.tree_util.tree_map_with_path(
        lambda path, x: NamedSharding(mesh, spec(path_name(path), x.shape, *sizes)), state
    )


def place(abstract: Tree, placed: Tree) -> Tree:
    """The abstract arrays, each with the sharding that `placed` has for it."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, placed
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all devices but those that share them, along `tensor`."""
    return NamedSharding(mesh, P(BATCH))


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
