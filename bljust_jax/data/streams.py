"""Labelled streams of training data: their sources, labels and tokenizers, from `config.data`.

A system of one task has the stream "labelled", from data.{train, dev, test, text}; a system of
several tasks has one stream per task, from data.streams. The labels of a stream, transcripts or
translations, are the `text` of its utterances.
"""

import contextlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bljust_jax.common.errors import UserError
from bljust_jax.data import normalise
from bljust_jax.data.filters import (
    describe_skipped,
    in_pieces,
    keep,
    labelled_subset,
    long_enough,
    short_enough,
    subset_of_hours,
)
from bljust_jax.data.held_back import HeldBack
from bljust_jax.data.quarantine import Quarantine
from bljust_jax.data.sources import open_source, part_names
from bljust_jax.data.tokenizer import Tokenizer, make_tokenizer, normalised
from bljust_jax.data.utterances import Utterance, Utterances, among, concatenated, unique

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


def with_labels(utterances: Sequence[Utterance], field: str) -> Utterances:
    """The utterances with a stream's labels as their `text`: `text` itself, or `translation`."""
    found = Utterances.of(utterances)
    return found if field == "text" else found.with_translation_as_text()


def open_training_sources(streams: Iterable[Stream], root: str) -> dict[str, Utterances]:
    """{URI: its utterances} of the streams' training data, each URI read once."""
    opened: dict[str, Utterances] = {}
    for stream in streams:
        uri = stream.uris["train"]
        if uri not in opened:
            with error_prefix(f"{stream.where}.train"):
                opened[uri] = open_source(uri, root)
    return opened


def unique_utterances(sources: Iterable[Sequence[Utterance]]) -> Utterances:
    """The utterances of several sources; those of the same audio and id appear once."""
    found = [Utterances.of(source) for source in sources]
    return unique(concatenated(found)) if len(found) > 1 else found[0]


def unlabelled_audio(
    train: Sequence[Utterance],
    data: Any,
    seed: int,
    quarantined: Quarantine,
    skipped: Counter,
    apart: HeldBack | None = None,
) -> dict[str, Utterances]:
    """{field: its utterances} of the unlabelled stream: those of data.unlabelled, after those of
    data.train unless data.unlabelled_with_train is False; of data.train alone without the former.

    train: unique utterances of data.train, whose audio appears once. `skipped` counts utterances
    of other lengths than wanted, and those beyond data.unlabelled_hours, which limits
    data.unlabelled, or data.train alone. With data.unlabelled_cut, audio longer than
    data.max_seconds is in pieces. apart: speakers that are left out.
    """
    train = Utterances.of(train)
    found = {"data.train": train}
    if data.unlabelled:
        more = open_source(data.unlabelled, data.root)
        more = apart.training(more) if apart else more
        if data.unlabelled_with_train:
            found["data.unlabelled"] = more.select(~among(more, train))
        else:
            found = {"data.unlabelled": more}
    if data.unlabelled_cut and data.max_seconds and not data.frame_labels:
        last = float((data.unlabelled_buckets or data.buckets)[-1])
        over = float(data.max_seconds)
        found = {field: in_pieces(part, over, min(over, last)) for field, part in found.items()}
    found = quarantined.sift_parts(UNLABELLED, found)
    for limit in (long_enough, short_enough):
        found = {field: limit(part, data, skipped) for field, part in found.items()}
    last = list(found)[-1]
    hours, source = float(data.unlabelled_hours), f"config.{last}"
    return {**found, last: subset_of_hours(found[last], hours, seed, skipped, source)}


def in_order(train: Sequence[Utterance], data: Any) -> Utterances:
    """All utterances of the sources of the unlabelled stream in their order: those of data.train,
    if it reads them, then those of data.unlabelled."""
    train = Utterances.of(train)
    if not data.unlabelled:
        return train
    more = open_source(data.unlabelled, data.root)
    return concatenated([train, more]) if data.unlabelled_with_train else more


def weights(data: Any) -> dict[str, float]:
    """{source of data.train: its weight in data.mix}; {} for all audio once.

    Raises UserError for another number of weights than of sources.
    """
    if not data.mix or data.overfit:
        return {}
    names = part_names(data.train)
    if len(names) != len(data.mix) or len(names) < 2:
        listed = ", ".join(name or data.train for name in names)
        raise UserError(
            f"config.data.mix has {len(data.mix)} weights for {len(names)} sources of"
            f" config.data.train, {listed}: give one for each source that + joins, or none"
        )
    return dict(zip(names, map(float, data.mix), strict=True))


def check_joinable(stream: str, share: float, speakers: np.ndarray) -> list[str]:
    """Joined utterances are of one speaker: a line for the summary, or UserError with a share of 1,
    if no two utterances share a speaker; speakers: a number for that of each, [N]."""
    if len(np.unique(speakers)) < max(1, len(speakers)):
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
    source: Sequence[Utterance],
    data: Any,
    seed: int,
    tokenizer: Tokenizer | None,
    skipped: Counter,
) -> tuple[Utterances, Tokenizer]:
    """(training utterances of a stream with their labels as `text`, tokenizer).

    Without a tokenizer one is learned from their texts. `skipped` counts the other utterances by
    reason. Raises UserError if none remains, and for a tokenizer that cannot be made or lacks the
    space that joins texts.
    """
    where = f"{stream.where}.train"
    found = with_labels(source, stream.field)
    spelt = normalised(found.texts, normalise.make_for_lines(stream.text.normalise))
    found = keep(found, skipped, f"without a {stream.field}", ~spelt.empty)
    found = short_enough(long_enough(found, data, skipped), data, skipped)
    found = require_any(found, skipped, where)
    found = labelled_subset(found, data, seed, where)
    joins = data.join_share > 0 and data.join[1] > 1
    if tokenizer is None:
        tokenizer = make_tokenizer(stream.text, found.texts, joined=joins, where=stream.where)
    found = require_any(_encodable(found, tokenizer, skipped), skipped, where)
    if joins and not tokenizer.covers(f"{found[0].text} {found[0].text}"):
        lacks = f"which the tokenizer of {stream.name} lacks"
        raise UserError(f"config.data.join_share joins texts by a space, {lacks}")
    return found, tokenizer


def _encodable(utterances: Utterances, tokenizer: Tokenizer, skipped: Counter) -> Utterances:
    """Utterances whose texts have a label for every character."""
    unknown = list(tokenizer.uncovered(utterances.texts))
    if not unknown:
        return utterances
    listed = ", ".join(map(repr, unknown[:LISTED])) + (", ..." if len(unknown) > LISTED else "")
    reason = f"with unknown characters: {listed}"
    covered = map(tokenizer.covers, utterances.texts)
    return keep(utterances, skipped, reason, np.fromiter(covered, bool, len(utterances)))


def require_any(
    utterances: Sequence[Utterance], skipped: Mapping[str, int], where: str
) -> Utterances:
    """The utterances; UserError if there are none, with the reasons."""
    if not utterances:
        reasons = describe_skipped(skipped)
        raise UserError(f"{where}: no utterance is left to train on: {reasons}")
    return Utterances.of(utterances)


def overfit_splits(
    found: Mapping[str, Sequence[Utterance]],
    streams: Mapping[str, Stream],
    most: int,
    quarantined: Quarantine,
) -> dict[str, Utterances]:
    """Streams and splits for `data.overfit`: the first `most` labelled utterances of each stream
    are its training data, its dev split, and the unlabelled audio."""
    kept = {}
    for name, stream in streams.items():
        last, own = stream.buckets[-1], Utterances.of(found[name])
        short = own.select(own.durations <= last)
        long = {f"longer than {last:g} s": len(own) - len(short)}
        kept[name] = require_any(short[:most], long, f"{stream.where}.train")
    dev = {split_name("dev", name): kept[name] for name in kept}
    test = {split_name("test", name): Utterances.of([]) for name in kept}
    opened = {UNLABELLED: unique_utterances(kept.values()), **dev}
    opened = {part: quarantined.sift(part, utterances) for part, utterances in opened.items()}
    return kept | opened | test
