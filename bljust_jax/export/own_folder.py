"""Read a folder of `torch_folder` as a whole CTC model, without torch."""

import json
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from bljust_jax.common.errors import UserError
from bljust_jax.export import tensors, torch_folder
from bljust_jax.export.hf_tokenizer import Vocabulary
from bljust_jax.export.pretrained import CtcModel, to_float32
from bljust_jax.models import encoders

PIECE = "\u2581"  # begins a SentencePiece piece that begins a word


def read_ctc_model(path: pathlib.Path) -> CtcModel:
    """The encoder, CTC head and labels of the folder. Raises UserError for a damaged one."""
    try:
        about = json.loads((path / "config.json").read_text(encoding="utf-8"))
        tokens, context = tuple(about["tokens"]), str(about["context"])
        config = ConfigDict({name: about[name] for name in ("encoder", "features", "model")})
        config.update({"specaugment": {}, "mask": {}})
        if "attention" in config.model:
            config.model.attention = "auto"  # the form that trained may need another device
        config.data = ConfigDict({"sample_rate": int(about["sample_rate"])})
        encoder = encoders.load(config.encoder)(config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path / 'config.json'} is damaged: {error!r}; export it again") from error
    shapes = jax.eval_shape(encoder.init, jax.random.key(0))
    params, stats = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), shapes)
    try:
        params, stats = torch_folder.parameters(
            tensors.read(path), params, stats, stored=context == "causal"
        )
    except UserError as error:
        raise UserError(f"{path}: {error}; export it again") from error
    classes = params["ctc_head"]["bias"].shape[0]
    if len(tokens) != classes:
        raise UserError(f"{path}: {len(tokens)} tokens for a head of {classes} classes")
    delimiter = PIECE if any(token.startswith(PIECE) for token in tokens) else " "
    units = Vocabulary(tokens, 0, delimiter, frozenset())
    params, stats = to_float32((params, stats))
    return CtcModel(encoder, params, stats, units, config.data.sample_rate, context)
