"""The cases of a parametrised test that run daily: the others are slow, for the nightly.

    @pytest.mark.daily("bljust-*", "m2asr-2")

names them by their ids, as `pytest --collect-only` prints them, or by patterns of these.
"""

import fnmatch
from collections.abc import Sequence

import pytest


def mark_the_others(items: Sequence) -> None:
    """Mark as slow the cases of one test that its mark `daily` does not choose. items: all that
    pytest collects for one name. Raises UsageError if a pattern chooses no case."""
    chosen = {}
    for item in items:
        mark = hasattr(item, "callspec") and item.get_closest_marker("daily")
        if not mark:
            continue
        of_test = chosen.setdefault(item.originalname, dict.fromkeys(mark.args, False))
        found = [p for p in mark.args if fnmatch.fnmatchcase(item.callspec.id, p)]
        of_test.update(dict.fromkeys(found, True))
        if not found:
            item.add_marker(pytest.mark.slow)
    for name, patterns in chosen.items():
        for pattern, used in patterns.items():
            if not used:
                raise pytest.UsageError(f"{items[0].path}: {name} has no case {pattern!r}")
