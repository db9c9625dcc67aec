"""Run functions that the compiler cannot partition, such as kernels, on each device's rows."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

SHARED = "tensor"  # devices along this axis of a mesh have the same rows


def over_batch(function: Callable, in_axes: tuple[Any, ...], out_axes: Any) -> Callable:
    """`function` on each device's share of the batch, which is split over all axes of the mesh in
    context (`jax.set_mesh`) but `SHARED`; `function` itself on one device or inside a
    `jax.shard_map` that has split the batch.

    in_axes, out_axes  batch axis of each array: trees of integers, as in `jax.vmap`

    The call raises ValueError for a batch that cannot be split equally.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    free = tuple(name for name, kind in kinds if kind != AxisType.Manual)
    if math.prod(mesh.shape[name] for name in free) == 1:
        return function
    split = tuple(name for name in free if name != SHARED)
    in_specs, out_specs = jax.tree.map(lambda axis: P(*[None] * axis, split), (in_axes, out_axes))
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, axis_names=set(free), check_vma=False
    )


def map_rows(
    function: Callable[[jax.Array], jax.Array],
) -> Callable[[jax.Array], jax.Array]:
    """`over_batch` of a function of each row of `[B, ...]`, such as a Fourier transform, whose
    operand some compilers would gather; the function itself if the rows cannot be split equally."""

    def call(x: jax.Array) -> jax.Array:
        mesh = jax.sharding.get_abstract_mesh()
        sharers = math.prod(n for name, n in mesh.shape.items() if name != SHARED)
        return function(x) if x.shape[0] % sharers else over_batch(function, (0,), 0)(x)

    return call
