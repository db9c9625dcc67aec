"""Text normalisation: fixed points, punctuation, Arabic letters, order of steps."""

import itertools
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bljust_jax.common.errors import UserError
from bljust_jax.data import normalise

CHAINS = [
    (),
    ("lower",),
    ("upper",),
    ("lower", "punctuation"),
    ("punctuation", "upper", "lower"),
    ("alef", "diacritics"),
    ("diacritics", "alef"),
    tuple(normalise.NORMALISERS),
]
# Characters on which steps interact: marks beside letters, alef, diacritics, tatweel, spaces, case.
TRICKY = "aB'’-‐.—_ \u00a0\t\u0301\u0327ßİΣﬁŉͅά\u0622\u0623\u0625\u0671\u0627"
TRICKY += "\u0653\u0654\u0655\u064e\u0651\u0670\u0640\u0644\u06be"


def spell(text, *names):
    return normalise.make(names)(text)


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=12) | st.text(TRICKY, max_size=12))
def test_every_chain_ends_in_a_fixed_point_of_nfc_words(text):
    for names in CHAINS:
        once = spell(text, *names)
        assert spell(once, *names) == once
        assert unicodedata.is_normalized("NFC", once)
        assert once == " ".join(once.split())
        if names[-1:] in [("alef",), ("diacritics",)]:
            assert not set(once) & set("\u0622\u0623\u0625\u0671\u0640\u064e\u0651\u0670")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, world!", "Hello world"),
        ("don't", "don't"),
        ("don’t", "don't"),
        ("'tis the dogs' “well-known” - day", "tis the dogs well-known day"),
        ("well‐known, non‑stop", "well-known non-stop"),
        ("rock-'n'-roll", "rock n roll"),
        ("yes—no...maybe", "yes no maybe"),
        ("snake_case 3.5 % of $4", "snake case 3 5 of 4"),
        ("O'Brien's", "O'Brien's"),
        ("-", ""),
        ("\u0915\u094d\u0937\u093f!", "\u0915\u094d\u0937\u093f"),  # combining marks stay
        ("\u0915\u093f'\u0915", "\u0915\u093f'\u0915"),
        ("نعم، لا؟", "نعم لا"),
        ("你好，世界。", "你好 世界"),
    ],
)
def test_punctuation_leaves_words_with_their_apostrophes_and_hyphens(text, expected):
    assert spell(text, "punctuation") == expected


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=12) | st.text(TRICKY, max_size=12))
def test_punctuation_drops_all_marks_but_two_and_no_letter(text):
    found = spell(text, "punctuation")
    marks = [c for c in found if unicodedata.category(c)[0] in "PS"]
    assert set(marks) <= set("'-")
    texts = (spell(text), found)
    letters = [[c for c in t if unicodedata.category(c)[0] in "LN"] for t in texts]
    assert letters[0] == letters[1]


def test_alef_forms_become_one_and_other_hamzas_stay():
    assert spell("إلغاء أمر آخر ٱلكتاب", "alef") == "الغاء امر اخر الكتاب"
    assert spell("\u0627\u0654", "alef") == "\u0627"  # decomposed
    assert spell("سؤال رئيس", "alef") == "سؤال رئيس"


def test_diacritics_are_arabic_ones():
    assert spell("مُحَمَّدٌ الرَّحْمٰن مـــرحبا", "diacritics") == "محمد الرحمن مرحبا"
    assert spell("é ñ ṩ ά й", "diacritics") == "é ñ ṩ ά й"
    assert spell("إِلْغَاء", "diacritics", "alef") == "الغاء"


def test_steps_run_in_the_given_order():
    assert spell("Straße", "lower", "upper") == "STRASSE"
    assert spell("Straße", "upper", "lower") == "strasse"
    assert spell("Straße", "lower") == "straße"


def test_white_space_is_one_space_and_composed_forms_are_one():
    assert spell("  A\u00a0b\n\t\u3000c ") == "A b c"
    assert spell("e\u0301") == "é"


def test_a_lone_surrogate_becomes_the_replacement_character():
    assert spell("a\ud800b") == "a\ufffdb"


@pytest.mark.parametrize(("name", "near"), [("lowr", "'lower'"), ("zzzzz", "punctuation")])
def test_an_unknown_step_is_one_line_with_the_nearest_name(name, near):
    with pytest.raises(UserError, match=near) as caught:
        normalise.make(("lower", name))
    assert "\n" not in str(caught.value)
    assert f"config.data.text.normalise: there is no {name!r}" in str(caught.value)


def test_all_steps_are_in_some_chain():
    assert set(itertools.chain(*CHAINS)) == set(normalise.NORMALISERS)


LINES = st.lists(st.text(max_size=8) | st.text(TRICKY + " \n\r\x1c", max_size=8), max_size=6)


@settings(deadline=None, max_examples=80)
@given(LINES)
def test_many_texts_are_normalised_as_each_alone(texts):
    for names in CHAINS:
        assert normalise.make_for_lines(names)(texts) == [spell(text, *names) for text in texts]
