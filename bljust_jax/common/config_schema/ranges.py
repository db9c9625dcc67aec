"""The ranges of config fields."""

from collections.abc import Sequence
from itertools import pairwise
from math import inf
from typing import Any

from bljust_jax.common.config_schema.field import Range


def _finite(value: Sequence[Any], low: float) -> bool:
    """Whether all entries are finite numbers above `low`."""
    return all(isinstance(x, int | float) and low < x < inf for x in value)


def is_ascending(value: Sequence[Any]) -> bool:
    """Whether the entries are lengths in seconds, above 0 and ascending; true without entries."""
    return _finite(value, 0.0) and all(a < b for a, b in pairwise(value))


def _is_pair(value: Sequence[Any], low: float) -> bool:
    return len(value) == 2 and _finite(value, low) and value[0] <= value[1]


AT_LEAST_1 = Range("1 or above", lambda x: 1 <= x < inf)
AT_LEAST_0 = Range("0 or above", lambda x: 0 <= x < inf)
SEED = Range("from 0 to 2147483647", lambda x: 0 <= x < 2**31)
OPTIONAL_SEED = Range("-1 (config.seed), or from 0 to 2147483647", lambda x: -1 <= x < 2**31)
ABOVE_0 = Range("above 0", lambda x: 0 < x < inf)
ABOVE_0_TO_1 = Range("above 0 and at most 1", lambda x: 0 < x <= 1)
SHARE = Range("above 0 and below 1", lambda x: 0 < x < 1)
FROM_0_TO_1 = Range("from 0 to 1", lambda x: 0 <= x <= 1)
BELOW_1 = Range("0 or above, and below 1", lambda x: 0 <= x < 1)
COSINE = Range("from -1 to 1", lambda x: -1 <= x <= 1)
NO_LIMIT_OR_ABOVE = Range("0 (no limit) or above", AT_LEAST_0.holds)
BATCH_SECONDS = Range("0 (that of batch_seconds) or above", AT_LEAST_0.holds)
TEMPERATURE = Range("0 (equal shares) or above, such as 1 (by size) or 5", AT_LEAST_0.holds)
NUMBER_OF_BUCKETS = Range(
    "-1 (by total cost), 0 (those of data.buckets), or 1 or above", lambda x: -1 <= x < inf
)
WINDOW = Range("0 (all frames), or 2 or above", lambda x: x == 0 or 2 <= x < inf)
DEVICES = Range("-1 (all that are left), or 1 or above", lambda x: x == -1 or 1 <= x < inf)
WHOLE_NUMBERS = Range(
    "whole numbers of 1 or above", lambda x: all(isinstance(n, int) and n >= 1 for n in x)
)
LENGTHS = Range(
    "ascending lengths in seconds, such as (4.0, 8.0), or auto",
    lambda x: tuple(x) == ("auto",) or (len(x) > 0 and is_ascending(x)),
)
LENGTHS_OR_EMPTY = Range("ascending lengths in seconds, or empty", is_ascending)
WEIGHTS = Range("weights above 0, such as (2.0, 1.0), or empty", lambda x: _finite(x, 0.0))
JOIN = Range(
    "(least, most) utterances, such as (2, 5); (1, 1) is never",
    lambda x: _is_pair(x, 0.0) and all(isinstance(n, int) for n in x),
)
SPEED = Range("(slowest, fastest), such as (0.9, 1.1)", lambda x: _is_pair(x, 0.0))
DECIBELS = Range(
    "(least, most) dB, such as (10.0, 40.0), or empty", lambda x: len(x) == 0 or _is_pair(x, -inf)
)
CHUNK = Range(
    "(context, future, slide) in seconds, such as (2.0, 1.0, 1.0)",
    lambda x: len(x) == 3 and _finite(x, 0.0),
)
