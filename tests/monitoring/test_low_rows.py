"""The counter of consecutive low rows, against a count from the whole history."""

import itertools

import pytest

from bljust_jax.monitoring.low_rows import LowRows


def expected(history, rows):
    """ "low" if exactly the last `rows` values are low, "recovered" if the last is not and the
    `rows` before it are."""
    low = list(itertools.takewhile(lambda v: v < 1, reversed(history)))
    if len(low) == rows:
        return "low"
    before = list(itertools.takewhile(lambda v: v < 1, reversed(history[:-1])))
    return "recovered" if not low and len(before) >= rows else ""


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_all_histories_of_seven_rows(rows):
    for history in itertools.product((0.5, 1.0), repeat=7):
        counter = LowRows(1.0, rows)
        found = [counter.count("a", value) for value in history]
        assert found == [expected(history[: n + 1], rows) for n in range(7)]


def test_names_are_counted_apart():
    counter = LowRows(1.0, 2)
    calls = [("a", 0.0), ("b", 0.0), ("a", 0.0), ("b", 2.0), ("b", 0.0), ("a", 2.0)]
    assert [counter.count(*call) for call in calls] == ["", "", "low", "", "", "recovered"]
