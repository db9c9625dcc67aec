"""Reader of WebDataset: `webdataset:PATTERN`, tar shards such as `DIR/train-{000..099}.tar`.

A sample is the members of one key, the name up to its first dot: 0001.flac with 0001.txt, its text,
or 0001.json, an object whose fields are named as in `listings.COLUMNS`. `webdataset:DIR` reads all
*.tar of a folder. Audio is read at its place in the shard; pickled members are not read.
(github.com/webdataset/webdataset)
"""

import concurrent.futures
import json
import logging
import os
from collections import Counter
from typing import Any

from bljust_jax.common.errors import UserError
from bljust_jax.data import archives
from bljust_jax.data.listings import (
    AUDIO,
    COLUMNS,
    UNDECODED,
    report_unlabelled,
    text_of,
    to_duration,
)
from bljust_jax.data.sources import Utterance, inside, with_durations

TEXTS = ("txt", "text", "transcript", "lab")
FIELDS = ("text", "translation", "id", "speaker", "lang", "duration")


def read(rest: str, root: str = "") -> list[Utterance]:
    """The samples of all shards (`rest`, relative to a given `root`), in their order.

    id: the key; a text of its own is taken before that in the object. Without a duration in the
    object, the length is read from the audio's header. Raises UserError for a missing, compressed
    or damaged shard, a key of two recordings or none, and a text that is not UTF-8 or no JSON.
    """
    what = f"webdataset:{rest}"
    shards = archives.find_shards(rest, root, what)
    shards = [inside(os.path.abspath(shard), root, what) for shard in shards]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        read_shards = list(pool.map(_shard, shards))
    others = sum((other for _, other in read_shards), Counter())
    if others:
        kinds = ", ".join(f"*.{suffix}" for suffix, _ in others.most_common(3))
        logging.warning("%s: %d members are not read: %s", what, others.total(), kinds)
    found = [u for utterances, _ in read_shards for u in utterances]
    return report_unlabelled(with_durations(found), what)


def _shard(tar: str) -> tuple[list[Utterance], Counter]:
    """The utterances of a shard, and how many members of which suffix are not read."""
    index = archives.read_index(tar, lambda name: _split(name)[1] in (*TEXTS, "json"))
    if index.damage:
        raise UserError(f"{index.damage}: fetch or pack it again, or leave it out")
    samples: dict[str, dict[str, archives.Member]] = {}
    others: Counter = Counter()
    for member in index.members:
        key, suffix = _split(member.name)
        if suffix not in (*TEXTS, "json") and f".{suffix.rpartition('.')[2]}" not in AUDIO:
            others[suffix] += 1
        sample = samples.setdefault(key, {})
        if suffix in sample:
            raise UserError(f"{tar}#{member.name}: is in the shard twice; pack it again")
        sample[suffix] = member
    utterances = [_utterance(tar, key, sample) for key, sample in samples.items()]
    return [u for u in utterances if u is not None], others


def _split(name: str) -> tuple[str, str]:
    """(key, suffix): a/b.c.wav gives a/b and c.wav."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}/{stem}" if folder else stem, suffix.lower()


def _utterance(tar: str, key: str, sample: dict[str, archives.Member]) -> Utterance | None:
    """The utterance of a sample; None for one without audio and text."""
    audio = [m for suffix, m in sample.items() if f".{suffix.rpartition('.')[2]}" in AUDIO]
    texts = [sample[suffix] for suffix in TEXTS if suffix in sample]
    first = next(iter(sample.values()))
    if not audio:
        other = [m.name for suffix, m in sample.items() if f".{suffix}" in UNDECODED]
        if other:
            problem = "is in a format that is not read"
            raise UserError(f"{tar}#{other[0]}: {problem}; convert it to FLAC")
        if texts or "json" in sample:
            cure = f"add one, such as {key}.flac, or remove it"
            raise UserError(f"{tar}#{first.name}: no recording has its key; {cure}")
        return None
    if len(audio) > 1 or len(texts) > 1:
        one, two, *_ = [m.name for m in (audio if len(audio) > 1 else texts)]
        cure = "a key ends at the first dot of a name: rename or remove one"
        raise UserError(f"{tar}#{two}: has the key {key!r}, as {one} has; {cure}")
    fields = _fields(sample["json"], tar) if "json" in sample else {}
    line = f"{tar}#{(texts or [sample.get('json', audio[0])])[0].name}"
    text = _decoded(texts[0], tar) if texts else fields.get("text")
    return Utterance(
        id=fields.get("id") or key,
        path=f"{tar}#{audio[0].name}",
        offset=0.0,
        duration=to_duration(fields["duration"], line) if "duration" in fields else 0.0,
        text=text_of(text),
        lang=fields.get("lang", ""),
        speaker=fields.get("speaker") or fields.get("id") or key,
        line=line,
        fetch=audio[0].place,
        translation=text_of(fields.get("translation")),
    )


def _fields(member: archives.Member, tar: str) -> dict[str, str]:
    """The known fields of an object as texts; UserError for one that is nested."""
    where = f"{tar}#{member.name}"
    try:
        row = json.loads(_decoded(member, tar))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON: {error}; pack the shard again") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: is no JSON object; write one with the field text")
    return known_fields(row, where)


def known_fields(row: dict[str, Any], where: str) -> dict[str, str]:
    """{field: its value as text} of the names in COLUMNS; UserError for a list or an object."""
    lower = {name.lower(): value for name, value in row.items()}
    found = {}
    for field in FIELDS:
        name = next((name for name in COLUMNS[field] if lower.get(name) is not None), None)
        if name is None:
            continue
        value = lower[name]
        if not isinstance(value, str | int | float):
            raise UserError(f"{where}: {name} must be a text or a number, not {value!r}")
        found[field] = str(value)
    return found


def _decoded(member: archives.Member, tar: str) -> str:
    try:
        return member.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text: {error.reason}"
        raise UserError(f"{tar}#{member.name}: {problem}; pack the shard again") from error
