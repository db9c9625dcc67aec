"""Tokenizer files of a workdir, and the one that --task names."""

import pathlib

import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.data import tokenizer_files
from bljust_jax.data.tokenizer import CharTokenizer

RUN = pathlib.Path("RUN")
SEVERAL = {"asr/en": CharTokenizer("abc"), "st/en-zh-CN": CharTokenizer("abcd")}


def test_each_stream_has_a_folder_and_comes_back(tmp_path):
    tokenizer_files.save(tmp_path, SEVERAL)
    folders = ["asr_en", "st_en-zh-CN"]
    assert sorted(p.name for p in (tmp_path / "tokenizers").iterdir()) == folders
    found = tokenizer_files.load(tmp_path, SEVERAL)
    assert {name: t.symbols for name, t in found.items()} == {
        name: t.symbols for name, t in SEVERAL.items()
    }
    for name, expected in SEVERAL.items():
        assert tokenizer_files.load_one(tmp_path, name).symbols == expected.symbols
    with pytest.raises(UserError, match=r"tokenizers/asr_de/tokenizer.json is missing"):
        tokenizer_files.load(tmp_path, ["asr/de"])


def test_the_only_task_needs_no_name(tmp_path):
    tokenizer_files.save(tmp_path, {"asr/en": SEVERAL["asr/en"]})
    assert tokenizer_files.load_one(tmp_path, "").symbols == SEVERAL["asr/en"].symbols
    alone = tmp_path / "alone"
    tokenizer_files.save(alone, {"labelled": SEVERAL["asr/en"]})
    assert (alone / "tokenizer.json").is_file()
    assert tokenizer_files.load_one(alone, "").symbols == SEVERAL["asr/en"].symbols


@pytest.mark.parametrize(
    ("task", "there", "words"),
    [
        ("", ["asr/ar", "asr/en"], "RUN has several tasks: choose one with --task, of asr/ar, "),
        ("asr/eng", ["asr/ar", "asr/en"], "no task 'asr/eng', did you mean 'asr/en'? There are: "),
        ("asr/en", [""], "--task asr/en: RUN has one task, without a name"),
    ],
)
def test_a_wrong_task_is_one_line(task, there, words):
    with pytest.raises(UserError) as raised:
        tokenizer_files.choose(RUN, task, there)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_task_of_the_run_is_chosen():
    assert tokenizer_files.choose(RUN, "asr/en", ["asr/ar", "asr/en"]) == "asr/en"
    assert tokenizer_files.choose(RUN, "", ["asr/en"]) == "asr/en"
    assert tokenizer_files.choose(RUN, "", [""]) == ""
