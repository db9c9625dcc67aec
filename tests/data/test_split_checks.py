"""Splits to score that training cannot spell, or has heard."""

import json

import pytest

from bljust_jax.common.errors import UserError
from tests.helpers import corpora
from tests.helpers.corpora import load, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpora.noise(tmp_path_factory.mktemp("splits"))


def entries(folder):
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("spelt", [4, 5])
def test_a_split_in_another_language_is_refused_with_examples(folder, spelt):
    """Of ten texts; the default takes half of them."""
    texts = ["ab0"] * spelt + ["слово", "два слова"] * 5
    rows = [e | {"text": text} for e, text in zip(entries(folder), texts[:10], strict=False)]
    dev = write(folder, f"dev{spelt}", rows)
    if spelt == 5:
        lines = load(folder, dev=dev).summary()
        assert "dev: texts that cannot be spelt: 'слово', 'два слова', 'слово'" in lines
        return
    said = r"dev: only 4 of 10 texts can be spelt .*, which lack '.*'; first 'слово', "
    with pytest.raises(UserError, match=said + r".*min_spellable=0\.5"):
        load(folder, dev=dev)
    load(folder, dev=dev, min_spellable=0.4)


def test_audio_and_speakers_of_training_are_named(folder):
    rows = entries(folder)
    heard = [rows[1], rows[2] | {"id": "again"}, rows[3] | {"offset": 0.05, "duration": 0.1}]
    new = [rows[5] | {"offset": 0.1, "duration": 0.1, "speaker": "new"}]
    nobody = [rows[6] | {"offset": 0.1, "duration": 0.1, "speaker": ""}]
    dev = write(folder, "heard", [e | {"text": "ab1"} for e in [*heard, *new, *nobody]])
    lines = [line for line in load(folder, dev=dev).summary() if line.startswith("dev: ")]
    assert lines[-2:] == [
        "dev: 2 of 5 utterances are training audio, first u1: its scores are not those of unseen"
        " speech",
        "dev: 3 of 5 utterances are of speakers of the training data, first s1: new speakers score"
        " worse",
    ]
    alone = write(folder, "alone", [e | {"text": "ab1"} for e in [*new, *nobody]])
    assert not any("training" in line for line in load(folder, dev=alone).summary())
