"""Columns of strings against lists of them."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bljust_jax.data import strings
from bljust_jax.data.strings import Builder, Coded, Coder, Strings, joined, joined_codes

TEXT = st.text(st.sampled_from("aé\u4e00\U0001f600\ud800 \n"), max_size=4) | st.none()
ROWS = st.lists(TEXT, max_size=25)


def coded(rows):
    made = Coder()
    made.extend(rows)
    return made.finish()


SETTINGS = settings(deadline=None, max_examples=60)


@pytest.mark.parametrize("make", [Strings.of, coded])
@SETTINGS
@given(rows=ROWS, data=st.data())
def test_a_column_is_the_list_of_its_strings(make, rows, data):
    column = make(rows)
    assert list(column) == rows
    assert column == rows
    assert rows == column
    assert [column[n] for n in range(len(rows))] == rows
    assert column.null.tolist() == [row is None for row in rows]
    places = data.draw(st.lists(st.integers(0, len(rows) - 1))) if rows else []
    some = column.take(np.array(places, int))
    assert some == [rows[n] for n in places]
    assert some[1:3] == [rows[n] for n in places][1:3]
    mask = np.array([n % 2 == 0 for n in range(len(places))], bool)
    assert some.take(mask) == [rows[n] for n in places][::2]
    assert column != [*rows, "more"]


@pytest.mark.parametrize("size", [1, 3, 1 << 15])
@SETTINGS
@given(rows=ROWS, order=st.randoms())
def test_views_are_decoded_and_joined_in_chunks(size, rows, order):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strings, "CHUNK", size)
        places = order.sample(range(len(rows)), len(rows))
        parts = [Strings.of(rows), Strings.of(rows).take(np.array(places, int))]
        both = rows + [rows[n] for n in places]
        assert joined(parts) == both
        assert [text for part in parts for chunk in part.chunks() for text in chunk] == both
        assert joined(parts).empty.tolist() == [not text for text in both]
        codes = [coded(rows), coded(rows).take(np.array(places, int))]
        assert joined_codes(codes) == both
        texts = Strings.of([text for text in rows if text])
        assert strings.character_counts(texts) == Counter("".join(texts))


@pytest.mark.parametrize("few", [0, 100])
@SETTINGS
@given(rows=ROWS)
def test_ranks_are_places_among_the_sorted_strings(few, rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strings, "FEW", few)
        texts = [row or "" for row in rows]
        distinct = sorted(set(texts))
        assert Strings.of(rows).ranks().tolist() == [distinct.index(text) for text in texts]
        names = [row for row in rows if row is not None]
        distinct = sorted(set(names))
        wanted = [-1 if row is None else distinct.index(row) for row in rows]
        assert coded(rows).ranks().tolist() == wanted


def test_a_column_costs_its_bytes():
    made = Builder()
    for n in range(0, 100_000, 1000):
        made.extend([f"text {i:09d}" for i in range(n, n + 1000)])
    offsets, data, nulls = made.finish().arrays()
    assert nulls is None
    assert data.nbytes == 1_400_000
    assert offsets.nbytes == 800_008


def test_rows_past_the_end_are_refused():
    for column in (Strings.of(["a"]), Coded(np.zeros(1, np.int32), Strings.of(["a"]))):
        with pytest.raises(IndexError):
            column[1]
        assert column[-1] == "a"
