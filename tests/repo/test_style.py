"""Rules of the sources: length of functions, commands at the package root, plain docstrings."""

import ast
import importlib
import pathlib
import re
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
    """At most 60 lines, docstring included; configs are tables."""
    for path in sources("bljust_jax", "tests"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                short = lines <= MAX_LINES or (name_of(path), node.name) in LONG
                assert short, f"{name_of(path)}:{node.lineno}: {node.name} has {lines} lines"


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_file_at_the_package_root_is_a_command(path, monkeypatch, capsys):
    """It has a `main`, is started by it, and `--help` prints its usage."""
    body = ast.parse(path.read_text()).body
    defined = {node.name for node in body if hasattr(node, "name")}
    assigned = [node for node in body if isinstance(node, ast.Assign)]
    defined |= {ast.unparse(t) for node in assigned for t in node.targets}
    assert "main" in defined, f"{name_of(path)} is no command: move it to a folder"
    assert ast.unparse(body[-1]).startswith("if __name__ == '__main__':"), name_of(path)
    assert "main(" in ast.unparse(body[-1]), name_of(path)
    module = importlib.import_module(f"bljust_jax.{path.stem}")
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    try:
        code = module.main()
    except SystemExit as ended:
        code = ended.code
    assert not code
    assert f"python -m bljust_jax.{path.stem}" in " ".join(capsys.readouterr().out.split())


def test_modules_say_what_they_offer_in_one_sentence():
    """The first line of the docstring of a module is a sentence; that of a command is its usage."""
    for path in sources("bljust_jax", "configs"):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first, _, rest = docstring.partition("\n")
        assert first, f"{name_of(path)}: no docstring"
        if path not in COMMANDS:
            sentence = first.endswith(".") and (not rest or rest.startswith("\n"))
            assert sentence, f"{name_of(path)}: one line, one sentence, then a blank line: {first}"
            assert len(first) + len('"""') <= 100


# Personification, riddles and the bare article in place of "per".
AVOIDED = (
    *(r"\bhears?\b", r"\bheard\b", r"\bsaid\b", r"\baloud\b", r"\bso many\b", r"\bparted by\b"),
    *(r"\btold (?:in|of|apart|as)\b", r"\btells? of\b", r"\bknows? nothing of\b"),
    *(r"\bhow many an?\b", r"\bhanded on\b", r"\bput together\b", r"\bgoes? on with\b"),
    r"\b(?:once|bytes|seconds|rows|frames|steps|lines?) an? (?:step|utterance|device|epoch)\b",
    *(r"\b(?:a|one) (?:row|line|panel|task|pod|file) an? \w+\b", r"\brecognisers?\b"),
)


def docstrings(path: pathlib.Path) -> list[str]:
    """The docstrings of a module, its classes and functions."""
    with_docstring = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [ast.get_docstring(n) or "" for n in nodes if isinstance(n, with_docstring)]


def test_docstrings_are_in_plain_english():
    for path in sources("bljust_jax", "configs"):
        for text in docstrings(path):
            found = re.search("|".join(AVOIDED), " ".join(text.split()))
            assert found is None, f"{name_of(path)}: {found[0]!r} in a docstring; say it plainly"
