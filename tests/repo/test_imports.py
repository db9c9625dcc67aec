"""Imports point downward only: one row per folder of the package, read from the sources and never
executed."""

import ast
import functools
import graphlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = ("tests.helpers", "tests.mutants")  # modules that tests import
PACKAGE = ROOT / "bljust_jax"

HOST = {"jaxtyping", "numpy"}
JAX = HOST | {"jax"}
LOOP = JAX | {"optax"}
COMMAND = {"absl", "ml_collections", "common"}
BELOW_RECIPES = {"common", "parallel", "ops", "bilevel", "models", "objectives", "tasks"}
BELOW_TRAIN = BELOW_RECIPES | {
    *("data", "decoding", "export", "checkpoint", "monitoring", "recipes", "reporting"),
    "inference",
}

# What each folder may import: folders of the package and third-party packages, by name. A command
# (a file at the package root) may import every folder.
ALLOWED = {
    "common": JAX,
    "parallel": JAX | {"common"},
    "data": HOST | {
        *("common", "grain", "soundfile", "soxr", "sentencepiece", "tensorflow_datasets"),
        *("array_record", "espeakng_loader", "pyarrow", "pyroomacoustics"),
        "apache_beam",
    },
    "decoding": JAX | {"common", "kenlm"},
    "ops": JAX | {"common", "parallel"},
    "bilevel": LOOP | {"common", "parallel"},
    "models": JAX | {"common", "parallel", "ops", "flax"},
    "objectives": JAX | {"common", "decoding", "ops", "bilevel", "models"},
    "export": JAX | {
        *("common", "ops", "models", "data", "decoding"),
        *("safetensors", "sentencepiece", "torch", "transformers", "ml_collections"),
    },
    "checkpoint": JAX | {"common", "bilevel", "orbax"},
    "monitoring": JAX | {"common", "bilevel", "tensorboardX"},
    "tasks": JAX | {"common", "decoding", "ops", "bilevel", "models", "objectives"},
    "recipes": LOOP | BELOW_RECIPES | {"ml_collections", "data"},
    "reporting": JAX | {
        *("common", "data", "decoding", "ops", "bilevel", "monitoring", "matplotlib", "jiwer"),
        "scipy",
    },
    "inference": JAX | COMMAND | {
        *("parallel", "data", "decoding", "ops", "bilevel", "models", "export", "checkpoint"),
        *("recipes", "jiwer", "sacrebleu", "soundfile", "soxr"),
    },
    "train": LOOP | BELOW_TRAIN | {"ml_collections"},
    "comparison": HOST | {
        *("common", "data", "checkpoint", "monitoring", "reporting", "train", "main"),
    },
    "benchmarks": LOOP | BELOW_TRAIN | {
        *("train", "torch", "transformers", "speechbrain"),
        *("configs", "soundfile", "ml_collections"),
    },
}  # fmt: skip
COMMANDS = LOOP | COMMAND | set(ALLOWED)

# Imported inside functions only: heavy, optional, or absent on some machines.
LAZY = {
    "data": {"grain", "tensorflow_datasets", "array_record", "sentencepiece", "espeakng_loader"}
    | {"pyarrow", "pyroomacoustics", "apache_beam"},
    "decoding": {"kenlm"},
    "benchmarks": {"data", "soundfile", "speechbrain", "torch", "transformers"},
    "export": {"torch", "transformers", "sentencepiece", "safetensors"},
    "inference": {"jiwer", "sacrebleu", "soxr"},
    "reporting": {"scipy"},
    "comparison": {"main"},
}


def folder_of(path: pathlib.Path) -> str:
    """The row of the table that a source file belongs to; "" for a command."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else ""


@functools.cache
def imports(path: pathlib.Path) -> list[tuple[str, bool, int]]:
    """(name, at import time, line) of all that a file imports: folders of the package, or
    packages."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    bodies = [node for node in ast.walk(tree) if isinstance(node, functions)]
    inside = {id(node) for body in bodies for node in ast.walk(body)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            whole = node.module in ("bljust_jax", "configs")
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = names if whole else [node.module]
        else:
            continue
        found += [(name_of(m), id(node) not in inside, node.lineno) for m in modules]
    return [entry for entry in found if entry[0] not in sys.stdlib_module_names]


def name_of(module: str) -> str:
    top, *rest = module.split(".")
    return (rest or [top])[0] if top == "bljust_jax" else top


def sources() -> list[pathlib.Path]:
    """All but the file that an export copies: it stands alone, on torch."""
    apart = {PACKAGE / "__init__.py", PACKAGE / "export" / "torch_model.py"}
    return sorted(path for path in PACKAGE.rglob("*.py") if path not in apart)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_folder_may(path):
    folder = folder_of(path)
    assert folder in {*ALLOWED, ""}, f"{folder} has no row in the table of imports"
    allowed = ALLOWED[folder] | {folder} if folder else COMMANDS
    for name, eager, line in imports(path):
        where = f"{path.relative_to(ROOT)}:{line}"
        assert name in allowed, f"{where}: {folder or 'a command'} must not import {name}"
        assert not (eager and name in LAZY.get(folder, ())), f"{where}: import {name} in a function"


def test_the_table_has_no_cycle():
    graph = {folder: {x for x in names if x in ALLOWED} for folder, names in ALLOWED.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", ["flax", "espeakng_loader", "orbax"])
def test_one_place_for_each(name):
    places = {"flax": "models/", "espeakng_loader": "data/synthetic.py", "orbax": "checkpoint/"}
    for path in sources():
        if any(imported == name for imported, _, _ in imports(path)):
            assert path.relative_to(PACKAGE).as_posix().startswith(places[name]), path


def test_the_package_itself_imports_nothing():
    """`import bljust_jax` costs nothing, and a folder's import pulls in no other."""
    assert imports(PACKAGE / "__init__.py") == []


def test_configs_know_nothing_of_the_package():
    for path in sorted((ROOT / "configs").rglob("*.py")):
        for name, _, line in imports(path):
            assert name in {"ml_collections", "configs"}, f"{path.name}:{line}: imports {name}"


def test_the_reader_of_imports_sees_all_forms(tmp_path):
    """`from package import part`, dotted names, aliases, and what is lazy."""
    source = tmp_path / "module.py"
    source.write_text(
        "import os, flax.linen as nn\nfrom bljust_jax import ops\n"
        "from bljust_jax.data.text import X\n"
        "def f():\n    import grain\n    from bljust_jax.export import y\n"
    )
    assert sorted(imports(source)) == [
        ("data", True, 3),
        ("export", False, 6),
        ("flax", True, 1),
        ("grain", False, 5),
        ("ops", True, 2),
    ]


def test_test_files_import_no_other_test_file():
    """What tests share lies in `tests/helpers/`, one file per subject."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                apart = not name.startswith("tests.") or name.startswith(SHARED)
                assert apart, f"{where}: move what is shared to tests/helpers/, not import {name}"
