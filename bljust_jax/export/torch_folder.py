"""Write a run as safetensors beside `modeling.py`, which needs PyTorch only, and read it."""

import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bljust_jax.common.errors import UserError
from bljust_jax.common.trees import map_named, named_leaves
from bljust_jax.export import tensor_table
from bljust_jax.export.hf_tokenizer import write_json
from bljust_jax.export.tensors import SINGLE, Tensors, write

MODEL_TYPE = "bljust_jax"
MODELING = "modeling.py"  # in the exported folder, a copy of SOURCE
SOURCE = "torch_model.py"
MOMENT = "encoder.blocks.conv.norm.running_{}"
COUNTER = "encoder.blocks.conv.norm.num_batches_tracked"

# (end of our name, name in torch, layout in torch)
RULES: tuple[tuple[str, str, Callable[[np.ndarray], np.ndarray]], ...] = (
    (r"\.depthwise\.kernel$", ".depthwise.weight", lambda k: k.T[:, None]),  # to [D, 1, taps]
    *(
        (rf"\.{way}\.{part}\.{leaf}$", f".cells.{theirs}_{gates}_l0{ending}", turn)
        for way, ending in (("forward", ""), ("backward", "_reverse"))
        for part, gates in (("input", "ih"), ("recurrent", "hh"))
        for leaf, theirs, turn in (("kernel", "weight", np.transpose), ("bias", "bias", np.asarray))
    ),
    (r"(cnn\d+\.attention)\.input\.kernel$", r"\1.in_proj_weight", np.transpose),
    (r"(cnn\d+\.attention)\.input\.bias$", r"\1.in_proj_bias", np.asarray),
    (r"(cnn\d+\.attention)\.out\.kernel$", r"\1.out_proj.weight", np.transpose),
    (r"(cnn\d+\.attention)\.out\.bias$", r"\1.out_proj.bias", np.asarray),
    (r"\.scale$", ".weight", np.asarray),
    (r"\.kernel$", ".weight", lambda k: TURNS[k.ndim](k)),
)
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.transpose,  # a linear map, to [out, in]
    3: lambda k: k.transpose(2, 0, 1)[:, None],  # a depthwise convolution, to [C, 1, 3, 3]
    4: lambda k: k.transpose(3, 2, 0, 1),  # a convolution, to [out, in, 3, 3]
}


def write_folder(
    folder: pathlib.Path, config: Any, units: Any, params: Mapping, stats: Mapping
) -> None:
    """Write config.json, model.safetensors and modeling.py into an existing folder."""
    context = config.ctc.context
    facts = {
        "model_type": MODEL_TYPE,
        "encoder": config.encoder,
        "context": context,
        "sample_rate": config.data.sample_rate,
        "features": config.features.to_dict(),
        "model": config.model.to_dict(),
        "tokens": ["", *units.symbols],
    }
    write_json(folder / "config.json", facts)
    write(folder / SINGLE, tensors(params, stats, stored=context == "causal"))
    shutil.copyfile(pathlib.Path(__file__).with_name(SOURCE), folder / MODELING)


def tensors(params: Mapping, stats: Mapping, *, stored: bool) -> Tensors:
    """The encoder and the CTC head by the names of `modeling.py`; other heads are not written.

    `stored`: include the feature statistics, which normalise features in causal contexts.
    """
    found: Tensors = {}
    for name, array in _leaves({key: params[key] for key in ("encoder", "ctc_head")}):
        found |= _layout(name, array)
    for name, array in _leaves(stats.get("encoder", {})):
        found |= _layout(MOMENT.format(name), array)
    if "encoder" in stats:  # torch's counter of training steps
        found |= _layout(COUNTER, np.zeros(len(stats["encoder"]["mean"]), np.int64))
    if stored:
        for name, array in _leaves(stats["features"]):
            found |= _layout(f"features.{name}", array)
    return found


def parameters(
    found: Tensors, encoder: Mapping, stats: Mapping, *, stored: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(params {"encoder", "ctc_head"}, stats) of the tensors of a folder, the inverse of `tensors`.

    encoder, stats: arrays of the shapes that they must have; stats["features"] is read if `stored`.
    Raises UserError for a tensor that is missing, has no place, or has another shape.
    """
    rest = {name: array for name, array in found.items() if "num_batches_tracked" not in name}
    tensor_table.refuse("lack", {"ctc_head.weight"} - rest.keys())
    weight = rest["ctc_head.weight"]
    head = {"kernel": np.empty(weight.shape[::-1]), "bias": np.empty(weight.shape[:1])}
    kept = ("encoder", "features") if stored else ("encoder",)
    shapes = {"params": {"encoder": encoder, "ctc_head": head}}
    shapes |= {"stats": {name: stats[name] for name in kept if name in stats}}
    names = {"stats.encoder.": MOMENT.format(""), "stats.features.": "features.", "params.": ""}

    def read(path: str, ours: Any) -> np.ndarray:
        name = path.replace("/", ".")
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        return _read_leaf(names[prefix] + name.removeprefix(prefix), np.shape(ours), rest)

    whole = map_named(read, shapes)
    tensor_table.refuse("have tensors without a place in this model:", set(rest))
    return whole["params"], whole["stats"]


def _read_leaf(name: str, shape: tuple[int, ...], rest: Tensors) -> np.ndarray:
    """Our array of `shape` from its tensors, which are removed from `rest`. A layout permutes the
    elements, so that of the elements' own indices inverts it."""
    out = np.empty(np.prod(shape, dtype=int), np.float32)
    for theirs, index in _layout(name, np.arange(out.size).reshape(shape)).items():
        tensor_table.refuse("lack", {theirs} - rest.keys())
        tensor = rest.pop(theirs)
        if tensor.shape != index.shape:
            raise UserError(f"{theirs} has shape {tensor.shape}, the config says {index.shape}")
        out[index] = tensor
    return out.reshape(shape)


def _layout(name: str, array: np.ndarray) -> Tensors:
    """{name in torch: array in its layout} of one of our arrays: per block, renamed, turned."""
    return dict(_renamed(part, block) for part, block in _unstacked(name, array).items())


def _leaves(tree: Mapping) -> list[tuple[str, np.ndarray]]:
    named = named_leaves(tree)
    return [(path.replace("/", "."), np.asarray(leaf, np.float32)) for path, leaf in named]


def _unstacked(name: str, array: np.ndarray) -> Tensors:
    """One array per block ("blocks.3.") of an array with all blocks on axis 0."""
    if ".blocks." not in name:
        return {name: array}
    block = name.replace(".blocks.", ".blocks.{}.")
    return {block.format(n): np.asarray(own) for n, own in enumerate(array)}


def _renamed(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    for pattern, ending, turn in RULES:
        if re.search(pattern, name):
            return re.sub(pattern, ending, name), turn(array)
    return name, array
