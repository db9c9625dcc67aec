"""Speakers of the training data that are held back and scored as dev."""

import json
import re

import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.data.splits import load_splits
from tests.helpers import corpora
from tests.helpers.corpora import load, settings, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = corpora.noise(tmp_path_factory.mktemp("corpus"))
    lines = (made / "train.jsonl").read_text().splitlines()
    write(made, "texts", [entry for entry in map(json.loads, lines) if "text" in entry])
    entries = [json.loads(line) for line in (made / "dev.jsonl").read_text().splitlines()]
    write(made, "others", [{**e, "speaker": f"other{n % 2}"} for n, e in enumerate(entries)])
    return made


def held_back(folder, **changes):
    dev = str(folder / "texts.jsonl")
    return load(folder, **{"dev": dev, "held_back_speakers": 1, **changes})


def speakers(corpus, split):
    return {u.speaker for u in corpus.utterances(split)}


def test_they_train_neither_level_and_alone_are_scored(folder):
    corpus = held_back(folder)
    (name,) = speakers(corpus, "dev")
    others = {"s0", "s1", "s2", "s3"} - {name}
    assert speakers(corpus, "labelled") == speakers(corpus, "unlabelled") == others
    read = {u.id for split in ("labelled", "unlabelled") for u in corpus.utterances(split)}
    assert not read & {u.id for u in corpus.utterances("dev")}


def test_unlabelled_sources_lose_them_too(folder):
    more = {"unlabelled": str(folder / "texts.jsonl"), "unlabelled_with_train": False}
    corpus = held_back(folder, **more)
    assert len(speakers(corpus, "unlabelled")) == 3
    assert not speakers(corpus, "unlabelled") & speakers(corpus, "dev")


def test_the_draw_depends_on_its_seed_alone(folder):
    chosen = [speakers(held_back(folder, held_back_draw=n), "dev") for n in range(6)]
    assert len(set(map(frozenset, chosen))) > 1
    assert speakers(held_back(folder, seed=3), "dev") == chosen[0]
    more = speakers(held_back(folder, held_back_speakers=2), "dev")
    assert chosen[0] < more


def test_evaluation_scores_the_same_utterances(folder):
    corpus = held_back(folder)
    dev = str(folder / "texts.jsonl")
    data = settings(folder, dev=dev, held_back_speakers=1)
    splits = load_splits(data, {"dev": dev}, corpus.tokenizers)
    assert [u.id for u in splits.utterances("dev")] == [u.id for u in corpus.utterances("dev")]


def test_dev_of_other_speakers_is_refused(folder):
    message = "speaker 'other0' is not of config.data.train"
    with pytest.raises(UserError, match=message):
        held_back(folder, dev=str(folder / "others.jsonl"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_back_speakers": 4}, "has 4 speakers, and one at least must remain"),
        ({"test": "dev.jsonl"}, "clear config.data.test"),
        ({"overfit": 3}, "is for a single stream, without config.data.overfit"),
    ],
)
def test_what_it_excludes_is_one_line(folder, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        held_back(folder, **changes)
