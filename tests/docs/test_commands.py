"""Every command, link and file that README.md and docs/ name exists."""

import pathlib
import re

import pytest

from configs import common
from tests.helpers.documents import README, ROOT, check_command, commands, pages
from tests.helpers.training_configs import CONFIGS, M2ASR_CONFIG

PAGES = pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)


@PAGES
def test_readme_commands_exist(page):
    found = commands(page.read_text(encoding="utf-8"))
    if page == README:
        assert ["make", "quickstart"] in found
        assert ["make", "test"] in found
    for words in found:
        check_command(words)


@PAGES
def test_the_configs_of_the_readme_are_among_those_run_shrunk(page):
    """Every training command is a Makefile target or has its config run by a test."""
    named = {
        pathlib.Path(word.split("=", 1)[1].split(":")[0]).stem
        for words in commands(page.read_text(encoding="utf-8"))
        for word in words
        if word.startswith("--config=")
    }
    run = {name.split("-")[0] for name in CONFIGS} | {M2ASR_CONFIG, "birq"}
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


@PAGES
def test_readme_links_and_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:bljust_jax|configs|tests)/[\w/]+\.py)`", text):
        assert (ROOT / name).is_file(), name


def test_readme_names_every_method():
    text = README.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in common.METHODS)
