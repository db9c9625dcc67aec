"""Who may import whom: the table of the architecture, read from the sources and never executed."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bljust_jax"

HOST = {"errors", "jaxtyping", "numpy"}
JAX = HOST | {"jax"}
LOOP = JAX | {"optax", "orbax", "tensorboardX", "system"}
COMMAND = {"absl", "ml_collections", "command"}
EVALUATE = JAX | COMMAND | {
    *("system", "sharding", "checkpoint", "programs", "metrics", "recipes", "data", "decode"),
    *("jiwer", "sacrebleu"),
}  # fmt: skip

# What each part of the package may import: parts of the package and third-party packages by name.
ALLOWED = {
    "errors": set(),
    "command": {"errors", "waiting"},
    "main": JAX | COMMAND | {"train", "data", "ranges", "hosts", "tracing"},
    "hosts": JAX | {"waiting"},
    "waiting": set(),
    "ranges": {"errors"},
    "train": JAX | {
        *("system", "step", "optim", "sharding", "checkpoint", "metrics", "evaluate"),
        *("programs", "folder", "beginning", "alarm", "hosts", "compute", "goodput"),
        *("peaks", "tracing"),
        *("recipes", "data", "example", "progress", "report", "ml_collections"),
    },
    "beginning": JAX | {"system", "step", "data", "evaluate", "export"},
    "alarm": {"errors"},
    "recipes": JAX | {
        *("recognition", "translation", "objectives", "encoders", "models", "bilevel", "system"),
        "phases",
        "ml_collections",
    },
    "encoders": JAX | {"models", "ops"},
    "recognition": {"encoders", "errors", "models", "objectives", "ops", "system"},
    "phases": {"bilevel", "optim", "system"},
    "objectives": JAX | {"ops", "system"},
    "decode": JAX | {"ops", "kenlm"},
    "models": JAX | {"ops", "flax"},
    "ops": JAX,
    "translation": {"recognition", "encoders", "models", "objectives", "decode", "system"},
    "bilevel": JAX | {"optax", "ops"},
    "system": JAX | {"optax"},
    "gradients": JAX | {"system", "bilevel", "ops"},
    "step": LOOP | {"gradients", "bilevel"},
    "optim": LOOP,
    "sharding": LOOP | {"ops"},
    "checkpoint": LOOP | {"integrity"},
    "integrity": JAX,
    "metrics": LOOP,
    "folder": {"errors", "data", "system", "checkpoint"},
    "programs": JAX | {"system", "goodput"},
    "progress": {"goodput"},
    "goodput": set(),
    "compute": {"system"},
    "peaks": set(),
    "tracing": JAX,
    "evaluate": EVALUATE,
    "data": HOST | {
        *("grain", "soundfile", "soxr", "sentencepiece", "tensorflow_datasets"),
        *("array_record", "espeakng_loader", "waiting"),
    },
    "export": JAX | {
        *("models", "encoders", "ops", "data", "decode", "recogniser", "evaluate", "system"),
        *("safetensors", "sentencepiece", "torch", "transformers", "ml_collections"),
    },
    "recogniser": EVALUATE | {"evaluate", "export"},
    "transcribe": EVALUATE | {"evaluate", "ops", "recogniser", "soundfile", "soxr"},
    "export_checkpoint": JAX | COMMAND | {
        *("export", "evaluate", "encoders", "metrics", "programs", "recipes", "decode"),
    },
    "example": JAX | {"system", "ops", "data", "decode"},
    "plots": HOST | {"matplotlib"},
    "report": HOST | COMMAND | {"metrics", "plots", "jiwer"},
    "ngram": COMMAND | {"data", "decode", "errors"},
    "prepare": HOST | COMMAND | {"data"},
    "chips": {"jax", "errors", "ops"},
    "aot": JAX | COMMAND | {"chips", "peaks", "recipes", "optim", "sharding", "step", "data"},
    "bench": JAX | COMMAND | {
        *("ops", "system", "step", "optim", "peaks", "sharding", "recipes", "encoders", "data"),
        *("optax", "torch", "transformers", "configs", "soundfile"),
    },
}  # fmt: skip

# Imported inside functions only: heavy, optional, or absent on some machines.
LAZY = {
    "hosts": {"jax"},
    "chips": {"jax", "ops"},
    "tracing": {"jax"},
    "data": {"grain", "tensorflow_datasets", "array_record", "sentencepiece", "espeakng_loader"},
    "decode": {"kenlm"},
    "beginning": {"export"},
    "bench": {"data", "soundfile", "torch", "transformers"},
    "export": {"torch", "transformers", "sentencepiece", "safetensors"},
    "recogniser": {"export"},
}


def part_of(path: pathlib.Path) -> str:
    """The row of the table that a source file belongs to."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: pathlib.Path) -> list[tuple[str, bool, int]]:
    """(name, at import time, line) of all that a file imports: parts of the package, or
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
    """But for the file that an export copies: it stands alone, on torch."""
    apart = {PACKAGE / "__init__.py", PACKAGE / "export" / "modeling.py"}
    return sorted(path for path in PACKAGE.rglob("*.py") if path not in apart)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_part_may(path):
    part = part_of(path)
    assert part in ALLOWED, f"{part} has no row in the table of imports"
    allowed = ALLOWED[part] | {part}
    for name, eager, line in imports(path):
        where = f"{path.relative_to(ROOT)}:{line}"
        assert name in allowed, f"{where}: {part} must not import {name}"
        assert not (eager and name in LAZY.get(part, ())), f"{where}: import {name} in a function"


@pytest.mark.parametrize("name", ["flax", "espeakng_loader", "orbax"])
def test_one_place_for_each(name):
    places = {"flax": "models/", "espeakng_loader": "data/synthetic.py", "orbax": "checkpoint.py"}
    for path in sources():
        if any(imported == name for imported, _, _ in imports(path)):
            assert path.relative_to(PACKAGE).as_posix().startswith(places[name]), path


def test_the_package_itself_imports_nothing():
    """`import bljust_jax` costs nothing, and a part's import pulls in no other."""
    assert imports(PACKAGE / "__init__.py") == []


def test_configs_know_nothing_of_the_package():
    for path in sorted((ROOT / "configs").glob("*.py")):
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
