"""Sharding rules: a table from parameter path to mesh axes, and gathering of parameters for fsdp.

Axes of the mesh as in `mesh.py`: `fsdp` splits parameters to save memory, `tensor` the work of
attention heads and feed-forward units.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from bljust_jax.common import trees
from bljust_jax.common.errors import UserError

Tree = Any

# The first match applies. Kinds of sharding of an array [..., rows, columns]:
#   "copy"     a copy on every device
#   "split"    `fsdp` splits the largest axis whose size it divides
#   "columns"  `tensor` splits the last axis, and `fsdp` the largest other one, but not of a bias
#   "rows"     `tensor` splits the last axis but one, and `fsdp` as for "columns"
# Optimizer state and EMA end in the same path as their parameter, so one table serves all. Axis 0
# of stacked blocks is never split, as `lax.scan` runs along it.
RULES: tuple[tuple[str, str], ...] = (
    (r"(^|/)(step|stats|count|levels)(/|$)", "copy"),
    (r"attention/(query|key|value|position)/kernel$", "columns"),
    (r"attention/(query|key|value)/bias$", "columns"),
    (r"attention/(content|position)_bias$", "rows"),  # [..., heads, width of one]
    (r"attention/out/kernel$", "rows"),
    (r"(^|/)up/(kernel|bias)$", "columns"),
    (r"(^|/)down/kernel$", "rows"),
    (r"(^|/)(bias|scale|gain)$", "copy"),
    (r".*", "split"),
)
STACKED = re.compile(r"(^|/)blocks/")
TENSOR_AXIS = {"columns": -1, "rows": -2}


def spec(name: str, shape: Sequence[int], fsdp: int, tensor: int = 1) -> P:
    """The PartitionSpec of one array by its path and shape. UserError if `tensor` does not
    divide the axis that it splits."""
    rule = next(rule for pattern, rule in RULES if re.search(pattern, name))
    axes: list[str | None] = [None] * len(shape)
    if rule in TENSOR_AXIS and tensor > 1:
        at = len(shape) + TENSOR_AXIS[rule]
        if shape[at] % tensor:
            raise UserError(
                f"config.mesh.tensor={tensor} does not divide axis {at} of {name} {tuple(shape)}: "
                "make it a divisor of config.model.heads and of the widths"
            )
        axes[at] = "tensor"
    first = 1 if STACKED.search(name) else 0
    free = [
        a
        for a in np.argsort(shape, kind="stable")[::-1]
        if a >= first and axes[a] is None and shape[a] and shape[a] % fsdp == 0
    ]
    if rule != "copy" and not name.endswith("bias") and fsdp > 1 and free:
        axes[free[0]] = "fsdp"
    return P(*axes) if any(axes) else P()


def gathered(params: Tree, stacks: bool = True) -> Tree:
    """The parameters gathered along `fsdp`, still split along `tensor`; called right before use.
    Without it the compiler may split activations like the parameters, and exchange activations.
    Gradients are summed and scattered again.

    stacks: False skips stacked blocks; a model that scans over them gathers one block at a time,
        which takes the memory of one

    No operation without a mesh in context (`jax.set_mesh`) whose `fsdp` is above 1.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.shape.get("fsdp", 1) == 1 or AxisType.Manual in mesh.axis_types:
        return params
    tensor = mesh.shape.get("tensor", 1)

    def gather(name, x):
        if not stacks and STACKED.search(name):
            return x
        return jax.lax.with_sharding_constraint(x, spec(name, x.shape, 1, tensor))

    return trees.map_named(gather, params)
