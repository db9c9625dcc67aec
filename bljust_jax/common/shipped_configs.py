"""Find the configs shipped with the package by name, from any working folder.

They are in configs/ beside the package in a checkout, in bljust_jax/configs/ in an installation.
They import each other as `configs`; `bind` gives them that name, so that an installation adds no
top-level package `configs` and a folder of that name of the user's can coexist.
"""

import importlib.util
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from bljust_jax.common.errors import UserError, nearest, one_line

PACKAGE = pathlib.Path(__file__).resolve().parents[1]
PLACES = (PACKAGE / "configs", PACKAGE.parent / "configs")
FOLDER = next((p for p in PLACES if p.is_dir()), PLACES[0])
SHARED = {"__init__", "defaults", "variants"}  # modules that are no config


def names() -> list[str]:
    """The shipped configs: birq, librispeech, ..."""
    return sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in SHARED)


def resolve(given: str) -> str:
    """The value of --config with a path: "quickstart:smoke" -> ".../configs/quickstart.py:smoke".

    An existing file stays as it is; so does what names no shipped config.
    """
    path, colon, variants = given.partition(":")
    name = path.removeprefix("configs/").removesuffix(".py")
    if os.path.isfile(path) or name not in names():
        return given
    return f"{FOLDER / name}.py{colon}{variants}"


def load(given: str) -> Any:
    """The config of a value of --config, "quickstart:smoke" or "FILE.py:VARIANT,...". Raises
    UserError, in one line, for a file that does not exist or that fails."""
    path, _, variants = resolve(given).partition(":")
    if not os.path.isfile(path):
        raise UserError(f"--config={given}: no such config file{nearest(path, names())}")
    bind(path)
    spec = importlib.util.spec_from_file_location("bljust_jax.loaded_config", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config(variants or None)
    except Exception as error:  # code of the user's
        raise UserError(f"--config={given}: {one_line(error) or type(error).__name__}") from error


def resolve_flag(argv: Sequence[str]) -> list[str]:
    """Command-line arguments with the value of --config resolved."""
    resolved = list(argv)
    for n, arg in enumerate(argv):
        if arg.startswith("--config="):
            resolved[n] = f"--config={resolve(arg.removeprefix('--config='))}"
        elif arg == "--config" and n + 1 < len(argv):
            resolved[n + 1] = resolve(argv[n + 1])
    return resolved


def bind(own: str | os.PathLike = "") -> None:
    """Make `import configs` mean the shipped configs, and before them the folder of the config file
    `own`, if its name is configs. Does nothing if `configs` is imported already."""
    if "configs" in sys.modules:
        return
    folder = pathlib.Path(own).resolve().parent
    places = [str(p) for p in dict.fromkeys((folder, FOLDER)) if p.name == "configs"]
    spec = importlib.util.spec_from_file_location(
        "configs", FOLDER / "__init__.py", submodule_search_locations=places
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["configs"] = module
    spec.loader.exec_module(module)
