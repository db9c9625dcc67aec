"""The cases of a parametrised test that run daily: the others are slow, for the nightly.

    @pytest.mark.daily("bljust-*", "m2asr-2")

names them by their ids, as `pytest --collect-only` prints them, or by patterns of these.
"""

import fnmatch
from collections.abc import Sequence

import pytest


def mark_the_others(items: Sequence) -> None:
    """Mark as slow the cases of one test that its mark `daily` does not choose. items: all that
    pytest collects for one name. Raises UsageError if a pattern chooses no case, or the test has
    none."""
    unused = {}  # {test: patterns}
    for item in items:
        mark = hasattr(item, "originalname") and item.get_closest_marker("daily")
        if not mark:
            continue
        case = item.callspec.id if hasattr(item, "callspec") else ""
        found = [p for p in mark.args if fnmatch.fnmatchcase(case, p)]
        left = unused.setdefault(item.originalname, set(mark.args))
        left.difference_update(found)
        if not found:
            item.add_marker(pytest.mark.slow)
    for name, patterns in unused.items():
        if patterns:
            raise pytest.UsageError(f"{items[0].path}: {name} has no case {sorted(patterns)}")
