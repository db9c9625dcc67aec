"""Effective config of a run of a grid, and the fingerprint that rows are checked by."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from bljust_jax.checkpoint.saved_config import ADDED
from bljust_jax.common import config_schema, shipped_configs
from bljust_jax.common.config_schema.training import PSEUDO
from bljust_jax.common.errors import UserError, nearest
from bljust_jax.comparison import grid as grids
from bljust_jax.comparison.grid import Grid, Run
from bljust_jax.train.workdir import MAY_CHANGE, flatten

OMITTED = (*MAY_CHANGE, "data.root")  # may differ between machines: results do not depend on them


def config_of(grid: Grid, run: Run) -> Any:
    """The config that the command of a run trains. UserError for an unknown field, variant or a
    value of another type."""
    config = shipped_configs.load(grids.config_flag(grid, run))
    if config.method in PSEUDO:
        config = config_schema.with_loss_fields(config, "pseudo_label")
    config = config_schema.with_loss_fields(config, run.fields.get("ssl", config.get("ssl", "")))
    for field, value in run.fields.items():
        *groups, name = field.split(".")
        node = config
        for group in groups:
            if group not in node or not hasattr(node[group], "keys"):
                raise UserError(f"{run.name}: config.{field}: no such field")
            node = node[group]
        if name not in node:
            raise UserError(f"{run.name}: config.{field}: no such field{nearest(name, list(node))}")
        try:
            node[name] = value
        except (TypeError, ValueError) as error:
            raise UserError(f"{run.name}: config.{field}={value!r}: {error}") from error
    config_schema.check(config)
    return config


def fingerprint(config: Any) -> str:
    """12 hexadecimal digits of the SHA-256 of all fields that change results.

    A field at the default that it was added with (`saved_config.ADDED`) does not count, so that a
    row remains valid when fields are added.
    """
    fields = flatten(json.loads(config.to_json()))
    kept = {k: v for k, v in fields.items() if k not in OMITTED and not _is_default(k, v)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def _is_default(field: str, value: Any) -> bool:
    return field in ADDED and ADDED[field] == value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """ "data.join (2, 5) -> (3, 5)": the fields of a run that differ from those of a row, as
    JSON."""
    new = json.loads(json.dumps(new))
    names = sorted(k for k in {*old, *new} if old.get(k) != new.get(k) and k not in OMITTED)
    shown = ", ".join(f"{k} {old.get(k)!r} -> {new.get(k)!r}" for k in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
