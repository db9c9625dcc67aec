"""Start a run from another one: parts of a run, of an exported folder or of a pretrained model.

`config.init_from` names the workdir of a run (the best weights of its newest checkpoint),
RUN@STEP (the EMA parameters of that checkpoint), a folder that export_checkpoint wrote, or a folder
or file of transformers. `config.init_parts` names the parts that are taken.
"""

import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bljust_jax.bilevel.types import Recipe, TrainState
from bljust_jax.checkpoint.saved_config import read_config
from bljust_jax.common.errors import UserError, nearest
from bljust_jax.common.files import expand_user
from bljust_jax.common.trees import named_leaves
from bljust_jax.data.tokenizer import Tokenizer
from bljust_jax.export import hf_tokenizer, pretrained, tensors, torch_folder
from bljust_jax.inference import trained_run
from bljust_jax.inference.trained_run import CTC_HEAD
from bljust_jax.models.subsampling import FACTORS
from bljust_jax.objectives import is_pretrained

BEST = "best"
# Fields of config.model that change training or speed, not the function of an encoder; and those
# that change its function but fit any weights.
TRAINING_ONLY = {"dropout", "layerdrop", "feature_grad_scale", "dtype", "remat", "scan_unroll"}
TRAINING_ONLY |= {"attention"}  # the form that computes it
FREE = ("model.window", "model.hf_compat")
# Group of the config that sets the size of a head; the decoder's for the others.
SIZES = {"ctc_head": "model", "wav2vec2_head": "wav2vec2", "cpc_head": "cpc"}
SIZES |= dict.fromkeys(
    ("best_rq_head", "label_head", "enhanced_head", "anchor_head", "birq", "best_rq"), "best_rq"
)


class Source(NamedTuple):
    """Float32 arrays of another run or model: params {"encoder", heads}, stats, frozen arrays; the
    units of each head of a task, objects with `symbols` (None: unknown); `name` for messages."""

    name: str
    params: dict[str, Any]
    stats: dict[str, Any]
    frozen: dict[str, Any]
    units: Mapping[str, Any]


def open_source(config: Any, state: TrainState) -> Source:
    """Read `config.init_from` for a run of these abstract or initial arrays.

    Raises UserError: nothing there, a damaged file, no such checkpoint, or an encoder of another
    function, naming the fields of the config that differ.
    """
    given = config.init_from
    try:
        path, step = split_step(given)
        about = _about(path)
        if "recipe" in about:
            return _of_run(given, path, step, config)
        if step:
            raise UserError(f"{path} is no run, which alone has checkpoints: leave out @{step}")
        if about.get("model_type") == torch_folder.MODEL_TYPE:
            return _of_torch_folder(path, config, state)
        return _of_transformers(path, config)
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from error


def split_step(given: str) -> tuple[pathlib.Path, str]:
    """("RUN", STEP) of RUN@STEP, STEP a number or "best"; ("RUN", "") without it."""
    given = expand_user(given)
    if pathlib.Path(given).exists():
        return pathlib.Path(given), ""
    path, _, step = given.rpartition("@")
    if not path or not pathlib.Path(path).exists():
        raise UserError(
            f"{path or given} does not exist: give the workdir of a run, a folder that "
            "export_checkpoint wrote, or a folder or .safetensors file of transformers"
        )
    if step != BEST and not step.isdecimal():
        raise UserError(f"{given}: there is no checkpoint {step!r}: give {path}@STEP or @{BEST}")
    return pathlib.Path(path), step


def _about(path: pathlib.Path) -> dict[str, Any]:
    """The config.json of a folder, {} without it."""
    if not (path / "config.json").is_file():
        return {}
    about = hf_tokenizer.read_json(path / "config.json")
    if not isinstance(about, dict):
        raise UserError(f"{path / 'config.json'} is damaged: it holds no JSON object")
    return about


def _of_run(given: str, path: pathlib.Path, step: str, config: Any) -> Source:
    theirs = read_config(path / "config.json")
    _check_encoder(given, config, theirs)
    run = trained_run.load_trained_run(path, step=int(step) if step.isdecimal() else None)
    params, stats = run.weights
    at = f"step {step}" if step.isdecimal() else f"the best weights up to step {run.step}"
    units = {task.head: run.tokenizers[task.stream] for task in run.recipe.tasks}
    arrays = jax.tree.map(np.asarray, (params, stats, trained_run.load_frozen(run)))
    return Source(f"{path}, {at}", *arrays, units)


def _of_torch_folder(path: pathlib.Path, config: Any, state: TrainState) -> Source:
    about = read_config(path / "config.json")
    try:
        theirs = {"data": {"sample_rate": about["sample_rate"]}}
        theirs |= {name: about[name] for name in ("encoder", "features", "model")}
        stored, tokens = about["context"] == "causal", tuple(about["tokens"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path / 'config.json'} is damaged: {error!r}; export it again") from error
    _check_encoder(str(path), config, theirs)
    found, encoder = tensors.read(path), state.params["encoder"]
    try:
        params, stats = torch_folder.parameters(found, encoder, state.stats, stored=stored)
    except UserError as error:
        raise UserError(f"{path}: {error}; export it again") from error
    units = hf_tokenizer.Vocabulary(tokens, 0, " ", frozenset())
    return Source(str(path), params, stats, {}, {"ctc_head": units})


def _of_transformers(path: pathlib.Path, config: Any) -> Source:
    source = pretrained.open_source(path, config, allow_pickle=config.init_from_pickle)
    units = {}
    if "ctc_head" in source.params:
        try:
            units["ctc_head"] = hf_tokenizer.read(source.folder, source.blank)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{source.folder}: the vocabulary is damaged: {error!r}; get the model again"
            ) from error
    return Source(str(path), source.params, source.stats, {}, units)


def _check_encoder(where: str, config: Any, theirs: Mapping[str, Any]) -> None:
    """UserError unless `theirs`, a config in JSON types, has an encoder of the same function."""
    if theirs.get("encoder") != config.encoder:
        raise UserError(
            f"{where} has encoder {theirs.get('encoder')}: it needs config.encoder="
            f"{theirs.get('encoder')}, not {config.encoder}"
        )
    try:
        found = [row for row in differing_fields(config, theirs) if row[0] not in FREE]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: config.json is damaged: {error!r}; restore it") from error
    pretrained.refuse_shape(found, pathlib.Path(where))


def differing_fields(config: Any, theirs: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(field, ours, theirs) of the fields that determine the function of an encoder and differ
    between a config and another one in JSON types."""
    ours, other = _function(json.loads(config.to_json())), _function(theirs)
    names = sorted(ours.keys() | other.keys())
    return [(n, ours.get(n), other.get(n)) for n in names if ours.get(n) != other.get(n)]


def _function(config: Mapping[str, Any]) -> dict[str, Any]:
    fields = {"encoder": config["encoder"], "data.sample_rate": config["data"]["sample_rate"]}
    # wav2vec 2.0 reads waveforms
    for group in ("features", "model") if config["encoder"] != "wav2vec2" else ("model",):
        fields |= {f"{group}.{k}": v for k, v in config[group].items() if k not in TRAINING_ONLY}
    if config["encoder"] == "conformer":  # exports of earlier versions lack it
        fields.setdefault("model.positions", "relative")
    if not fields.get("model.subsampling_factor", 1):
        fields["model.subsampling_factor"] = FACTORS[fields["model.subsampling"]]
    return fields


# The parts


def take(
    source: Source,
    config: Any,
    recipe: Recipe,
    tokenizers: Mapping[str, Tokenizer],
    state: TrainState,
) -> tuple[TrainState, list[str]]:
    """(`state` with the parts of `source` that `config.init_parts` names, log lines on each part).

    The encoder comes with its statistics, a self-supervised head with the frozen arrays that define
    its targets. EMA parameters equal the parameters; the optimizer state stays fresh.
    Raises UserError: no such part in this run; a part that this run trains and the other lacks; a
    head of other units; other sizes.
    """
    found, completed = _complete(source, state)
    found = _under_its_name(found, config, recipe)
    units = {task.head: tokenizers[task.stream] for task in recipe.tasks}
    trained = frozenset().union(*(recipe.active_groups(phase) for phase in recipe.phases))
    taken, lines = _choose(config, found, units, _ordered(state.params), trained)
    params, stats, frozen = dict(state.params), dict(state.stats), dict(state.frozen)
    for part in taken:
        params[part] = _fitting(source.name, part, state.params[part], found.params[part])
    if "encoder" in taken:
        stats |= {k: _float32(v) for k, v in source.stats.items() if k in stats}
    if set(taken) - {"encoder"} - units.keys():
        for name in state.frozen.keys() - recipe.borrow.keys():
            frozen[name] = _fitting(source.name, name, state.frozen[name], found.frozen.get(name))
    ema = jax.tree.map(jnp.copy, params)
    state = state._replace(params=params, ema=ema, stats=stats, frozen=frozen)
    return state, lines + (completed if "encoder" in taken else [])


def _complete(source: Source, state: TrainState) -> tuple[Source, list[str]]:
    """(the source with our embedding of masked frames where its encoder has none, a line on it)."""
    own, theirs = state.params["encoder"], source.params["encoder"]
    if "masked_embedding" not in own or "masked_embedding" in theirs:
        return source, []
    encoder = {**theirs, "masked_embedding": own["masked_embedding"]}
    lines = ["init_from: no embedding of masked frames there, it is initialised"]
    return source._replace(params={**source.params, "encoder": encoder}), lines


def _under_its_name(source: Source, config: Any, recipe: Recipe) -> Source:
    """The source with the CTC head of its only task, as exports have it, under the name of the CTC
    head that `config.init_parts` names: that of asr/en, or of a translation by a linear head."""
    ours = {task.head for task in recipe.tasks if task.predict}
    lacking = (ours & set(config.init_parts)) - source.params.keys()
    if CTC_HEAD not in source.params or CTC_HEAD in ours or len(lacking) != 1:
        return source
    (name,) = lacking
    params, units = (
        {name if key == CTC_HEAD else key: value for key, value in tree.items()}
        for tree in (source.params, source.units)
    )
    return source._replace(params=params, units=units)


def _choose(
    config: Any, source: Source, units: Mapping[str, Any], ours: list[str], trained: frozenset[str]
) -> tuple[list[str], list[str]]:
    """(the parts to take, log lines on them, on our other parts and on the source's others)."""
    for part in config.init_parts:
        if part not in (*ours, "all"):
            near = nearest(part, (*ours, "all"))
            raise UserError(f"config.init_parts: this run has no part {part!r}{near}")
    wanted = [part for part in ours if is_pretrained(config, part)]
    absent = [part for part in wanted if part not in source.params]
    if lacking := [p for p in absent if p in trained or p == "encoder"]:
        raise UserError(_lacks(source, lacking, wanted))
    taken = [part for part in wanted if part not in absent]
    for part in taken:
        if part in units and not pretrained.same_units(source.units.get(part), units[part]):
            raise UserError(
                f"config.init_from: {part} of {source.name} has other units than this run: train "
                f"with its tokenizer, or leave it out, {_flag(wanted, [part])}"
            )
    counts = ", ".join(f"{part} {_count(source.params[part])}" for part in taken)
    lines = [f"init_from {source.name}: parameters: {counts}"]
    for part in ours:
        if part not in taken:
            why = "not there" if part not in source.params else "not in config.init_parts"
            lines.append(f"init_from: {part} is initialised: {why}")
    if extra := sorted(source.params.keys() - set(taken)):
        lines.append(f"init_from: not taken: {', '.join(extra)}")
    return taken, lines


def _ordered(parts: Iterable[str]) -> list[str]:
    """The encoder first, then the heads by name."""
    return sorted(parts, key=lambda part: (part != "encoder", part))


def _lacks(source: Source, lacking: list[str], wanted: list[str]) -> str:
    there = ", ".join(_ordered(source.params))
    quantizer = "; Wav2Vec2ForCTC and Wav2Vec2Model files hold no quantizer, use a "
    quantizer += "Wav2Vec2ForPreTraining checkpoint"
    return (
        f"config.init_from: {source.name} lacks {', '.join(lacking)}, it has {there}"
        f"{quantizer if 'wav2vec2_head' in lacking else ''}; or initialise what it lacks, "
        f"{_flag(wanted, lacking)}"
    )


def _flag(wanted: list[str], without: list[str]) -> str:
    return f"--config.init_parts={','.join(p for p in wanted if p not in without)}"


def _fitting(where: str, name: str, ours: Any, theirs: Any) -> Any:
    """`theirs` as float32; UserError unless it has the shapes of `ours`."""
    one, other = ({p: np.shape(leaf) for p, leaf in named_leaves(tree)} for tree in (ours, theirs))
    wrong = [path for path in sorted(one | other) if one.get(path) != other.get(path)]
    if wrong:
        path, more = wrong[0], f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
        raise UserError(
            f"config.init_from: {where}: {name}/{path} has shape {other.get(path, 'none')} there, "
            f"{one.get(path, 'none')} here{more}: set the sizes in config."
            f"{'model' if name == 'encoder' else SIZES.get(name, 'decoder')}"
        )
    return _float32(theirs)


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def _count(tree: Any) -> str:
    return f"{sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree)):,}"
