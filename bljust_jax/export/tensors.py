"""Read and write named tensors: safetensors, single or in shards; pickles only if allowed."""

import json
import pathlib
import pickle
import re
from collections.abc import Mapping

import numpy as np

from bljust_jax.common.errors import UserError

Tensors = dict[str, np.ndarray]

SINGLE, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
DTYPES |= {"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8}
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
OLDEST_TORCH = (2, 10)  # before it, a crafted file could escape weights_only


def write(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file, with the metadata {"format": "pt"} for `transformers`."""
    from safetensors.numpy import save

    whole = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    path.write_bytes(save(whole, metadata={"format": "pt"}))


def read(path: pathlib.Path, *, allow_pickle: bool = False) -> Tensors:
    """The tensors of a model's folder or of one file; floats become float32.

    A pickle (*.bin, *.pt) is read only if `allow_pickle`, by torch, restricted to weights.
    Raises UserError: nothing to read, a damaged file, a shard outside the folder, a pickle.
    """
    if path.is_dir():
        if (path / SINGLE).is_file():
            return _read_safetensors(path / SINGLE)
        if (path / INDEX).is_file():
            return _read_shards(path / INDEX)
        if not (path / PICKLE).is_file():
            raise UserError(f"{path} holds no {SINGLE}: give the folder of a pretrained model")
        path = path / PICKLE
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a model's folder or a .safetensors file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in PICKLES:
        raise UserError(f"{path} is no .safetensors file: give a model's folder, or such a file")
    if not allow_pickle:
        raise UserError(
            f"{path} is a pickle, which can run any program: get the model as safetensors, or, "
            "if you trust its origin, set config.init_from_pickle=True"
        )
    return _read_pickle(path)


def _read_safetensors(path: pathlib.Path) -> Tensors:
    from safetensors import SafetensorError, deserialize

    try:
        entries = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file, or damaged: {error}") from error
    found = {}
    for name, entry in entries:
        if entry["dtype"] not in DTYPES:
            raise UserError(f"{path}: {name} has dtype {entry['dtype']}; want floats or ints")
        array = np.frombuffer(entry["data"], DTYPES[entry["dtype"]])
        if entry["dtype"] == "BF16":  # the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        found[name] = _float32(array.reshape(entry["shape"]))
    return found


def _read_shards(index: pathlib.Path) -> Tensors:
    try:
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(where.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of shards: {error!r}") from error
    if any(pathlib.PurePath(name).name != name for name in names):
        raise UserError(f"{index} names a file outside its folder: {', '.join(names)}")
    found: Tensors = {}
    for name in names:
        if not (index.parent / name).is_file():
            raise UserError(f"{index.parent / name} is missing, {index.name} names it")
        found |= _read_safetensors(index.parent / name)
    return found


def _read_pickle(path: pathlib.Path) -> Tensors:
    wanted = "{}.{}".format(*OLDEST_TORCH)
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} is a pickle: reading it needs torch >= {wanted}") from error
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < OLDEST_TORCH:
        raise UserError(f"{path} is a pickle: torch {torch.__version__} is older than {wanted}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} holds more than weights, or is damaged: not loaded") from error
    if not isinstance(loaded, Mapping) or not all(map(torch.is_tensor, loaded.values())):
        raise UserError(f"{path} is no table of named tensors")
    whole = {n: t.float() if t.is_floating_point() else t for n, t in loaded.items()}
    return {name: tensor.numpy() for name, tensor in whole.items()}


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.kind == "f" else array
