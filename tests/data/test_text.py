import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bljust_jax.data.text import CharTokenizer
from bljust_jax.errors import UserError


@settings(deadline=None, max_examples=80)
@given(st.lists(st.text(max_size=12), max_size=4), st.booleans())
def test_decoding_inverts_encoding_up_to_normalisation(texts, lower):
    made = CharTokenizer.from_texts(texts, lower)
    again = CharTokenizer.from_json(json.loads(json.dumps(made.to_json())))
    for text in texts:
        ids = again.encode(text)
        assert again.decode(ids) == made.normalise(text)
        assert ids.dtype == np.int32
        assert np.all(ids > 0)
        assert np.all(ids < made.vocab_size)
        assert made.normalise(made.normalise(text)) == made.normalise(text)
        assert unicodedata.is_normalized("NFC", made.normalise(text))


def test_ids_start_after_the_blank_and_white_space_is_one_space():
    made = CharTokenizer.from_texts(["  B\u00a0a\n\tb "])
    assert made.symbols == (" ", "a", "b")
    assert made.vocab_size == 4
    assert made.encode("B a").tolist() == [3, 1, 2]
    assert made.decode([0, 3, 0, 0]) == "b"


def test_composed_and_decomposed_characters_are_one():
    made = CharTokenizer.from_texts(["é"])
    assert made.encode("e\u0301").tolist() == [1]


def test_case_is_kept_on_request():
    assert CharTokenizer.from_texts(["aA"], lower=False).symbols == ("A", "a")


def test_joined_adds_the_space_once():
    assert CharTokenizer.from_texts(["ab"], joined=True).symbols == (" ", "a", "b")
    assert CharTokenizer.from_texts(["a b"], joined=True).symbols == (" ", "a", "b")


def test_uncovered_characters_are_counted_and_refused():
    made = CharTokenizer.from_texts(["ab"])
    assert made.uncovered(["axx", "y"]) == {"x": 2, "y": 1}
    assert made.covers("ab")
    assert not made.covers("ax")
    with pytest.raises(UserError, match="'x'"):
        made.encode("ax")


@pytest.mark.parametrize("ids", [[3], [-1]])
def test_ids_out_of_range_are_refused(ids):
    with pytest.raises(ValueError, match=r"0\.\.2"):
        CharTokenizer.from_texts(["ab"]).decode(ids)
