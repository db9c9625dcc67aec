"""Rules of the repository: file sizes, no private addresses, Makefile targets, pins, licence."""

import functools
import os
import pathlib
import re
import subprocess
import tomllib

from tests.helpers.documents import ROOT, makefile_targets

SKIPPED = {".git", ".venv", ".venv-newest", "runs", "__pycache__"}
SKIPPED |= {".hypothesis", ".ruff_cache", "build", "reference"}


def is_skipped(name: str) -> bool:
    return name in SKIPPED or name.startswith(".venv") or name.endswith(".egg-info")


@functools.cache
def text_files() -> dict[str, str]:
    """Name and text of every text file of the checkout that is not built or run."""
    found = {}
    for folder, folders, files in os.walk(ROOT):
        folders[:] = sorted(name for name in folders if not is_skipped(name))
        for path in (pathlib.Path(folder, name) for name in sorted(files)):
            if path.is_file() and not is_skipped(path.name):
                data = path.read_bytes()
                if b"\0" not in data[:1024]:
                    found[path.relative_to(ROOT).as_posix()] = data.decode("utf-8")
    return found


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
    assert {"quickstart", "test"} <= described == makefile_targets()
    assert len((ROOT / "Makefile").read_text().splitlines()) <= 80


def test_an_accelerator_that_is_unknown_is_refused():
    refused = subprocess.run(
        ["make", "-n", "setup", "ACCEL=abacus"], cwd=ROOT, capture_output=True, text=True
    )
    assert refused.returncode != 0
    assert "ACCEL=abacus is not one of cpu, cuda, tpu" in refused.stderr


def requirement_names(file: str) -> set[str]:
    return names_of((ROOT / file).read_text().splitlines())


def names_of(lines: list[str]) -> set[str]:
    names = (re.match(r"[A-Za-z0-9._-]+", line) for line in lines if not line.startswith("-"))
    return {re.sub(r"[-_.]+", "-", name[0]).lower() for name in names if name}


def test_the_lock_holds_pins_and_covers_the_requirements():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+( ; .+)?", line) for line in lines)
    locked = requirement_names("requirements.lock")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    development = project["optional-dependencies"]["dev"]
    assert requirement_names("requirements.txt") | names_of(development) <= locked


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
