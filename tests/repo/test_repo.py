"""The repository keeps its rules: sizes, no private addresses, a README whose commands exist."""

import importlib.util
import pathlib
import re
import shlex
import subprocess

import pytest

from configs import common
from tests.recipes import test_m2asr_train
from tests.train import test_train

ROOT = pathlib.Path(__file__).resolve().parents[2]
SKIPPED = {".git", ".venv", ".venv-newest", "runs", "__pycache__", ".pytest_xla_cache"}
SKIPPED |= {".hypothesis", ".ruff_cache"}
README = ROOT / "README.md"


def text_files() -> dict[str, str]:
    """Name and text of every text file of the checkout that is not built or run."""
    found = {}
    for path in sorted(ROOT.rglob("*")):
        relative = path.relative_to(ROOT)
        if path.is_file() and not any(
            part in SKIPPED or part.startswith(".venv") or part.endswith(".egg-info")
            for part in relative.parts
        ):
            data = path.read_bytes()
            if b"\0" not in data[:1024]:
                found[relative.as_posix()] = data.decode("utf-8")
    return found


def commands(text: str) -> list[list[str]]:
    """The words of each command in a Markdown text's fenced code blocks, continuations joined."""
    blocks = re.findall(r"^```(?:bash|sh|shell)?\n(.*?)^```", text, flags=re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def makefile_targets() -> set[str]:
    lines = (ROOT / "Makefile").read_text().splitlines()
    return {match[1] for line in lines if (match := re.match(r"([a-z][\w-]*):(?!=)", line))}


def load_config(address: str):
    """`configs/x.py:variant,variant` -> the ConfigDict that `--config` would give."""
    path, _, variants = address.partition(":")
    spec = importlib.util.spec_from_file_location("config_of_readme", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variants or None)


def check_command(words: list[str]) -> None:
    """Asserts that a command of a document exists in this checkout."""
    words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    if words[:1] == ["make"]:
        assert set(words[1:]) <= makefile_targets(), words
    if words[1:2] == ["-m"] and words[2].startswith("bljust_jax"):
        path = ROOT / words[2].replace(".", "/")
        source = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert source.is_file(), words
        if words[2] != "bljust_jax.main":
            for word in words[3:]:
                flag = word.partition("=")[0]
                assert not flag.startswith("--") or f'"{flag}"' in source.read_text(), words
        options = dict(word[2:].partition("=")[::2] for word in words[3:] if word.startswith("--"))
        config = load_config(options["config"]) if "config" in options else None
        for name in options:
            if name.startswith("config."):
                value = config
                for key in name.split(".")[1:]:
                    assert key in value, f"{name}: no such field in {options['config']}"
                    value = value[key]


def test_files_fit_the_ceiling():
    for name, text in text_files().items():
        if name.endswith(".py"):
            ceiling = 500 if "pallas" in name else 400
            assert len(text.splitlines()) <= ceiling, f"{name}: over {ceiling} lines"


def test_no_private_paths_and_no_registries():
    private = [f"/{folder}/" for folder in ("work", "home", "root", "opt", "tmp", "Users")]
    registries = ["pypi" + ".org", "python" + "hosted", "index" + "-url", "find" + "-links"]
    for name, text in text_files().items():
        for word in private + registries:
            where = re.search(rf"(?<![\w.}}]){re.escape(word)}", text)
            assert where is None, f"{name}: {text[where.start() - 30 : where.end() + 30]!r}"


def test_the_makefile_has_the_two_commands_and_describes_all():
    helped = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True)
    described = set(re.findall(r"^make ([\w-]+)", helped.stdout, flags=re.M))
    assert {"quickstart", "test"} <= described <= makefile_targets()


def test_an_accelerator_that_is_unknown_is_refused():
    refused = subprocess.run(
        ["make", "-n", "setup", "ACCEL=abacus"], cwd=ROOT, capture_output=True, text=True
    )
    assert refused.returncode != 0
    assert "ACCEL=abacus is not one of cpu, cuda, tpu" in refused.stderr


def test_readme_commands_exist():
    found = commands(README.read_text(encoding="utf-8"))
    assert ["make", "quickstart"] in found
    assert ["make", "test"] in found
    for words in found:
        check_command(words)


def test_the_configs_of_the_readme_are_among_those_run_shrunk():
    """Every training command of the README is a Makefile target or has its config run by a test."""
    named = {
        pathlib.Path(word.split("=", 1)[1].split(":")[0]).stem
        for words in commands(README.read_text(encoding="utf-8"))
        for word in words
        if word.startswith("--config=")
    }
    run = {name.split("-")[0] for name in test_train.CONFIGS} | {test_m2asr_train.CONFIG}
    assert named <= run


@pytest.mark.parametrize(
    "words",
    [
        ["make", "coffee"],
        ["python", "-m", "bljust_jax.brew"],
        ["python", "-m", "bljust_jax.main", "--config=configs/quickstart.py", "--config.data.x=1"],
    ],
)
def test_a_command_that_does_not_exist_is_noticed(words):
    with pytest.raises(AssertionError):
        check_command(words)


def test_readme_links_and_files_exist():
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"`((?:bljust_jax|configs|tests)/[\w/]+\.py)`", text):
        assert (ROOT / name).is_file(), name


def test_readme_names_every_method():
    text = README.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in common.METHODS)


def requirement_names(file: str) -> set[str]:
    lines = (ROOT / file).read_text().splitlines()
    names = (re.match(r"[A-Za-z0-9._-]+", line) for line in lines if not line.startswith("-"))
    return {re.sub(r"[-_.]+", "-", name[0]).lower() for name in names if name}


def test_the_lock_holds_pins_and_covers_the_requirements():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+( ; .+)?", line) for line in lines)
    locked = requirement_names("requirements.lock")
    assert (
        requirement_names("requirements.txt") | requirement_names("requirements-dev.txt") <= locked
    )


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
