"""Check a config before anything is read: the schema, names of streams, sources that exist."""

import re
from typing import Any

from bljust_jax.common import config_schema
from bljust_jax.common.errors import UserError, nearest
from bljust_jax.data import frame_labels, held_back, sources, streams
from bljust_jax.data.augment import chain


def check(config: Any) -> None:
    """UserError naming a field that the schema refuses, or that names no source of data."""
    data = config.data
    _check_fields_of_streams(data)
    config_schema.check(config)
    chain.check(data)
    held_back.check(data)
    if len(data.unlabelled_buckets) > 1 and tuple(data.unlabelled_buckets) != tuple(data.buckets):
        raise UserError("config.data.unlabelled_buckets must be empty (data.buckets) or one length")
    if data.frame_labels:
        frame_labels.files(data.frame_labels)
        if data.unlabelled_join_share > 0 and data.unlabelled_join[1] > 1:
            raise UserError(
                f"config.data.unlabelled_join_share={data.unlabelled_join_share:g} must be 0 with "
                "config.data.frame_labels: the gaps between joined utterances have no labels"
            )
    if data.streams:
        _check_streams(data)
    needed = ("train",) if data.streams else ("train", "dev")
    for stream in streams.labelled_streams(data).values():
        for split in needed:
            if not stream.uris[split]:
                raise UserError(f"{stream.where}.{split} is empty; name a manifest or SCHEME:REST")
        for split, uri in stream.uris.items():
            if uri:
                with streams.error_prefix(f"{stream.where}.{split}"):
                    sources.check(uri)
    if data.unlabelled:
        sources.check(data.unlabelled)
    if data.mix and data.streams:
        cure = "shares of streams are set by config.data.temperature"
        raise UserError(f"config.data.mix is of the sources of config.data.train; {cure}")
    streams.weights(data)


NAME = re.compile(
    r"(?!(?:dev|test|train|labelled|unlabelled)(?:/|$))[A-Za-z0-9-]+(/[A-Za-z0-9-]+)*"
)


def _check_streams(data: Any) -> None:
    """UserError for a stream's name or number of buckets, and for sources outside the streams."""
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
        length = len(data.buckets)
        if len(settings.buckets) not in (0, length):
            raise UserError(
                f"{where}.buckets={settings.buckets} must be {length} ascending lengths in seconds,"
                " as many as config.data.buckets has, or empty: those"
            )
    if not any(settings.dev for settings in data.streams.values()):
        raise UserError("config.data.streams: no stream has a dev; name one to choose weights by")


def _check_fields_of_streams(data: Any) -> None:
    """UserError for a field that a stream or its tokenizer lacks, and for an unknown field."""
    stream, text = (config_schema.GROUPS[f"config.data.streams.*{s}"] for s in ("", ".text"))
    for name, settings in sorted(data.streams.items()):
        where = f"config.data.streams.{name}"
        _check_fields(settings, (*stream, "text"), where)
        _check_fields(settings.text, tuple(text), f"{where}.text")


def _check_fields(settings: Any, known: tuple[str, ...], where: str) -> None:
    for name in settings:
        if name not in known:
            raise UserError(f"{where} has no field {name!r}{nearest(name, known)}")
    for name in known:
        if name not in settings:
            raise UserError(f"{where} has no {name!r}; make it by configs.defaults.stream")
