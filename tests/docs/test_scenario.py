"""The commands and snippets of README.md and docs/ run, shrunk, with one small trained model."""

import json
import shutil

import pytest

from tests.helpers import compile_cache
from tests.helpers.documents import as_module, blocks, commands, pages
from tests.helpers.shrunk_commands import execute, make_folder

# Pages on which later commands read what earlier ones trained.
TRAINING = {"data", "first_hour", "training"}
CACHE = compile_cache.folder() or ""  # none: off
TRAIN = "--config=manifest:supervised --workdir=runs/manifest"
DATA = "--config.data.train=train.jsonl --config.data.dev=dev.jsonl --config.data.test=dev.jsonl"


def trains(words):
    return as_module(words)[2:3] == ["bljust_jax.main"]


def parts():
    """(page, its commands), those that train apart, with all of pages that build on them."""
    for page in pages():
        found = commands(page.read_text(encoding="utf-8"))
        training = found if page.stem in TRAINING else [c for c in found if trains(c)]
        rest = [c for c in found if c not in training]
        if rest:
            yield pytest.param(rest, id=page.stem)
        if training:
            yield pytest.param(training, id=f"{page.stem}-training")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with manifests, audio and one trained run, which stands for all that pages name."""
    folder = make_folder(tmp_path_factory.mktemp("documents"))
    execute(["bljust", "train", *TRAIN.split(), *DATA.split()], folder, CACHE)
    for name in ("manifest-digits", "manifest-digits-ptft", "quickstart"):
        shutil.copytree(folder / "runs" / "manifest", folder / "runs" / name)
    return folder


@pytest.fixture
def folder(trained, tmp_path, monkeypatch):
    """A copy of it, the current folder."""
    copy = shutil.copytree(trained, tmp_path / "folder", symlinks=True)
    monkeypatch.chdir(copy)
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("found", list(parts()))
def test_commands_run(found, folder):
    for words in found:
        if words[:2] == ["bljust", "prepare"]:
            for split, name in (("train", "train-clean-100"), ("dev", "dev-clean")):
                options = [f"{split}.jsonl", "--split", name, "--out", "shards", "--verify"]
                execute([*words[:2], *options], folder, CACHE)
        else:
            execute(words, folder, CACHE)


PAGES = pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)


@pytest.mark.slow
@PAGES
def test_snippets_run(page, folder):
    for snippet in blocks(page.read_text(encoding="utf-8"), "python"):
        exec(compile(snippet, f"{page.name}, python block", "exec"), {"__name__": "snippet"})


@PAGES
def test_snippets_are_python_and_json(page):
    text = page.read_text(encoding="utf-8")
    for snippet in blocks(text, "python"):
        compile(snippet, f"{page.name}, python block", "exec")
    for example in blocks(text, "json"):
        assert json.loads(example)
