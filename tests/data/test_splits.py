"""Evaluation splits: each utterance once, parts, texts to score."""

import json
import zlib

import numpy as np
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.data.sources import read_audio
from bljust_jax.data.splits import load_splits
from bljust_jax.data.tokenizer import CharTokenizer
from tests.helpers import corpora
from tests.helpers.corpora import RATE, assert_equal, load, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpora.noise(tmp_path_factory.mktemp("corpus"))


def test_evaluation_has_each_utterance_once_and_pads_with_empty_rows(folder):
    corpus = load(folder, buckets=(0.5, 0.8))
    seen, shapes = [], set()
    for batch, utterances in corpus.eval_batches("dev"):
        assert batch.keys() == {"audio", "audio_lengths", "ids"}
        shapes.add(batch["audio"].shape)
        assert 1 <= len(utterances) <= len(batch["ids"])
        assert not batch["audio_lengths"][len(utterances) :].any()
        for row, u in enumerate(utterances):
            audio = read_audio(u, RATE)
            assert batch["audio_lengths"][row] == len(audio)
            np.testing.assert_array_equal(batch["audio"][row, : len(audio)], audio)
            assert batch["ids"][row] == zlib.crc32(u.id.encode())
            seen.append(u)
    # longer than 0.8 s: 1.2 and 1.8 s
    assert shapes == {(6, 4000), (3, 6400), (2, 9600), (1, 14400)}
    assert sorted(u.id for u in seen) == sorted(u.id for u in corpus.utterances("dev"))
    assert corpus.references("dev")[-1] == "ab!"
    assert list(corpus.eval_batches("test")) == []


def test_texts_become_labels_where_they_can_be_spelt_and_fit(folder):
    """Of "ab!", which no training text spells, and of more letters than 8 a second in the batch
    there are none."""
    spoken = [json.loads(line) for line in (folder / "dev.jsonl").read_text().splitlines()]
    rows = [spoken[2] | {"text": "ba" * 3, "id": "long"}, *spoken]
    corpus = load(folder, dev=write(folder, "labelled", rows), buckets=(0.5, 2.0))
    found = {}
    for batch, utterances in corpus.eval_batches("dev", labelled=True):
        assert batch["labels"].shape[1] == 8 * batch["audio"].shape[1] // RATE
        for u, labels, count in zip(
            utterances, batch["labels"], batch["label_lengths"], strict=False
        ):
            assert not labels[count:].any()
            found[u.id] = corpus.tokenizer.decode(labels[:count])
    assert found == {row["id"]: "ba" if row["text"] == "ba" else "" for row in rows}


def test_parts_of_a_joined_split(folder):
    write(folder, "more", [{"audio_filepath": "3.flac", "id": "m3", "text": "b"}])
    corpus = load(folder, test=f"{folder}/dev.jsonl+{folder}/more.jsonl")
    assert corpus.parts("dev") == {}
    assert corpus.parts("test") == {"dev": list(range(11)), "more": [11]}
    assert corpus.utterances("test")[11].id == "m3"


def test_a_split_to_score_needs_texts(folder):
    corpus = load(folder, test=str(folder / "train.jsonl"))
    assert corpus.references("test").count("") == 8
    assert "test: 8 utterances without a text cannot be scored" in corpus.summary()
    write(folder, "bare", [{"audio_filepath": "1.flac"}])
    with pytest.raises(UserError, match=r"bare\.jsonl:1: no utterance of .* has a text"):
        load(folder, test=str(folder / "bare.jsonl"))
    write(folder, "blank", [{"audio_filepath": "1.flac", "text": " \u3000"}])
    with pytest.raises(UserError, match=r"blank\.jsonl:1: no utterance of .* has a text"):
        load(folder, dev=str(folder / "blank.jsonl"))
    with pytest.raises(UserError, match=r"blank\.jsonl:1: no utterance of blank in .*dev.* a text"):
        load(folder, dev=f"{folder}/dev.jsonl+{folder}/blank.jsonl")


def test_splits_load_without_training_data(folder):
    data = corpora.settings(folder, train="gone.jsonl", max_seconds=0.5)
    uris = {"dev": str(folder / "dev.jsonl"), "more": str(folder / "train.jsonl")}
    splits = load_splits(data, uris, {"labelled": CharTokenizer(" ab012")})
    whole = load(folder, max_seconds=0.5)
    assert splits.utterances("dev") == whole.utterances("dev")
    assert splits.references("dev") == whole.references("dev")
    for (a, members), (b, others) in zip(
        splits.eval_batches("dev"), whole.eval_batches("dev"), strict=True
    ):
        assert members == others
        assert_equal({"dev": a}, {"dev": b})
    with pytest.raises(UserError, match="no split 'test'; there are dev, more"):
        splits.utterances("test")
