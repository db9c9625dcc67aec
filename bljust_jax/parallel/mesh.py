"""Device mesh of `config.mesh`, and shardings of train state (by `rules.py`) and batches on it.

    axis of the mesh   splits                                        config.mesh
    dcn                the batch, over slices of a pod               dcn
    data               the batch                                     data
    fsdp               the batch; parameters and optimizer state     fsdp
    tensor             attention heads and feed-forward units        tensor

The training loop has no parallel code: it places arrays with these shardings and XLA inserts the
collectives. Over `dcn` and `data` only gradients are summed; over `fsdp` parameters are gathered
before their use and gradients scattered after it; over `tensor` the outputs of attention and
feed-forward layers are summed.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bljust_jax.common import trees
from bljust_jax.common.errors import UserError
from bljust_jax.parallel.rules import spec

Tree = Any
AXES = ("dcn", "data", "fsdp", "tensor")
BATCH = AXES[:-1]


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, dcn: int = 1) -> Mesh:
    """The mesh of dcn * data * fsdp * tensor devices; data = -1 uses all remaining devices.
    UserError for sizes that do not fit the devices."""
    sizes = {"dcn": dcn, "data": data, "fsdp": fsdp, "tensor": tensor}
    devices, listed = jax.devices(), ", ".join(f"{name}={n}" for name, n in sizes.items())
    if min(n for name, n in sizes.items() if name != "data") < 1:
        raise UserError(f"config.mesh: {listed}: each must be at least 1")
    others = math.prod(n for name, n in sizes.items() if name != "data")
    if sizes["data"] == -1:
        sizes["data"] = len(devices) // others
    wanted = others * sizes["data"]
    if not 1 <= wanted <= len(devices):
        raise UserError(f"config.mesh: {listed} in all, but {len(devices)} found; lower one")
    if jax.local_device_count() % sizes["tensor"]:
        raise UserError(
            f"config.mesh.tensor={sizes['tensor']} must divide the {jax.local_device_count()} "
            "devices of a host: the devices that share rows of the batch are on one"
        )
    n = len({getattr(device, "slice_index", 0) for device in devices})
    if n > 1 and sizes["dcn"] % n:
        problem = f"config.mesh.dcn={sizes['dcn']}, but the devices are {n} slices"
        raise UserError(f"{problem}: set it to {n}")
    return lay_out(tuple(sizes.values()), devices[:wanted], n)


def lay_out(shape: tuple[int, int, int, int], devices: Sequence[Any], slices: int = 1) -> Mesh:
    """A mesh of this shape: slices along `dcn`; within a slice in the order of its network."""
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
    """Number of devices that a batch is split over; its rows are a multiple of it."""
    return mesh.size // mesh.shape["tensor"]


def state_sharding(state: Tree, mesh: Mesh) -> Tree:
    """A `NamedSharding` for each leaf of the state (abstract or concrete)."""
    sizes = mesh.shape["fsdp"], mesh.shape["tensor"]
    return trees.map_named(lambda name, x: NamedSharding(mesh, spec(name, x.shape, *sizes)), state)


def with_shardings(abstract: Tree, shardings: Tree) -> Tree:
    """The abstract arrays with these shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over all axes but `tensor`, whose devices have the same rows."""
    return NamedSharding(mesh, P(BATCH))


def put_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Global arrays of a batch, of which each process passes its own rows."""
    where = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.tree.map(lambda x: jax.device_put(x, where), batch)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(where, x), batch)


def put_full_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Global arrays of a batch, of which each process passes all rows."""
    where = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.tree.map(lambda x: jax.device_put(x, where), batch)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, where, x.__getitem__), batch
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device, which each process can fetch."""
    return NamedSharding(mesh, P())


def to_host(tree: Tree) -> Tree:
    """numpy arrays on every process. A collective operation: all processes call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
