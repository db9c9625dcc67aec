"""Labelled streams: what `config.data` says of each, and the utterances and labels that it teaches.

A system of one task has the stream "labelled", described by data.{train, dev, test, text}; one of
several has a stream a task, described by data.streams. A stream's utterances have its labels as
their `text`, be they transcripts or translations.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from bljust_jax.common.errors import UserError
from bljust_jax.data import normalise
from bljust_jax.data.filters import keep, low_resource, reasons, timely
from bljust_jax.data.quarantine import Quarantine
from bljust_jax.data.sources import Utterance, open_source
from bljust_jax.data.tokenizer import Tokenizer, make_tokenizer

LABELLED, UNLABELLED = "labelled", "unlabelled"
FIELDS = ("text", "translation")
SHOWN = 5  # characters without a label that a message lists


class Stream(NamedTuple):
    """One labelled stream.

    where: the part of the config that describes it; uris: {"train", "dev", "test": URI}, "" where
    there is none; field: which of an utterance's texts are the labels, one of FIELDS; buckets:
    lengths in seconds; text: the settings of its tokenizer.
    """

    name: str
    where: str
    uris: Mapping[str, str]
    field: str
    buckets: tuple[float, ...]
    text: Any


def described(data: Any) -> dict[str, Stream]:
    """{name: labelled stream} of `config.data`, in the order of their names."""
    if not data.streams:
        return {LABELLED: _stream(LABELLED, "config.data", data, data, "text")}
    return {
        name: _stream(name, f"config.data.streams.{name}", settings, data, settings.field)
        for name, settings in sorted(data.streams.items())
    }


def _stream(name: str, where: str, settings: Any, data: Any, field: str) -> Stream:
    uris = {split: settings[split] for split in ("train", "dev", "test")}
    buckets = tuple(settings.buckets or data.buckets)
    return Stream(name, where, uris, field, buckets, settings.text)


def split_name(split: str, stream: str) -> str:
    """What a stream's part of a split is called: dev/asr/en, or dev where it is the only stream."""
    return split if stream == LABELLED else f"{split}/{stream}"


def stream_of(name: str, streams: Collection[str]) -> str:
    """Which of the labelled streams a name is of: its own, or that of one of its splits."""
    if set(streams) == {LABELLED}:
        return LABELLED
    for candidate in (name, name.partition("/")[2]):
        if candidate in streams:
            return candidate
    known = ", ".join(streams)
    raise UserError(f"{name!r} is of no stream; name SPLIT/STREAM with a stream of {known}")


@contextlib.contextmanager
def blaming(where: str) -> Iterator[None]:
    """Puts the name of a setting before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def taught(utterances: Iterable[Utterance], field: str) -> list[Utterance]:
    """The utterances with the labels of a stream as their `text`: `text` itself, or translations"""
    if field == "text":
        return list(utterances)
    return [dataclasses.replace(u, text=u.translation) for u in utterances]


def open_once(streams: Iterable[Stream], root: str) -> dict[str, list[Utterance]]:
    """{URI: its utterances} of what the streams train on, each read once."""
    opened: dict[str, list[Utterance]] = {}
    for stream in streams:
        uri = stream.uris["train"]
        if uri not in opened:
            with blaming(f"{stream.where}.train"):
                opened[uri] = open_source(uri, root)
    return opened


def all_audio(sources: Iterable[list[Utterance]]) -> list[Utterance]:
    """The utterances of several sources, each stretch of audio once."""
    once = {(u.path, u.offset, u.duration, u.id): u for source in sources for u in source}
    return list(once.values())


def label(
    stream: Stream,
    source: list[Utterance],
    data: Any,
    seed: int,
    tokenizer: Tokenizer | None,
    left_out: Counter,
) -> tuple[list[Utterance], Tokenizer]:
    """The utterances of a source that teach a stream, their labels as `text`, and what spells them.

    Without a tokenizer one is made of their texts. `left_out` counts the others by reason. Raises
    UserError where none is left, and for a tokenizer that cannot be made or lacks the space that
    joins texts.
    """
    spell = normalise.make(stream.text.normalise)
    missing = f"without a {stream.field}"
    found = keep(taught(source, stream.field), left_out, missing, lambda u: spell(u.text or ""))
    found = required(timely(found, data, left_out), left_out, f"{stream.where}.train")
    found = low_resource(found, data, seed, f"{stream.where}.train")
    joins = data.join_share > 0 and data.join[1] > 1
    if tokenizer is None:
        texts = (u.text or "" for u in found)
        tokenizer = make_tokenizer(stream.text, texts, joined=joins, where=stream.where)
    found = required(_spelt(found, tokenizer, left_out), left_out, f"{stream.where}.train")
    if joins and not tokenizer.covers(f"{found[0].text} {found[0].text}"):
        raise UserError(
            f"config.data.join_share joins texts by a space, which the tokenizer of {stream.name}"
            " lacks"
        )
    return found, tokenizer


def _spelt(utterances: list[Utterance], tokenizer: Tokenizer, left_out: Counter) -> list[Utterance]:
    """Those whose labels the tokenizer can write."""
    known = [u for u in utterances if tokenizer.covers(u.text or "")]
    if len(known) < len(utterances):
        unknown = list(tokenizer.uncovered(u.text or "" for u in utterances))
        shown = ", ".join(map(repr, unknown[:SHOWN])) + (", ..." if len(unknown) > SHOWN else "")
        left_out[f"with unknown characters: {shown}"] += len(utterances) - len(known)
    return known


def required(
    utterances: list[Utterance], left_out: Mapping[str, int], where: str
) -> list[Utterance]:
    """The utterances; UserError where there are none, with the reasons."""
    if not utterances:
        raise UserError(f"{where}: no utterance is left to train on: {reasons(left_out)}")
    return utterances


def few(
    found: Mapping[str, list[Utterance]],
    described: Mapping[str, Stream],
    most: int,
    bad: Quarantine,
) -> dict[str, list[Utterance]]:
    """The streams and splits of `data.overfit`: the first `most` utterances that teach a stream are
    all that is heard, and its dev."""
    kept = {}
    for name, stream in described.items():
        last = stream.buckets[-1]
        short = [u for u in found[name] if u.duration <= last]
        long = {f"longer than {last:g} s": len(found[name]) - len(short)}
        kept[name] = required(short[:most], long, f"{stream.where}.train")
    dev = {split_name("dev", name): kept[name] for name in kept}
    test: dict[str, list[Utterance]] = {split_name("test", name): [] for name in kept}
    dev = {part: bad.sift(part, utterances) for part, utterances in dev.items()}
    return kept | {UNLABELLED: all_audio(kept.values())} | dev | test
