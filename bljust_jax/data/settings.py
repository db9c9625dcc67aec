"""Whether `config.data` can work: its fields in range, its sources there. Reads no data."""

from itertools import pairwise
from math import inf
from typing import Any

from bljust_jax.data import sources
from bljust_jax.errors import UserError


def _numbers(value: Any, low: float) -> bool:
    """Whether all are finite numbers above `low`."""
    return all(isinstance(x, int | float) and low < x < inf for x in value)


def _lengths(value: Any) -> bool:
    return _numbers(value, 0.0) and all(a < b for a, b in pairwise(value))


def _pair(value: Any, low: float) -> bool:
    return len(value) == 2 and _numbers(value, low) and value[0] <= value[1]


# What must hold, the condition, and the fields that it is for.
RULES = (
    ("must be 1 or above", lambda x: x >= 1, ("sample_rate", "prefetch")),
    ("must be 0 or above", lambda x: x >= 0, ("num_threads", "labelled_speakers", "overfit")),
    ("must be 0 (no limit) or above", lambda x: 0 <= x < inf, ("min_seconds", "max_seconds")),
    (
        "must be 0 (that of batch_seconds) or above",
        lambda x: 0 <= x < inf,
        ("unlabelled_batch_seconds",),
    ),
    (
        "must be above 0",
        lambda x: 0 < x < inf,
        ("batch_seconds", "eval_batch_seconds", "labels_per_second"),
    ),
    (
        "must be from 0 to 1",
        lambda x: 0 <= x <= 1,
        ("join_share", "unlabelled_join_share", "balance", "max_bad_fraction"),
    ),
    ("must be above 0 and at most 1", lambda x: 0 < x <= 1, ("labelled_fraction",)),
    (
        "must be ascending lengths in seconds, such as (4.0, 8.0)",
        lambda x: len(x) > 0 and _lengths(x),
        ("buckets",),
    ),
    ("must be ascending lengths in seconds, or empty", _lengths, ("unlabelled_buckets",)),
    (
        "must be (least, most) utterances, such as (2, 5); (1, 1) is never",
        lambda x: _pair(x, 0.0) and all(isinstance(n, int) for n in x),
        ("join", "unlabelled_join"),
    ),
    ("must be (slowest, fastest), such as (0.9, 1.1)", lambda x: _pair(x, 0.0), ("speed",)),
    (
        "must be (least, most) dB, such as (10.0, 40.0), or empty",
        lambda x: len(x) == 0 or _pair(x, -inf),
        ("noise_snr",),
    ),
)


def check(data: Any) -> None:
    """Raises UserError naming a field of `config.data` that is out of range or names no source."""
    for words, holds, names in RULES:
        for name in names:
            if not holds(data[name]):
                raise UserError(f"config.data.{name}={data[name]} {words}")
    for name in ("train", "dev"):
        if not data[name]:
            raise UserError(f"config.data.{name} is empty; name a manifest or SCHEME:REST")
    for name in ("train", "unlabelled", "dev", "test"):
        if data[name]:
            sources.check(data[name])
