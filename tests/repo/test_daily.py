"""The daily selection of cases (`tests.helpers.daily`)."""

import types

import pytest

from tests.helpers import daily


class Case:
    """What pytest collects for one case of a test marked `daily`."""

    originalname, path = "test_x", "tests/test_x.py"

    def __init__(self, case, *patterns):
        self.callspec = types.SimpleNamespace(id=case)
        self.patterns, self.slow = patterns, False

    def get_closest_marker(self, name):
        return pytest.mark.daily(*self.patterns).mark if self.patterns else None

    def add_marker(self, marker):
        self.slow = marker.name == "slow"


def slow(*patterns):
    items = [Case(name, *patterns) for name in ("a-1", "a-2", "b-1")]
    daily.mark_the_others(items)
    return [item.callspec.id for item in items if item.slow]


def test_the_cases_that_are_not_chosen_are_slow():
    assert slow("a-1") == ["a-2", "b-1"]
    assert slow("*-1") == ["a-2"]
    assert slow() == []


def test_a_pattern_without_a_case_is_refused():
    with pytest.raises(pytest.UsageError, match=r"test_x has no case \['c-\*'\]"):
        slow("a-1", "c-*")
