"""Labelled streams of training data: their sources, labels and tokenizers, from `config.data`.

A system of one task has the stream "labelled", from data.{train, dev, test, text}; a system of
several tasks has one stream per task, from data.streams. The labels of a stream, transcripts or
translations, are the `text` of its utterances.
"""

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from bljust_jax.common.errors import UserError
from bljust_jax.data import normalise
from bljust_jax.data.filters import (
    cut_into_pieces,
    describe_skipped,
    keep_if,
    labelled_subset,
    of_usable_length,
    subset_of_hours,
)
from bljust_jax.data.held_back import HeldBack
from bljust_jax.data.quarantine import Quarantine
from bljust_jax.data.sources import Utterance, open_source
from bljust_jax.data.tokenizer import Tokenizer, make_tokenizer

LABELLED, UNLABELLED = "labelled", "unlabelled"
FIELDS = ("text", "translation")
LISTED = 5  # characters without a label that a message lists


class Stream(NamedTuple):
    """One labelled stream.

    where: its group in the config, for messages; uris: {"train", "dev", "test": URI}, "" without
    one; field: the text of an utterance that is the label, one of FIELDS; buckets: lengths in
    seconds; text: the config of its tokenizer.
    """

    name: str
    where: str
    uris: Mapping[str, str]
    field: str
    buckets: tuple[float, ...]
    text: Any


def labelled_streams(data: Any) -> dict[str, Stream]:
    """{name: labelled stream} of `config.data`, sorted by name."""
    if not data.streams:
        return {LABELLED: _stream(LABELLED, "config.data", data, data, "text")}
    return {
        name: _stream(name, f"config.data.streams.{name}", config, data, config.field)
        for name, config in sorted(data.streams.items())
    }


def _stream(name: str, where: str, config: Any, data: Any, field: str) -> Stream:
    uris = {split: config[split] for split in ("train", "dev", "test")}
    buckets = tuple(config.buckets or data.buckets)
    return Stream(name, where, uris, field, buckets, config.text)


def split_name(split: str, stream: str) -> str:
    """Name of a stream's part of a split: dev/asr/en, or dev with a single stream."""
    return split if stream == LABELLED else f"{split}/{stream}"


def stream_of(name: str, streams: Collection[str]) -> str:
    """The labelled stream that a name belongs to: the stream's own or that of one of its splits.
    UserError for another name."""
    if set(streams) == {LABELLED}:
        return LABELLED
    for candidate in (name, name.partition("/")[2]):
        if candidate in streams:
            return candidate
    known = ", ".join(streams)
    raise UserError(f"{name!r} is of no stream; name SPLIT/STREAM with a stream of {known}")


@contextlib.contextmanager
def error_prefix(where: str) -> Iterator[None]:
    """Prefix the message of a UserError with the name of a config field."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def with_labels(utterances: Iterable[Utterance], field: str) -> list[Utterance]:
    """The utterances with a stream's labels as their `text`: `text` itself, or `translation`."""
    if field == "text":
        return list(utterances)
    return [dataclasses.replace(u, text=u.translation) for u in utterances]


def open_training_sources(streams: Iterable[Stream], root: str) -> dict[str, list[Utterance]]:
    """{URI: its utterances} of the streams' training data, each URI read once."""
    opened: dict[str, list[Utterance]] = {}
    for stream in streams:
        uri = stream.uris["train"]
        if uri not in opened:
            with error_prefix(f"{stream.where}.train"):
                opened[uri] = open_source(uri, root)
    return opened


def unique_utterances(sources: Iterable[list[Utterance]]) -> list[Utterance]:
    """The utterances of several sources; those of the same audio and id appear once."""
    return list({_audio_of(u): u for source in sources for u in source}.values())


def _audio_of(u: Utterance) -> tuple[str, float, float, str]:
    return u.path, u.offset, u.duration, u.id


def unlabelled_audio(
    train: list[Utterance],
    data: Any,
    seed: int,
    quarantined: Quarantine,
    skipped: Counter,
    apart: HeldBack | None = None,
) -> dict[str, list[Utterance]]:
    """{field: its utterances} of the unlabelled stream: those of data.unlabelled, after those of
    data.train unless data.unlabelled_with_train is False; of data.train alone without the former.

    train: unique utterances of data.train, whose audio appears once. `skipped` counts utterances
    of other lengths than wanted, and those beyond data.unlabelled_hours, which limits
    data.unlabelled, or data.train alone. With data.unlabelled_cut, audio longer than
    data.max_seconds is in pieces. apart: speakers that are left out.
    """
    found = {"data.train": train}
    if data.unlabelled:
        more = open_source(data.unlabelled, data.root)
        more = apart.training(more) if apart else more
        known = {_audio_of(u) for u in train} if data.unlabelled_with_train else set()
        found = {"data.unlabelled": [u for u in more if _audio_of(u) not in known]}
        if data.unlabelled_with_train:
            found = {"data.train": train, **found}
    if data.unlabelled_cut and data.max_seconds and not data.frame_labels:
        found = {field: _in_pieces(part, data) for field, part in found.items()}
    whole = quarantined.sift(UNLABELLED, list(itertools.chain.from_iterable(found.values())))
    usable = {id(u) for u in of_usable_length(whole, data, skipped)}
    found = {field: [u for u in part if id(u) in usable] for field, part in found.items()}
    last = list(found)[-1]
    hours, source = float(data.unlabelled_hours), f"config.{last}"
    return {**found, last: subset_of_hours(found[last], hours, seed, skipped, source)}


def _in_pieces(utterances: Iterable[Utterance], data: Any) -> list[Utterance]:
    """The utterances, those longer than data.max_seconds in pieces that fit the last bucket."""
    last = (data.unlabelled_buckets or data.buckets)[-1]
    longest = min(float(data.max_seconds), float(last))
    parts = (
        cut_into_pieces(u, longest) if u.duration > data.max_seconds else [u] for u in utterances
    )
    return list(itertools.chain.from_iterable(parts))


def in_order(train: list[Utterance], data: Any) -> list[Utterance]:
    """All utterances of the sources of the unlabelled stream in their order: those of data.train,
    if it reads them, then those of data.unlabelled."""
    if not data.unlabelled:
        return train
    more = open_source(data.unlabelled, data.root)
    return [*train, *more] if data.unlabelled_with_train else more


def check_joinable(stream: str, share: float, speakers: list[str]) -> list[str]:
    """Joined utterances are of one speaker: a line for the summary, or UserError with a share of 1,
    if no two utterances share a speaker; speakers: that of each."""
    if len(set(speakers)) < max(1, len(speakers)):
        return []
    problem = "strings cannot be joined: no two utterances share a speaker"
    if share >= 1:
        setting = "unlabelled_join_share" if stream == UNLABELLED else "join_share"
        raise UserError(
            f'{problem}; add "speaker" to the manifest or set config.data.{setting} to 0'
        )
    return [f"{stream}: {problem}"]


def label(
    stream: Stream,
    source: list[Utterance],
    data: Any,
    seed: int,
    tokenizer: Tokenizer | None,
    skipped: Counter,
) -> tuple[list[Utterance], Tokenizer]:
    """(training utterances of a stream with their labels as `text`, tokenizer).

    Without a tokenizer one is learned from their texts. `skipped` counts the other utterances by
    reason. Raises UserError if none remains, and for a tokenizer that cannot be made or lacks the
    space that joins texts.
    """
    where = f"{stream.where}.train"
    spell = normalise.make(stream.text.normalise)
    found = with_labels(source, stream.field)
    found = keep_if(found, skipped, f"without a {stream.field}", lambda u: spell(u.text or ""))
    found = require_any(of_usable_length(found, data, skipped), skipped, where)
    found = labelled_subset(found, data, seed, where)
    joins = data.join_share > 0 and data.join[1] > 1
    if tokenizer is None:
        texts = (u.text or "" for u in found)
        tokenizer = make_tokenizer(stream.text, texts, joined=joins, where=stream.where)
    found = require_any(_encodable(found, tokenizer, skipped), skipped, where)
    if joins and not tokenizer.covers(f"{found[0].text} {found[0].text}"):
        lacks = f"which the tokenizer of {stream.name} lacks"
        raise UserError(f"config.data.join_share joins texts by a space, {lacks}")
    return found, tokenizer


def _encodable(
    utterances: list[Utterance], tokenizer: Tokenizer, skipped: Counter
) -> list[Utterance]:
    """Utterances whose texts have a label for every character."""
    unknown = list(tokenizer.uncovered(u.text or "" for u in utterances))
    if not unknown:
        return utterances
    listed = ", ".join(map(repr, unknown[:LISTED])) + (", ..." if len(unknown) > LISTED else "")
    reason = f"with unknown characters: {listed}"
    return keep_if(utterances, skipped, reason, lambda u: tokenizer.covers(u.text or ""))


def require_any(
    utterances: list[Utterance], skipped: Mapping[str, int], where: str
) -> list[Utterance]:
    """The utterances; UserError if there are none, with the reasons."""
    if not utterances:
        reasons = describe_skipped(skipped)
        raise UserError(f"{where}: no utterance is left to train on: {reasons}")
    return utterances


def overfit_splits(
    found: Mapping[str, list[Utterance]],
    streams: Mapping[str, Stream],
    most: int,
    quarantined: Quarantine,
) -> dict[str, list[Utterance]]:
    """Streams and splits for `data.overfit`: the first `most` labelled utterances of each stream
    are its training data, its dev split, and the unlabelled audio."""
    kept = {}
    for name, stream in streams.items():
        last = stream.buckets[-1]
        short = [u for u in found[name] if u.duration <= last]
        long = {f"longer than {last:g} s": len(found[name]) - len(short)}
        kept[name] = require_any(short[:most], long, f"{stream.where}.train")
    dev = {split_name("dev", name): kept[name] for name in kept}
    test: dict[str, list[Utterance]] = {split_name("test", name): [] for name in kept}
    opened = {UNLABELLED: unique_utterances(kept.values()), **dev}
    opened = {part: quarantined.sift(part, utterances) for part, utterances in opened.items()}
    return kept | opened | test
