"""The fields of losses, read from the losses' own files: `FIELDS` of `objectives/NAME.py`.

The files import jax, so they are parsed, not imported: `FIELDS` is a dict at module level of
`Field(...)` with ranges as `r....`, and no other name. A loss that `config.ssl` can name gives each
field a default, which a config takes unless it sets the field itself.
"""

import ast
import pathlib
from collections.abc import Mapping
from typing import Any

from bljust_jax.common.config_schema import ranges
from bljust_jax.common.config_schema.field import Field

KINDS = {kind.__name__: kind for kind in (bool, int, float, str, tuple)}
FOLDER = pathlib.Path(__file__).resolve().parents[2] / "objectives"


def read(path: pathlib.Path) -> dict[str, Field]:
    """`FIELDS` of a loss's file, {} without. ValueError, with file and line, for other names than
    `Field` and `r` in it."""
    source = path.read_text(encoding="utf-8")
    if "\nFIELDS = " not in source:
        return {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FIELDS":
            expression = compile(ast.Expression(node.value), str(path), "eval")
            try:
                return eval(expression, {"__builtins__": KINDS, "Field": Field, "r": ranges})
            except (NameError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{path}:{node.lineno}: FIELDS has Field(...) and ranges as r.NAME alone: "
                    f"{error}"
                ) from error
    return {}


def read_all() -> dict[str, dict[str, Field]]:
    """{loss: its fields} of the losses that have some."""
    found = {path.stem: read(path) for path in sorted(FOLDER.glob("*.py"))}
    return {loss: fields for loss, fields in found.items() if fields}


def complete(config: Any, loss: str, fields: Mapping[str, Field]) -> Any:
    """The config with the fields of `config.<loss>` that it lacks, at their defaults: itself if it
    lacks none, else a copy."""
    own = config.get(loss, {})
    missing = {name: row.default for name, row in fields.items() if name not in own}
    if not missing:
        return config
    locked, config = config.is_locked, config.copy_and_resolve_references()
    with config.unlocked():
        config[loss] = type(config)({**own, **missing})
    return config.lock() if locked else config
