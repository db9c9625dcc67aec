"""Map between our parameter trees and the named tensors of transformers: names, layouts, checks."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from bljust_jax.common.errors import UserError
from bljust_jax.common.trees import named_leaves
from bljust_jax.export.tensors import Tensors

BLOCKS = "encoder/blocks/"  # leaves below it hold all blocks on axis 0, one tensor each there


class Layout(NamedTuple):
    """Conversion of one array to their layout, and back."""

    write: Callable[[np.ndarray], np.ndarray]
    read: Callable[[np.ndarray], np.ndarray]


SAME = Layout(np.asarray, np.asarray)
TRANSPOSED = Layout(np.transpose, np.transpose)  # all axes reversed


class Row(NamedTuple):
    """One of their tensors: `name` there; `path` in our tree, `block` on axis 0 of our leaf (None:
    the whole leaf), our `shape` of these values, `layout`."""

    name: str
    path: str
    block: int | None
    shape: tuple[int, ...]
    layout: Layout


def make_rows(
    shapes: Mapping[str, Any],
    name_of: Callable[[str, int | None], str],
    layout_of: Callable[[str, tuple[int, ...]], Layout],
) -> Iterator[Row]:
    """The rows of a tree of our shapes; name_of(path, block), layout_of(path, shape)."""
    for path, whole in named_leaves(shapes, is_leaf=lambda x: isinstance(x, tuple)):
        stacked = path.startswith(BLOCKS)
        shape = whole[1:] if stacked else whole
        for block in range(whole[0]) if stacked else (None,):
            yield Row(name_of(path, block), path, block, shape, layout_of(path, shape))


def to_tensors(rows: Iterable[Row], tree: Mapping[str, Any]) -> Tensors:
    """{name: float32 tensor} of our arrays."""
    arrays = {path: np.asarray(leaf) for path, leaf in named_leaves(tree)}
    return {
        row.name: np.ascontiguousarray(row.layout.write(_values(arrays, row)), np.float32)
        for row in rows
    }


def _values(arrays: Mapping[str, np.ndarray], row: Row) -> np.ndarray:
    return arrays[row.path] if row.block is None else arrays[row.path][row.block]


def check(rows: Iterable[Row], found: Tensors) -> None:
    """Raises UserError for a tensor that is missing, has no row, or has another shape."""
    rows = list(rows)
    names = {row.name for row in rows}
    refuse("lack", names - found.keys())
    refuse("have tensors without a place in this model:", found.keys() - names)
    for row in rows:
        shape = found[row.name].shape
        expected = row.layout.write(np.empty(row.shape)).shape
        if shape != expected:
            raise UserError(f"{row.name} has shape {shape}, the config says {expected}")


def to_tree(rows: Iterable[Row], found: Tensors) -> dict[str, Any]:
    """Our tree of their tensors, as `check` accepts them; blocks are stacked in order."""
    arrays: dict[str, list[np.ndarray]] = {}
    for row in rows:
        arrays.setdefault(row.path, []).append(row.layout.read(found[row.name]))
    tree: dict[str, Any] = {}
    for path, parts in arrays.items():
        *parents, leaf = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        stacked = path.startswith(BLOCKS)
        node[leaf] = np.stack(parts) if stacked else np.ascontiguousarray(parts[0])
    return tree


def refuse(what: str, names: set[str]) -> None:
    """Raises UserError with the first of `names`, if there are any."""
    if names:
        shown, more = sorted(names)[:5], max(len(names) - 5, 0)
        raise UserError(
            f"the weights {what} {', '.join(shown)}{f' and {more} more' if more else ''}"
        )


def blank_first(head: Mapping[str, np.ndarray], blank: int) -> dict[str, np.ndarray]:
    """A CTC head with the class `blank` moved to class 0; the others keep their order."""
    order = [blank, *(n for n in range(head["bias"].shape[0]) if n != blank)]
    return {name: leaf[..., order] for name, leaf in head.items()}


def read_fields(config: Mapping[str, Any], fields: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """{our field: value of config.json} for {our field: (name there, default)}."""
    return {field: config.get(name, default) for field, (name, default) in fields.items()}


def check_fixed(config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Raises UserError for a field of config.json with a value other than the supported one."""
    for name, known in fixed.items():
        value = config.get(name, known)
        if value != known:
            raise UserError(f"config.json: {name}={value!r} is not supported, only {known!r}")
