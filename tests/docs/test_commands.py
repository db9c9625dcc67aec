"""Every command, link and file that README.md and docs/ name exists."""

import pathlib
import re

import pytest

from configs import variants
from tests.helpers.documents import README, ROOT, blocks, check_command, commands, pages
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
        ["bljust", "brew"],
        ["bljust", "evaluate", "--brew"],
        ["bljust", "train", "--config=quickstart", "--config.data.x=1"],
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
    assert all(f"`{name}`" in text for name in variants.METHODS)


# Tables name a file and a function: in neighbouring cells, or in one cell with a comma between.
FUNCTION = r"`([A-Za-z_]\w*)(?:\([^`]*\))?`"
FILE = r"`((?:bljust_jax|launch)/[\w/]+\.(?:py|sh))`"


# What a page quotes of the log, with its "..." for what differs.
QUOTED = re.compile(r'"([^"`\n|]+)"')


def test_functions_are_in_the_files_that_pages_name():
    found = []
    for name in ("method", "architecture"):
        text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        found += re.findall(rf"{FILE}(?:, | \| ){FUNCTION}", text)
        # walks: | 1 | `function` | `file` |
        found += [(f, n) for n, f in re.findall(rf"\| \d+ \| {FUNCTION} \| {FILE}", text)]
    assert len(found) >= 50
    for file, function in found:
        source = (ROOT / file).read_text(encoding="utf-8")
        defined = rf"^\s*(def {function}\b|class {function}\b|{function}\b.*=|{function}\(\))"
        assert re.search(defined, source, flags=re.M), f"{file} has no {function}"


def test_every_folder_of_the_package_is_in_the_architecture_page():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for folder in (ROOT / "bljust_jax").glob("[a-z]*/"):
        assert f"  {folder.name}/ " in text, folder.name


def test_every_page_is_in_the_index():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in pages():
        assert page == README or page.stem == "index" or f"\n{page.stem}\n" in text, page


@PAGES
def test_sentences_are_short(page):
    """At most 25 words, tables and code apart."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    lines = [line for line in text.splitlines() if not re.match(r"[|#!]", line)]
    prose = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "code", "\n".join(lines)))
    for paragraph in re.split(r"\n\s*\n", prose):
        for sentence in re.split(r"[.?!:;](?:\s+|$)", paragraph):
            assert len(sentence.split()) <= 25, sentence


@PAGES
def test_every_python_snippet_is_marked_as_one_and_so_executed(page):
    """`test_scenario` executes the blocks of language python."""
    text = page.read_text(encoding="utf-8")
    languages = set(re.findall(r"^```([\w{}:-]+)\n", text, flags=re.M))
    for body in blocks(text, "", *(languages - {"python"})):
        assert not re.search(r"^(import \w+|from \w[\w.]* import )", body, flags=re.M), body


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_quoted_messages_are_in_the_sources():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    sources = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "bljust_jax").rglob("*.py"))
    # a message may span lines: joined literals, and what stands between braces differs
    sources = re.sub(r"\"\s*\n\s*f?\"", "", sources)
    quoted = [part.strip() for text in QUOTED.findall(text) for part in text.split("...")]
    assert len(quoted) >= 7
    for part in quoted:
        words = re.sub(r"\d+", "0", part)
        known = re.sub(r"\{[^{}]*\}", "0", sources)
        assert not words or words in re.sub(r"\d+", "0", known), part
