"""Read pretrained models of `transformers` (wav2vec 2.0, Parakeet CTC) without torch.

Into a run (config.init_from), or as a whole CTC model for inference. Reads folders with config.json
and safetensors, single or in shards, and single .safetensors files.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bljust_jax.common.errors import UserError
from bljust_jax.common.trees import named_leaves
from bljust_jax.export import (
    hf_folder,
    hf_parakeet,
    hf_tokenizer,
    hf_wav2vec2,
    tensor_table,
    tensors,
)
from bljust_jax.models import encoders
from bljust_jax.models.encoders import conformer as conformer_encoder
from bljust_jax.models.encoders import wav2vec2 as wav2vec2_encoder

ENCODERS = {"wav2vec2": "wav2vec2", "parakeet_ctc": "conformer"}  # by model_type
SSL_HEAD = "wav2vec2_head"
PREPROCESSOR = "preprocessor_config.json"
# log-mel settings of an encoder of waveforms, used for pictures only
PICTURE_FEATURES = {"frontend": "log_mel", "n_mels": 80, "window": 400, "hop": 160, "n_fft": 512}


class Source(NamedTuple):
    """A model on disk: its folder, the id of its CTC blank, params {"encoder", ...} and stats."""

    folder: pathlib.Path
    blank: int
    params: dict[str, Any]
    stats: dict[str, Any]


def load(
    path: str | pathlib.Path, params: Mapping, stats: Mapping, config: Any, units: Any | None
) -> tuple[dict, dict, list[str]]:
    """(params, stats) of a run with the pretrained weights of `path` in place of initial ones, and
    log lines on what was loaded.

    Loads the encoder; the head of the wav2vec 2.0 loss if the run has one; the CTC head if the
    vocabulary of the file equals that of `units`, the tokenizer of the run (None for a run of
    several tasks). A pickle is read only with config.init_from_pickle.
    Raises UserError: no model in `path`, another shape than config.model (naming the fields),
    tensors that are missing or have no place, a run with a quantizer and a file without.
    """
    path = pathlib.Path(path)
    try:
        source = open_source(path, config, allow_pickle=config.init_from_pickle)
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from error
    found = dict(source.params)
    params = dict(params)
    lines = [f"init_from {path}: the encoder, {_count(found['encoder'])} parameters"]
    if "masked_embedding" in params["encoder"] and "masked_embedding" not in found["encoder"]:
        own = params["encoder"]["masked_embedding"]
        found["encoder"] = {**found["encoder"], "masked_embedding": own}
        lines.append("init_from: no embedding of masked frames there, it is initialised")
    params["encoder"] = _fitting("encoder", params["encoder"], found["encoder"], path)
    if SSL_HEAD in params and SSL_HEAD not in found and config.method != "supervised":
        raise UserError(
            f"config.init_from={path} holds no quantizer: Wav2Vec2ForCTC and Wav2Vec2Model files "
            "lack it; use a Wav2Vec2ForPreTraining checkpoint, or method=supervised"
        )
    if SSL_HEAD in params and SSL_HEAD in found:
        params[SSL_HEAD] = _fitting(SSL_HEAD, params[SSL_HEAD], found[SSL_HEAD], path)
        lines.append("init_from: the quantizer and its projections")
    if units is None:
        lines.append("init_from: the heads of the tasks are initialised")
    elif "ctc_head" in found and same_units(hf_tokenizer.read(source.folder, source.blank), units):
        params["ctc_head"] = _fitting("ctc_head", params["ctc_head"], found["ctc_head"], path)
        lines.append("init_from: the CTC head, its vocabulary is the run's")
    else:
        why = "of another vocabulary" if "ctc_head" in found else "missing"
        lines.append(f"init_from: the CTC head is initialised, that of the file is {why}")
    return params, {**stats, **_float32(source.stats)}, lines


def same_units(found: hf_tokenizer.Vocabulary | None, units: Any) -> bool:
    """Whether ids of the file and of the run have equal texts, whatever the sign for a space."""
    if found is None:
        return False
    ours, theirs = (
        tuple(" " if s == hf_tokenizer.SPACE else s for s in symbols)
        for symbols in (units.symbols, found.symbols)
    )
    return ours == theirs


def open_source(path: pathlib.Path, config: Any, *, allow_pickle: bool = False) -> Source:
    """Read a model that fits the config of a run; UserError names the fields that differ."""
    folder = path if path.is_dir() else path.parent
    about = _about(folder)
    if about is None and config.encoder != "wav2vec2":
        raise UserError(f"{folder} holds no config.json, which describes {path.name}")
    encoder = _encoder(about, folder) if about is not None else config.encoder
    if encoder != config.encoder:
        raise UserError(
            f"{path} is a {about['model_type']} model: it needs config.encoder="
            f"{encoder}, not {config.encoder}"
        )
    fields = config_fields(config)
    if about is not None:
        theirs, audio = model_fields(about), _preprocessor(folder)
        if encoder == "wav2vec2" and "do_normalize" in audio:
            theirs["normalise"] = audio["do_normalize"]
        check_same_shape(fields | {"normalise": config.model.get("normalise")}, theirs, path)
    return _read(path, folder, about, fields, allow_pickle)


def config_fields(config: Any) -> dict[str, Any]:
    """The fields of config.model that a file can fix."""
    if config.encoder == "wav2vec2":
        model: Any = wav2vec2_encoder.make_model(config)
        return {field: getattr(model, field) for field in hf_wav2vec2.FIELDS}
    model = conformer_encoder.make_model(config)
    names = (*hf_parakeet.FIELDS, *hf_parakeet.KIND, "ff_mult")
    fields = {name: getattr(model, name) for name in names} | {"subsampling_factor": model.factor}
    frontend = config.features.get("frontend", "log_mel")
    return fields | {"features": {"frontend": frontend, "n_mels": model.n_mels}}


def model_fields(about: Mapping[str, Any]) -> dict[str, Any]:
    table = hf_wav2vec2 if ENCODERS[about["model_type"]] == "wav2vec2" else hf_parakeet
    return table.model_fields(about)


def check_same_shape(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], path: pathlib.Path
) -> None:
    """Raises UserError with the flags that give a run the shape of the file, if any differ."""
    flags = []
    for field, value in theirs.items():
        nested = value if isinstance(value, Mapping) else {field: value}
        part, own = ("features", ours[field]) if isinstance(value, Mapping) else ("model", ours)
        flags += [f"--config.{part}.{k}={_flag(v)}" for k, v in nested.items() if own[k] != v]
    if flags:
        raise UserError(f"{path} has another shape than the run's encoder; give {' '.join(flags)}")


def _flag(value: Any) -> str:
    return f"'{value}'" if isinstance(value, tuple) else str(value)


def _about(folder: pathlib.Path) -> dict[str, Any] | None:
    path = folder / "config.json"
    about = hf_tokenizer.read_json(path) if path.is_file() else None
    if not isinstance(about, dict | None):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return about


def _preprocessor(folder: pathlib.Path) -> dict[str, Any]:
    """preprocessor_config.json, the preparation of audio; {} without this file."""
    path = folder / PREPROCESSOR
    return hf_tokenizer.read_json(path) if path.is_file() else {}


def _encoder(about: Mapping[str, Any], folder: pathlib.Path) -> str:
    kind = about.get("model_type")
    if kind is None and "recipe" in about:
        raise UserError(
            f"{folder} is a training run: give the folder that export_checkpoint makes of it"
        )
    if kind not in ENCODERS:
        raise UserError(
            f"{folder / 'config.json'}: model_type={kind!r} is none of {', '.join(ENCODERS)}"
        )
    return ENCODERS[kind]


def _read(
    path: pathlib.Path,
    folder: pathlib.Path,
    about: dict[str, Any] | None,
    fields: dict[str, Any],
    allow_pickle: bool,
) -> Source:
    arrays = tensors.read(path, allow_pickle=allow_pickle)
    blank = (about or {}).get("pad_token_id") or 0
    try:
        if "features" in fields:
            params, stats = hf_parakeet.parameters(arrays, fields, **hf_parakeet.conventions(about))
        else:
            params, stats = hf_wav2vec2.parameters(arrays, fields), {}
            if "ctc_head" in params:
                params["ctc_head"] = tensor_table.blank_first(params["ctc_head"], blank)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Source(folder, blank, params, stats)


def _fitting(name: str, ours: Any, theirs: Any, path: pathlib.Path) -> Any:
    """`theirs` as float32; UserError unless it has the shapes of `ours`."""
    one, other = (
        {path: np.shape(leaf) for path, leaf in named_leaves(tree)} for tree in (ours, theirs)
    )
    wrong = [k for k in sorted(one | other) if one.get(k) != other.get(k)]
    if wrong:
        k = wrong[0]
        raise UserError(
            f"config.init_from={path}: {name}/{k} has shape {other.get(k, 'none')} there, "
            f"{one.get(k, 'none')} in the run, and {len(wrong) - 1} more: set the sizes in config."
            f"{'wav2vec2' if name == SSL_HEAD else 'model'}"
        )
    return _float32(theirs)


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def _count(tree: Any) -> str:
    return f"{sum(np.size(leaf) for leaf in jax.tree.leaves(tree)):,}"


# A whole model, for inference


class CtcModel(NamedTuple):
    """A CTC model of an exported folder: `encoder` of models.encoders, float32 params {"encoder",
    "ctc_head"}, stats, the vocabulary of the head, and the sample rate in Hz."""

    encoder: encoders.Encoder
    params: dict[str, Any]
    stats: dict[str, Any]
    vocabulary: hf_tokenizer.Vocabulary
    sample_rate: int


def read_ctc_model(path: pathlib.Path) -> CtcModel:
    """The model of a folder with `Wav2Vec2ForCTC` or `ParakeetForCTC`.

    Raises UserError if the folder holds neither, or lacks a CTC head or a vocabulary.
    """
    about = _about(path)
    if about is None:
        raise UserError(f"{path} holds no config.json: give the folder of a model")
    if about.get("model_type") == "bljust_jax":
        raise UserError(
            f"{path} is for PyTorch: its modeling.py runs it; here, give the run itself"
        )
    name = _encoder(about, path)
    config = folder_config(path, about, name)
    source = _read(path, path, about, config_fields(config), allow_pickle=False)
    vocabulary = hf_tokenizer.read(path, source.blank)
    if "ctc_head" not in source.params or vocabulary is None:
        lacking = "CTC head" if vocabulary else "tokenizer.json or vocab.json of one language"
        raise UserError(f"{path} cannot transcribe: it has no {lacking}")
    classes = source.params["ctc_head"]["bias"].shape[0]
    if len(vocabulary.tokens) < classes:
        raise UserError(f"{path}: {len(vocabulary.tokens)} tokens for a head of {classes} classes")
    vocabulary = vocabulary._replace(tokens=vocabulary.tokens[:classes])
    params, stats = _float32((source.params, source.stats))
    encoder = encoders.load(name)(config)
    return CtcModel(encoder, params, stats, vocabulary, config.data.sample_rate)


def folder_config(path: pathlib.Path, about: Mapping[str, Any], name: str) -> ConfigDict:
    """The parts of a config that encoder `name` reads, from the files of the folder."""
    audio = _preprocessor(path)
    fields = model_fields(about)
    config = ConfigDict(
        {"encoder": name, "specaugment": {}, "mask": {}, "features": PICTURE_FEATURES}
    )
    config.data = ConfigDict({"sample_rate": audio.get("sampling_rate", 16000)})
    if name == "wav2vec2":
        config.model = ConfigDict(fields | {"normalise": audio.get("do_normalize", True)})
        return config
    features = fields.pop("features")
    if audio.get("preemphasis", hf_folder.PREEMPHASIS) != hf_folder.PREEMPHASIS:
        raise UserError(f"{path / PREPROCESSOR}: preemphasis must be {hf_folder.PREEMPHASIS}")
    features |= {"window": audio.get("win_length", 400), "hop": audio.get("hop_length", 160)}
    config.features = ConfigDict(features | {"n_fft": audio.get("n_fft", 512)})
    config.model = ConfigDict(fields)
    return config
