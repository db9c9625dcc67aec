"""Commands and Python snippets of Markdown pages, and checks that they exist in this checkout."""

import contextlib
import functools
import importlib.util
import io
import pathlib
import re
import shlex

from bljust_jax import __main__ as bljust
from bljust_jax.common import config_schema

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
EXPORTED = "exported/modeling.py"  # what `bljust export` writes


def pages() -> list[pathlib.Path]:
    """README.md and every page of docs/."""
    return [README, *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str, *languages: str) -> list[str]:
    """The contents of a Markdown text's fenced blocks of these languages, "" for none given."""
    found = re.findall(r"^```([\w{}:-]*)\n(.*?)^```", text, flags=re.M | re.S)
    return [body for language, body in found if language in languages]


def commands(text: str) -> list[list[str]]:
    """The words of each command in a Markdown text's fenced shell blocks, continuations joined."""
    lines = "".join(blocks(text, "", "bash", "sh", "shell")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def makefile_targets() -> set[str]:
    lines = (ROOT / "Makefile").read_text().splitlines()
    return {match[1] for line in lines if (match := re.match(r"([a-z][\w-]*):(?!=)", line))}


def load_config(address: str):
    """The ConfigDict of `--config=x:variant,variant` or `--config=configs/x.py:variant`."""
    path, _, variants = address.partition(":")
    path = path if path.endswith(".py") else f"configs/{path}.py"
    spec = importlib.util.spec_from_file_location("config_of_readme", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variants or None)


@functools.cache
def help_of(module: str) -> str:
    """What `python -m MODULE --help` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        importlib.import_module(module).main(["--help"])
    return out.getvalue()


def as_module(words: list[str]) -> list[str]:
    """`bljust COMMAND ...` as `python -m bljust_jax.MODULE ...`; other commands as they are."""
    if words[:1] != ["bljust"]:
        return words
    assert words[1] in bljust.COMMANDS, words
    return ["python", "-m", f"bljust_jax.{bljust.COMMANDS[words[1]][0]}", *words[2:]]


def check_command(words: list[str]) -> None:
    """Asserts that a command of a document exists in this checkout."""
    words = as_module([word for word in words if not re.match(r"[A-Z_]+=", word)])
    if words[:1] == ["make"]:
        assert set(words[1:]) <= makefile_targets(), words
    if words[:1] == ["python"] and words[1].endswith(".py") and words[1] != EXPORTED:
        assert (ROOT / words[1]).is_file(), words
    if words[1:2] == ["-m"] and words[2].startswith("bljust_jax"):
        path = ROOT / words[2].replace(".", "/")
        source = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert source.is_file(), words
        if words[2] != "bljust_jax.main":
            for word in words[3:]:
                flag = word.partition("=")[0]
                known = rf"{re.escape(flag)}\b"
                assert not flag.startswith("--") or re.search(known, help_of(words[2])), words
        options = dict(word[2:].partition("=")[::2] for word in words[3:] if word.startswith("--"))
        config = load_config(options["config"]) if "config" in options else None
        if "config.ssl" in options:
            config = config_schema.with_loss_fields(config, options["config.ssl"])
        for name in options:
            if name.startswith("config."):
                value = config
                for key in name.split(".")[1:]:
                    assert key in value, f"{name}: no such field in {options['config']}"
                    value = value[key]
