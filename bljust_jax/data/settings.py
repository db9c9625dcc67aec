"""Whether `config.data` can work: its fields in range, its sources there. Reads no data."""

import re
from itertools import pairwise
from math import inf
from typing import Any

from bljust_jax.common.errors import UserError, nearest
from bljust_jax.data import sources, streams


def _numbers(value: Any, low: float) -> bool:
    """Whether all are finite numbers above `low`."""
    return all(isinstance(x, int | float) and low < x < inf for x in value)


def _lengths(value: Any) -> bool:
    return _numbers(value, 0.0) and all(a < b for a, b in pairwise(value))


def _pair(value: Any, low: float) -> bool:
    return len(value) == 2 and _numbers(value, low) and value[0] <= value[1]


# What must hold, the condition, and the fields that it is for.
RULES = (
    ("must be 1 or above", lambda x: x >= 1, ("sample_rate", "prefetch", "rows_multiple")),
    ("must be 0 or above", lambda x: x >= 0, ("num_threads", "labelled_speakers", "overfit")),
    ("must be 0 (no limit) or above", lambda x: 0 <= x < inf, ("min_seconds", "max_seconds")),
    (
        "must be 0 (that of batch_seconds) or above",
        lambda x: 0 <= x < inf,
        ("unlabelled_batch_seconds",),
    ),
    (
        "must be 0 (equal shares) or above, such as 1 (by size) or 5",
        lambda x: 0 <= x < inf,
        ("temperature", "unlabelled_temperature"),
    ),
    (
        "must be above 0",
        lambda x: 0 < x < inf,
        ("batch_seconds", "eval_batch_seconds", "labels_per_second", "timeout"),
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
    if len(data.unlabelled_buckets) > 1 and tuple(data.unlabelled_buckets) != tuple(data.buckets):
        raise UserError(
            "config.data.unlabelled_buckets must be empty (those of data.buckets) or one length"
        )
    if data.streams:
        _check_streams(data)
    needed = ("train",) if data.streams else ("train", "dev")
    for stream in streams.described(data).values():
        for split in needed:
            if not stream.uris[split]:
                raise UserError(f"{stream.where}.{split} is empty; name a manifest or SCHEME:REST")
        for split, uri in stream.uris.items():
            if uri:
                with streams.blaming(f"{stream.where}.{split}"):
                    sources.check(uri)
    if data.unlabelled:
        sources.check(data.unlabelled)


# The fields of a stream of `config.data.streams`, and of its tokenizer.
STREAM = ("train", "dev", "test", "field", "measure", "buckets", "text")
TEXT = ("units", "vocab_size", "model", "sha256", "normalise")
CHOICES = {"field": streams.FIELDS, "measure": ("wer", "cer", "bleu")}
NAME = re.compile(
    r"(?!(?:dev|test|train|labelled|unlabelled)(?:/|$))[A-Za-z0-9-]+(/[A-Za-z0-9-]+)*"
)


def _check_streams(data: Any) -> None:
    """Raises UserError naming a field of `config.data.streams` that is missing or out of range."""
    for name in ("train", "dev", "test"):
        if data[name]:
            raise UserError(
                f"config.data.{name}={data[name]!r} must be empty where config.data.streams names"
                f" the sources; clear it, or set the {name} of a stream"
            )
    for name, settings in sorted(data.streams.items()):
        where = f"config.data.streams.{name}"
        if not NAME.fullmatch(name):
            raise UserError(f"{where}: a stream must have a name like asr/en or st/ar-en")
        _check_fields(settings, STREAM, where)
        _check_fields(settings.text, TEXT, f"{where}.text")
        for field, known in CHOICES.items():
            if settings[field] not in known:
                near = nearest(settings[field], known)
                raise UserError(f"{where}.{field}: there is no {settings[field]!r}{near}")
        length = len(data.buckets)
        if not _lengths(settings.buckets) or len(settings.buckets) not in (0, length):
            raise UserError(
                f"{where}.buckets={settings.buckets} must be {length} ascending lengths in seconds,"
                " as many as config.data.buckets has, or empty: those"
            )
    if not any(settings.dev for settings in data.streams.values()):
        raise UserError("config.data.streams: no stream has a dev; name one to choose weights by")


def _check_fields(settings: Any, known: tuple[str, ...], where: str) -> None:
    for name in settings:
        if name not in known:
            raise UserError(f"{where} has no field {name!r}{nearest(name, known)}")
    for name in known:
        if name not in settings:
            raise UserError(f"{where} has no {name!r}; make it by configs.defaults.stream")
