"""Tokenizers: ids, round trips, learning, saved files, coverage."""

import hashlib
import json
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from bljust_jax.common.errors import UserError
from bljust_jax.data import strings
from bljust_jax.data.tokenizer import (
    RESERVED,
    SHOWN,
    SPACE,
    UNITS,
    CharTokenizer,
    PieceTokenizer,
    Tokenizer,
    coverage,
    load_tokenizer,
    make_tokenizer,
)

WORDS = ["zero", "one", "two", "three", "four", "five", "fifteen", "seven", "seventeen", "eighty"]
TEXTS = [f"{a} {b}" for a in WORDS for b in ("four", "don't", "نعم", *WORDS[:4])]
PIECES = ["unigram", "bpe"]


def config(units="characters", **changes):
    fields = {"units": units, "vocab_size": 30, "model": "", "sha256": "", "normalise": ("lower",)}
    return ConfigDict({**fields, **changes})


@pytest.fixture(scope="module")
def made():
    """A tokenizer of each kind of unit, from TEXTS."""
    return {units: make_tokenizer(config(units), TEXTS) for units in UNITS}


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Properties of every tokenizer


@pytest.mark.parametrize("units", UNITS)
def test_ids_are_the_outputs_of_the_head(made, units):
    tokenizer = made[units]
    assert isinstance(tokenizer, Tokenizer)
    assert len(set(tokenizer.symbols)) == len(tokenizer.symbols) == tokenizer.vocab_size - 1
    assert not {"<unk>", "<s>", "</s>", "<pad>"} & set(tokenizer.symbols)
    ids = range(1, tokenizer.vocab_size)
    joined = "".join(tokenizer.symbols).replace(SPACE, " ")
    assert tokenizer.decode(ids).lstrip() == joined.lstrip()  # id n + 1 is symbols[n]
    for wrong in (tokenizer.vocab_size, -1):
        with pytest.raises(ValueError, match=rf"0\.\.{tokenizer.vocab_size - 1}"):
            tokenizer.decode([wrong])


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("size", [2, 1 << 15])
@settings(deadline=None, max_examples=30)
@given(texts=st.lists(st.text("zerotwnf ZR\u0646", max_size=8) | st.none(), max_size=7))
def test_many_texts_are_counted_as_each_alone(made, units, size, texts):
    tokenizer = made[units]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strings, "CHUNK", size)
        normal = tokenizer.normalise_all(texts)
        assert normal == [tokenizer.normalise(text or "") for text in texts]
        encoded = [tokenizer.encode(text) for text in normal]
        counts = [(len(ids), int(np.sum(ids[1:] == ids[:-1]))) for ids in encoded]
        assert tokenizer.count_labels(normal).T.tolist() == [list(pair) for pair in counts]


@pytest.mark.parametrize("units", UNITS)
def test_a_text_without_labels_is_named_among_many(made, units):
    with pytest.raises(UserError, match="no id for 'q' of 'one q'"):
        made[units].count_labels(["one", "one q", "two"])


@pytest.mark.parametrize("units", UNITS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_covered_texts_round_trip_and_others_are_refused(made, units, data):
    tokenizer = made[units]
    known = st.text("zerotwhnfud' ZR\u00a0\u0646\u0639\u0645", max_size=12)
    written = data.draw(known | st.text(max_size=6) | st.text("a▁\u2585\0\u2047<unk>", max_size=6))
    normal = tokenizer.normalise(written)
    assert tokenizer.normalise(normal) == normal
    missing = tokenizer.uncovered([written, written])
    assert tokenizer.covers(written) == (not missing)
    if missing:
        assert missing == {c: 2 * normal.count(c) for c in missing}
        assert list(missing.values()) == sorted(missing.values(), reverse=True)
        with pytest.raises(UserError) as caught:
            tokenizer.encode(written)
        assert all(repr(c) in one_line(caught) for c in missing)
        return
    ids = tokenizer.encode(written)
    assert ids.dtype == np.int32
    assert np.all((ids > 0) & (ids < tokenizer.vocab_size))
    assert tokenizer.decode(ids) == normal
    assert tokenizer.decode([0, *ids.tolist(), 0, 0]) == normal


@pytest.mark.parametrize("units", UNITS)
@settings(deadline=None, max_examples=25)
@given(texts=st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_all_that_was_learned_is_covered(units, texts):
    """Smallest possible vocabulary: every character, and the mark of a space. SentencePiece learns
    nothing from its own symbol <unk>, whose characters then count as not covered."""
    spell = CharTokenizer(()).normalise
    learnable = [t for t in texts if spell(t.replace("▁", " ")) and not RESERVED & set(t)]
    learnable = [t for t in learnable if units == "characters" or "<unk>" not in spell(t)]
    characters = {c for t in learnable for c in spell(t)}
    if not learnable:
        return
    tokenizer = make_tokenizer(
        config(units, vocab_size=len(characters - {" ", "▁"}) + 1), learnable
    )
    assert tokenizer.uncovered(learnable) == {}
    if units == "characters":
        assert set(tokenizer.symbols) == characters
    for t in learnable:
        assert tokenizer.decode(tokenizer.encode(t)) == tokenizer.normalise(t)


@pytest.mark.parametrize("units", UNITS)
def test_a_saved_tokenizer_loads_as_it_was(made, units, tmp_path):
    made[units].save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.to_json() == made[units].to_json() == json.loads(json.dumps(again.to_json()))
    assert again.symbols == made[units].symbols
    assert again.normalise("ZERO") == "zero"
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json"} | (
        set() if units == "characters" else {"tokenizer.model", "tokenizer.vocab"}
    )


@pytest.mark.parametrize("units", UNITS)
def test_joined_texts_are_covered(units):
    words = ["zero", "one"]
    tokenizer = make_tokenizer(config(units, vocab_size=6), words, joined=True)
    assert tokenizer.decode(tokenizer.encode("zero one zero")) == "zero one zero"
    assert " " not in make_tokenizer(config(), words).symbols


@pytest.mark.parametrize("units", UNITS)
def test_arabic_is_one_text_in_its_spellings(units):
    names = ("diacritics", "alef", "punctuation")
    texts = ["إلغاء", "نعم، لا"]
    tokenizer = make_tokenizer(config(units, vocab_size=8, normalise=names), texts)
    same = [
        tokenizer.encode(t).tolist() for t in ("إلغاء", "الغاء", "إِلْغـــاء!", "\u0627\u0655لغاء")
    ]
    assert same == [same[0]] * 4
    assert tokenizer.decode(same[0]) == "الغاء"


@pytest.mark.daily("zh-*", "digits_ar-*")
@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize(
    ("name", "size"), [("en", 500), ("nl", 500), ("zh", 640), ("digits_ar", 40)]
)
def test_real_texts_round_trip(speech, units, name, size):
    lines = (speech / name / "train.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    tokenizer = make_tokenizer(config(units, vocab_size=size), texts)
    if units != "characters":
        assert tokenizer.vocab_size == size + 1
    for t in texts[:200]:
        assert tokenizer.decode(tokenizer.encode(t)) == tokenizer.normalise(t)
    counts = [len(tokenizer.encode(t)) for t in texts[:200]]
    characters = [len(tokenizer.normalise(t)) for t in texts[:200]]
    if units == "unigram" and name == "en":
        assert sum(counts) < 0.5 * sum(characters)  # pieces are longer than two characters


# Characters


def test_characters_are_sorted_after_the_blank():
    tokenizer = make_tokenizer(config(), ["  B\u00a0a\n\tb "])
    assert tokenizer.symbols == (" ", "a", "b")
    assert tokenizer.vocab_size == 4
    assert tokenizer.encode("B a").tolist() == [3, 1, 2]
    assert make_tokenizer(config(normalise=()), ["aA"]).symbols == ("A", "a")


@pytest.mark.parametrize("symbols", [("a", "a"), ("ab",), ("",)])
def test_symbols_are_distinct_single_characters(symbols):
    with pytest.raises(ValueError, match="distinct"):
        CharTokenizer(symbols)


# Pieces


@pytest.mark.parametrize("units", PIECES)
def test_learning_is_reproducible_and_prints_nothing(units, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (make_tokenizer(config(units), iter(TEXTS)) for _ in range(2))
    assert first.model == second.model
    assert first.sha256 == hashlib.sha256(first.model).hexdigest()
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_the_two_kinds_of_pieces_differ(made):
    assert made["unigram"].symbols != made["bpe"].symbols


@pytest.mark.parametrize("units", PIECES)
def test_sizes_that_texts_do_not_allow_name_the_bounds(units):
    characters = len(set("".join(TEXTS)) - {" "}) + 1
    with pytest.raises(UserError, match="vocab_size is 9999; the texts give at most") as caught:
        make_tokenizer(config(units, vocab_size=9999), TEXTS)
    largest = int(one_line(caught).split("at most ")[1].split()[0])
    with pytest.raises(UserError, match=f"at least {characters} pieces") as caught:
        make_tokenizer(config(units, vocab_size=characters - 1), TEXTS)
    one_line(caught)
    for size in (characters, largest):
        assert make_tokenizer(config(units, vocab_size=size), TEXTS).vocab_size == size + 1
    with pytest.raises(UserError, match=f"at most {largest} "):
        make_tokenizer(config(units, vocab_size=largest + 1), TEXTS)


@pytest.mark.parametrize("units", PIECES)
@pytest.mark.parametrize("texts", [[], ["", " "], ["\u2585", "▁"]])
def test_texts_without_content_are_refused(units, texts):
    with pytest.raises(UserError, match="no text to learn") as caught:
        make_tokenizer(config(units), texts)
    one_line(caught)


def test_long_texts_are_learned_from():
    long = " ".join(["zero"] * 3000 + ["q"])  # SentencePiece's own limit is 4192 bytes
    assert make_tokenizer(config("bpe", vocab_size=8), [long]).covers("q")


def test_no_piece_crosses_a_space(made):
    """Labels of joined texts are the joined labels of the texts."""
    for units in PIECES:
        encode = made[units].encode
        assert encode("zero one").tolist() == [*encode("zero"), *encode("one")]


def test_the_table_of_pieces_lists_ids_of_the_head(made, tmp_path):
    made["unigram"].save(tmp_path)
    lines = (tmp_path / "tokenizer.vocab").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    assert [piece for piece, _, _ in rows] == list(made["unigram"].symbols)
    assert [int(i) for _, i, _ in rows] == list(range(1, made["unigram"].vocab_size))
    assert all(float(score) <= 0 for _, _, score in rows)  # log probabilities


# The user's own model


def test_a_given_model_is_used_as_it_is(made, tmp_path):
    made["bpe"].save(tmp_path)
    path = str(tmp_path / "tokenizer.model")
    given = config("bpe", model=path, vocab_size=7, sha256=made["bpe"].sha256)
    assert make_tokenizer(given, ["never read"]).to_json() == made["bpe"].to_json()


def test_controls_and_the_models_own_normalisation(tmp_path):
    """A model trained with SentencePiece's defaults: <s>, </s> and NFKC."""
    import io

    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=written, vocab_size=30, minloglevel=3
    )
    tokenizer = PieceTokenizer(written.getvalue())
    assert tokenizer.vocab_size == 30 - 3 + 1
    assert not {"<unk>", "<s>", "</s>"} & set(tokenizer.symbols)
    full_width = "ＺＥＲＯ\u3000ｏｎｅ"
    assert tokenizer.normalise(full_width) == "zero one"
    assert tokenizer.decode(tokenizer.encode(full_width)) == "zero one"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"units": "unigrams"}, "did you mean 'unigram'"),
        ({"units": "words"}, "There are: bpe, characters, unigram"),
        ({"normalise": ("lowercase",)}, "did you mean 'lower'"),
        ({"units": "characters", "model": "x.model"}, "unigram or bpe"),
        ({"units": "bpe", "model": "/nowhere/x.model"}, "/nowhere/x.model: No such file"),
        ({"units": "bpe", "sha256": "00"}, "sha256 is 00, of another model"),
        ({"units": "characters", "sha256": "00"}, "no model"),
    ],
)
def test_wrong_tokenizer_fields_are_one_line(fields, message):
    with pytest.raises(UserError, match=message) as caught:
        make_tokenizer(config(**fields), TEXTS)
    assert "config.data.text" in one_line(caught) or "nowhere" in one_line(caught)


@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_a_file_that_is_no_model_is_named(tmp_path, content):
    path = tmp_path / "my.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"my\.model: not a SentencePiece model") as caught:
        make_tokenizer(config("bpe", model=str(path)), TEXTS)
    one_line(caught)


# Changed or damaged folders


def test_a_replaced_model_is_refused(made, tmp_path):
    made["unigram"].save(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(made["bpe"].model)
    with pytest.raises(UserError, match=r"tokenizer\.model is not the model that was saved") as c:
        load_tokenizer(tmp_path)
    assert made["unigram"].sha256 in one_line(c)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.model: No such file"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"kind": "pieces"}'])
def test_a_damaged_description_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json is (damaged|missing)") as caught:
        load_tokenizer(tmp_path)
    one_line(caught)


# Coverage


def test_coverage_counts_texts_characters_and_labels(made):
    lines = coverage(made["characters"], ["zero one", "two!!", "", "!?"])
    assert lines == [
        "characters without a label: '!' x 3, '?' x 1",
        "1 of 3 texts (33.3 %) have a label for every character",
        "4.00 characters per word",
    ]
    assert (
        coverage(made["bpe"], ["zero"])[0]
        == "1 of 1 texts (100.0 %) have a label for every character"
    )
    assert coverage(made["bpe"], ["", " "]) == []
    assert coverage(made["bpe"], ["!"])[-1].startswith("0 of 1 texts")


def test_coverage_shows_the_most_frequent_of_many(made):
    many = string.ascii_letters + string.digits + string.punctuation
    line = coverage(CharTokenizer((), ()), [many + "q"])[0]
    assert line.startswith("characters without a label: 'q' x 2, ")
    assert line.endswith(f" and {len(many) - SHOWN} more")
