"""Config schema: type, range or choices, and one line of help for every field of every config.

`GROUPS` has a table of fields per group of a config; `*` stands for a name that the config chooses.
A new field of a config gets a row here, one of a loss in the loss's own file (`losses.py`); a test
compares the two.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from bljust_jax.common.config_schema import data, losses, models, training
from bljust_jax.common.config_schema.field import KINDS, Field, Range, is_kind
from bljust_jax.common.errors import UserError, nearest

GROUPS: dict[str, Mapping[str, Field]] = {
    "config": training.CONFIG,
    "config.data": data.DATA,
    "config.data.text": data.TEXT,
    "config.data.streams": {},
    "config.data.streams.*": data.STREAM,
    "config.data.streams.*.text": data.TEXT,
    "config.features": models.FEATURES,
    "config.specaugment": models.SPECAUGMENT,
    "config.mask": models.MASK,
    "config.model": models.MODEL,
    "config.decoder": models.DECODER,
    **{f"config.{loss}": fields for loss, fields in losses.read_all().items()},
    "config.phases": training.PHASES,
    "config.lr": training.LR,
    "config.lr.*": training.LR_PHASE,
    "config.optim": training.OPTIM,
    "config.penalty": training.PENALTY,
    "config.task_penalty": training.TASK_PENALTY,
    "config.moo": training.MOO,
    "config.collapse": training.COLLAPSE,
    "config.stop": training.STOP,
    "config.mesh": training.MESH,
}


def rows(group: Any, name: str = "config") -> Iterator[tuple[str, Any, Field | None]]:
    """(name, value, row) of each field below a group of a config, such as "config.model.dim"; the
    row is None where the schema has none, as for a field of the user's own."""
    return _rows(group, name, name)


def _rows(group: Any, name: str, pattern: str) -> Iterator[tuple[str, Any, Field | None]]:
    for key in group:
        value = group[key]
        if hasattr(value, "keys"):
            inner = f"{pattern}.{key}"
            yield from _rows(value, f"{name}.{key}", inner if inner in GROUPS else f"{pattern}.*")
        else:
            yield f"{name}.{key}", value, GROUPS.get(pattern, {}).get(key)


def with_loss_fields(config: Any, loss: str) -> Any:
    """The config with all fields of `config.<loss>`: those that it lacks at their defaults."""
    return losses.complete(config, loss, GROUPS.get(f"config.{loss}", {}))


def check(group: Any, name: str = "config") -> None:
    """UserError for the first field of a config, or of its group `name`, that is of another type,
    out of range or none of the choices. Fields without a row are skipped."""
    recipe = group.get("recipe", "")
    for field, value, row in rows(group, name):
        if row is not None:
            _check_value(field, value, row, recipe)


def check_model(model: Any, prefix: str = "") -> None:
    """UserError for the first field of a dataclass that the row of that name of `config.model` does
    not allow; `prefix` comes before the name."""
    for field in dataclasses.fields(model):
        if field.name in models.MODEL:
            value, row = getattr(model, field.name), models.MODEL[field.name]
            _check_value(prefix + field.name, value, row, "")


def _check_value(name: str, value: Any, row: Field, recipe: str) -> None:
    if not is_kind(value, row.kind):
        raise UserError(f"{name}={value!r} must be {KINDS[row.kind]}")
    if isinstance(row.allowed, Range):
        if not row.allowed.holds(value):
            raise UserError(f"{name}={value} must be {row.allowed.words}")
        return
    choices = _choices(row, recipe)
    for entry in (value if row.kind is tuple else (value,)) if choices else ():
        if entry not in choices:
            near = nearest(str(entry), map(str, choices))
            raise UserError(f"{name}={value!r}: there is no {entry!r}{near}")


def _choices(row: Field, recipe: str) -> tuple:
    """The choices of a row, () where every value is allowed."""
    allowed = row.allowed or ()
    return tuple(allowed.get(recipe, ()) if isinstance(allowed, Mapping) else allowed)


VALUE_WIDTH = 40


def describe(config: Any) -> str:
    """All fields of a config in aligned columns: name, value, type, range or choices, help."""
    table = [("field", "value", "type", "range or choices", "meaning")]
    for name, value, row in rows(config):
        row = row or Field(type(value), "")
        if isinstance(row.allowed, Range):
            allowed = row.allowed.words
        else:
            allowed = " | ".join(map(str, _choices(row, config.get("recipe", ""))))
        shown = str(value) if len(str(value)) <= VALUE_WIDTH else f"{str(value)[:VALUE_WIDTH]}..."
        table.append((name, shown, row.kind.__name__, allowed, row.help))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in table)
    return "\n".join(lines)
