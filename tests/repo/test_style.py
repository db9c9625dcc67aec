"""Rules of the sources: length of functions, commands at the package root, docstrings of modules."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

from tests.helpers.documents import ROOT

PACKAGE = ROOT / "bljust_jax"
MAX_LINES = 60
COMMANDS = sorted(path for path in PACKAGE.glob("*.py") if not path.name.startswith("__"))
# the training loop: one function from the first step to the last
LONG = {("bljust_jax/train/loop.py", "train")}


def sources(*folders: str) -> list[pathlib.Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_functions_are_short():
    """At most 60 lines, docstring included."""
    for path in sources("bljust_jax", "configs", "tests"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                short = lines <= MAX_LINES or (name_of(path), node.name) in LONG
                assert short, f"{name_of(path)}:{node.lineno}: {node.name} has {lines} lines"


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_file_at_the_package_root_is_a_command(path):
    """It has a `main`, and `--help` prints its usage."""
    defined = {node.name for node in ast.parse(path.read_text()).body if hasattr(node, "name")}
    assert "main" in defined, f"{name_of(path)} is no command: move it to a folder"
    done = subprocess.run(
        [sys.executable, "-m", f"bljust_jax.{path.stem}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"python -m bljust_jax.{path.stem}" in " ".join(done.stdout.split())
