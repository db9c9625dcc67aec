"""Config of an earlier run: config.json, with defaults for fields that were added to configs since.

A run trained before a field existed behaves as if the field had its default. A new field must
therefore have a default that changes no number, and a row in `ADDED`; its absence from an old
config.json never refuses a workdir.
"""

import pathlib
from typing import Any

from bljust_jax.common import files
from bljust_jax.common.errors import UserError, one_line

SCHEDULES = ("explore", "joint", "finetune", "supervised", "pretrain")
SCHEDULES += ("ptft_supervised", "turn_ctc", "turn_ssl", "pseudo", "masked_cpc")
# {field: its default} of fields added since checkpoint format 2, such as {"model.rope": False}.
ADDED: dict[str, Any] = {
    "ema_share": 0.0,
    "ema_hours": 0.0,
    "init_parts": ["encoder"],
    "compile_threads": 0,
    "budget": 0.0,
    "budget_unit": "gradient",
    "stop.patience": 0,
    "stop.perfect": 0,
    "data.unlabelled_hours": 0.0,
    "data.labelled_draw": -1,
    "data.held_back_speakers": 0,
    "data.held_back_draw": 0,
    "data.measure": "auto",
    "data.min_spellable": 0.5,
    "data.train_sample": 0,
    "data.num_buckets": 0,
    "data.mix": [],
    "data.program_hours": 40.0,
    "data.frame_labels": "",
    "data.frame_label_rate": 50.0,
    "data.unlabelled_cut": False,
    "data.noise": "",
    "data.noise_share": 1.0,
    "data.babble": "",
    "data.babble_snr": [10.0, 20.0],
    "data.babble_share": 0.3,
    "data.reverb": "",
    "data.reverb_share": 0.3,
    "data.volume": [],
    "data.telephone_share": 0.0,
    "data.codec_share": 0.0,
    **{f"lr.{name}.warmup_unit": "step" for name in SCHEDULES},
    "birq.label_entropy": 0.0,
    "decoder.kind": "attention",
    "moo.relative": False,
    "moo.warmup": 0,
    "moo.starved_weight": 0.0,
    "moo.starved_rows": 1,
    "moo.starved_stop": False,
}
# {recipe: {field: its default}} of fields that other recipes lack in a group that all have.
ADDED_TO = {"m2asr": {"phases.supervised": 0.0}}
# {encoder: {field: its default}} of fields of config.model that other encoders lack.
ADDED_TO_ENCODER = {
    "conformer": {"model.positions": "relative", "model.attention": "auto"},
    "wav2vec2": {"model.attention": "auto"},
}


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """The nested fields of a config.json, with those of `ADDED`, `ADDED_TO` and
    `ADDED_TO_ENCODER` that a group of it lacks. Raises UserError for a damaged file."""
    try:
        config = files.read_json(path)
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise UserError(f"{path} is damaged, or of another version: {one_line(error)}") from error
    data = config.get("data")
    unlabelled = data.get("unlabelled", "") if isinstance(data, dict) else ""
    for field, default in _added(config, unlabelled).items():
        *groups, name = field.split(".")
        node = config
        for group in groups:
            node = node.get(group) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.setdefault(name, default)
    return config


def added_fields(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """{field: default} of the fields of `new` that `old` lacks, both flat ({"model.dim": 256}).

    The default is that of `ADDED`, `ADDED_TO` or `ADDED_TO_ENCODER`, else the value in `new`.
    Fields of a data stream that `old` lacks are excluded: a new stream is another config.
    """
    known = _added(new, old.get("data.unlabelled", ""))
    return {
        field: known.get(field, value)
        for field, value in new.items()
        if field not in old and not _is_of_new_stream(field, old)
    }


def _added(config: dict[str, Any], unlabelled: Any) -> dict[str, Any]:
    """{field: default} for the recipe and encoder of a config, and a value of data.unlabelled,
    which replaced the audio of data.train before data.unlabelled_with_train was a field."""
    own = ADDED_TO.get(config.get("recipe", ""), {})
    own = own | ADDED_TO_ENCODER.get(str(config.get("encoder", "conformer")), {})
    return ADDED | own | {"data.unlabelled_with_train": not unlabelled}


def _is_of_new_stream(field: str, old: dict[str, Any]) -> bool:
    group, stream = "data.streams.", field.removeprefix("data.streams.").partition(".")[0]
    known = any(name.startswith(f"{group}{stream}.") for name in old)
    return field.startswith(group) and not known
