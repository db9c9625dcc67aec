"""Mutation testing by hand-written mutations: each must make one of its nearest tests fail.

    python -m tests.mutants.run [AREA ...] [--only ID ...] [--timeout SECONDS] [--rows FILE]

tests/mutants/AREA.toml lists the mutations of one area: the file, the text to replace, the new
text, the tests that must notice, and what breaks. Every mutation is applied alone, in a copy of the
checkout; its tests run in a process forked after the imports of jax. A mutation "survives" if they
pass, and is broken unless they pass without it. Exit code 1 if one survives or is broken; --rows
appends one JSON object per mutation.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback

from tests.helpers import environment

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
COPIED = ("bljust_jax", "configs", "launch", "tests", "pyproject.toml", "README.md", "docs")
KILLED, SURVIVED, BROKEN = "killed", "SURVIVED", "BROKEN"


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One mutation. file: relative to bljust_jax; old: occurs there exactly once; tests: arguments
    of pytest; breaks: the property that is lost; equivalent: why no test can notice, or ""."""

    area: str
    id: str
    file: str
    old: str
    new: str
    tests: str
    breaks: str
    equivalent: str = ""

    def apply(self, root: pathlib.Path) -> str:
        """The mutated text of the file. ValueError unless `old` occurs exactly once."""
        text = (root / "bljust_jax" / self.file).read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.id}: {self.file} has {text.count(self.old)} times {self.old}")
        return text.replace(self.old, self.new)


def areas() -> list[str]:
    """The areas that have a list."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(area: str) -> list[Mutant]:
    """The mutations of an area."""
    with open(FOLDER / f"{area}.toml", "rb") as file:
        return [Mutant(area, **row) for row in tomllib.load(file)["mutant"]]


@contextlib.contextmanager
def applied(mutant: Mutant, root: pathlib.Path):
    """The mutation in the files of `root`, taken back afterwards."""
    path = root / "bljust_jax" / mutant.file
    original, mutated = path.read_text(encoding="utf-8"), mutant.apply(root)
    path.write_text(mutated, encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(original, encoding="utf-8")


def run_tests(arguments: list[str], root: pathlib.Path, timeout: float) -> int:
    """Exit code of pytest in a forked process; 1 after `timeout` seconds, as a hang is noticed."""
    child = os.fork()
    if child == 0:
        code = 3  # pytest's for an internal error
        try:
            code = _pytest(arguments, root)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 1


def _pytest(arguments: list[str], root: pathlib.Path) -> int:
    """Exit code of pytest in `root`, without output."""
    os.setsid()
    os.chdir(root)
    sys.path.insert(0, str(root))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "bljust_jax")]:
        del sys.modules[name]
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    import pytest

    return int(pytest.main(["-x", "-m", "not slow and not gpu", *arguments]))


class Judge:
    """Applies mutations in the checkout `root`; `timeout` is in seconds per mutation."""

    def __init__(self, root: pathlib.Path, timeout: float):
        self._root, self._timeout = root, timeout
        self._whole: dict[str, bool] = {}  # {tests: whether they pass without a mutation}

    def __call__(self, mutant: Mutant) -> str:
        """KILLED, SURVIVED, or BROKEN: the mutation does not apply, or its tests do not pass
        without it, or there are none."""
        if mutant.tests not in self._whole:
            self._whole[mutant.tests] = self._run(mutant) == 0
        if not self._whole[mutant.tests]:
            return BROKEN
        try:
            with applied(mutant, self._root):
                return KILLED if self._run(mutant) else SURVIVED
        except ValueError as error:
            print(error, file=sys.stderr)
            return BROKEN

    def _run(self, mutant: Mutant) -> int:
        return run_tests(shlex.split(mutant.tests), self._root, self._timeout)


def preload() -> None:
    """Import what tests need and no mutation changes; no backend may start before a fork."""
    environment.set_up()
    # not hypothesis and jaxtyping: pytest wants to import its plugins itself
    for name in ("flax.linen", "jax", "optax", "orbax.checkpoint", "pytest", "soundfile", "soxr"):
        importlib.import_module(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("areas", nargs="*", help=f"of {', '.join(areas())}; default: all")
    parser.add_argument("--only", nargs="+", default=[], help="ids of single mutations")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds per mutation")
    parser.add_argument("--rows", type=pathlib.Path, help="file of results, one JSON row each")
    flags = parser.parse_args()
    chosen = [m for area in flags.areas or areas() for m in read(area)]
    chosen = [m for m in chosen if (not flags.only or m.id in flags.only) and not m.equivalent]
    sys.dont_write_bytecode = True
    preload()
    counts = {KILLED: 0, SURVIVED: 0, BROKEN: 0}
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch) / "checkout"
        for name in COPIED:
            source, ignored = ROOT / name, shutil.ignore_patterns("__pycache__")
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=ignored)
            else:
                shutil.copy(source, root / name)
        judge = Judge(root, flags.timeout)
        for n, mutant in enumerate(chosen, start=1):
            began = time.monotonic()
            verdict = judge(mutant)
            counts[verdict] += 1
            seconds = time.monotonic() - began
            print(f"{n}/{len(chosen)} {mutant.id}: {verdict}, {seconds:.0f} s", flush=True)
            if flags.rows:
                row = {"id": mutant.id, "area": mutant.area, "verdict": verdict}
                with open(flags.rows, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row | {"seconds": round(seconds, 1)}) + "\n")
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return int(counts[KILLED] != len(chosen))


if __name__ == "__main__":
    sys.exit(main())
