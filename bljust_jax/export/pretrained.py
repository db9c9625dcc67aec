"""Read pretrained models of `transformers` (wav2vec 2.0, Parakeet CTC) without torch.

As parts for a run (`train/init_from.py`), or as a whole CTC model for inference. Reads folders with
config.json and safetensors, single or in shards, and single .safetensors files.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bljust_jax.common.errors import UserError
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
PREPROCESSOR = "preprocessor_config.json"
# log-mel settings of an encoder of waveforms, used for pictures only
PICTURE_FEATURES = {"frontend": "log_mel", "n_mels": 80, "window": 400, "hop": 160, "n_fft": 512}


class Source(NamedTuple):
    """A model on disk: its folder, the id of its CTC blank, params {"encoder", ...} and stats."""

    folder: pathlib.Path
    blank: int
    params: dict[str, Any]
    stats: dict[str, Any]


def same_units(found: Any | None, units: Any) -> bool:
    """Whether ids of the file and of the run have equal texts (`symbols`), whatever the sign for a
    space."""
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
        ours, rate = config.data.sample_rate, audio.get("sampling_rate", config.data.sample_rate)
        refuse_shape([("data.sample_rate", ours, rate)] if rate != ours else [], path)
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
    differing = []
    for field, value in theirs.items():
        nested = value if isinstance(value, Mapping) else {field: value}
        part, own = ("features", ours[field]) if isinstance(value, Mapping) else ("model", ours)
        differing += [(f"{part}.{k}", own[k], v) for k, v in nested.items() if own[k] != v]
    refuse_shape(differing, path)


def refuse_shape(differing: Sequence[tuple[str, Any, Any]], path: pathlib.Path) -> None:
    """Raises UserError for (field of config, our value, theirs) of fields that differ, with the
    flags that give a run the shape of `path`."""
    if differing:
        here = ", ".join(f"{field}={_flag(own)}" for field, own, _ in differing)
        flags = " ".join(f"--config.{field}={_flag(value)}" for field, _, value in differing)
        raise UserError(
            f"{path} has another shape than the run's encoder, here {here}; give {flags}"
        )


def _flag(value: Any) -> str:
    return f"'{tuple(value)}'" if isinstance(value, tuple | list) else str(value)


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


def to_float32(tree: Any) -> Any:
    """A tree of arrays as float32 arrays of jax."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


# A whole model, for inference


class CtcModel(NamedTuple):
    """A CTC model of an exported folder: `encoder` of models.encoders, float32 params {"encoder",
    "ctc_head"}, stats, the vocabulary of the head, the sample rate in Hz, and the context in which
    audio is encoded."""

    encoder: encoders.Encoder
    params: dict[str, Any]
    stats: dict[str, Any]
    vocabulary: hf_tokenizer.Vocabulary
    sample_rate: int
    context: str = "full"


def read_ctc_model(path: pathlib.Path) -> CtcModel:
    """The model of a folder with `Wav2Vec2ForCTC` or `ParakeetForCTC`.

    Raises UserError if the folder holds neither, or lacks a CTC head or a vocabulary.
    """
    about = _about(path)
    if about is None:
        raise UserError(f"{path} holds no config.json: give the folder of a model")
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
    params, stats = to_float32((source.params, source.stats))
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
