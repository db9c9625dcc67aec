"""Survey of a corpus: its utterances, texts and measured audio, by split, for checks."""

import collections
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bljust_jax.common.console import StatusLine
from bljust_jax.common.durations import in_hours
from bljust_jax.common.files import expand_user, read_json_lines, require_writable
from bljust_jax.common.threads import in_order
from bljust_jax.data.doctor.measure import Measured, measure_file
from bljust_jax.data.sources import Utterance
from bljust_jax.data.tokenizer import Tokenizer

VERSION = 1  # of the rows of a cache; raise it with the fields of `Measured`
TRAIN = "train"
ASSUMED_FRAME = 0.04  # seconds per frame of an encoder without a config: subsampling by 4


@dataclasses.dataclass(frozen=True)
class Item:
    """An utterance, its normalised text ("" without one), and the figures of its audio."""

    split: str
    utterance: Utterance
    text: str
    audio: Measured

    @property
    def readable(self) -> bool:
        """Whether it has audio that can be decoded."""
        return not self.audio.error and self.audio.seconds > 0


@dataclasses.dataclass(frozen=True)
class Survey:
    """The data of a report.

    items: of all splits; sample_rate: Hz that training resamples to; tokenizer: of a run or a
    config, None without; frames: seconds of audio -> frames of the encoder's output; assumption: of
    `frames` and labels without a run or config, "" with one.
    """

    items: Sequence[Item]
    sample_rate: int = 16000
    tokenizer: Tokenizer | None = None
    frames: Callable[[float], int] = lambda seconds: int(seconds / ASSUMED_FRAME + 1e-6)
    assumption: str = ""

    @functools.cached_property
    def train(self) -> list[Item]:
        return [item for item in self.items if item.split == TRAIN]

    @functools.cached_property
    def held_out(self) -> list[Item]:
        return [item for item in self.items if item.split != TRAIN]

    @functools.cached_property
    def readable(self) -> list[Item]:
        return [item for item in self.items if item.readable]

    @functools.cached_property
    def spoken(self) -> list[Item]:
        """Items with audio and text."""
        return [item for item in self.readable if item.text]

    def words_repeat(self, split: str) -> bool:
        """Whether most texts of a split occur several times, as commands and digits do."""
        counts = collections.Counter(i.text for i in self.items if i.split == split and i.text)
        return sum(counts.values()) > 2 * len(counts)


def survey(
    sources: Mapping[str, Sequence[Utterance]],
    spell: Callable[[str], str],
    cache: pathlib.Path,
    threads: int,
    **facts: Any,
) -> Survey:
    """Measure all audio of {split: its utterances}, by threads; texts pass `spell`.

    Rows of the cache, JSON lines, are of files that were measured before and have the same size and
    time of change; those of other files are appended as they are measured. Audio from shards is
    measured each time.
    """
    groups: dict[str, list[Utterance]] = {}
    for u in (u for utterances in sources.values() for u in utterances):
        groups.setdefault(u.path, []).append(u)
    known = read_cache(cache)
    figures: dict[tuple, Measured] = {}
    todo: list[tuple[str, list[Utterance]]] = []
    for path, group in groups.items():
        key = _key(path, group)
        if key in known:
            figures |= dict(zip(map(_span, group), known[key], strict=True))
        else:
            todo.append((key, group))
    for group, found in _measure(todo, cache, threads):
        figures |= dict(zip(map(_span, group), found, strict=True))
    items = [
        Item(split, u, spell(u.text or ""), figures[_span(u)])
        for split, utterances in sources.items()
        for u in utterances
    ]
    return Survey(items, **facts)


def _span(u: Utterance) -> tuple[str, float, float]:
    return u.path, u.offset, u.duration


def _measure(
    todo: Sequence[tuple[str, list[Utterance]]], cache: pathlib.Path, threads: int
) -> Iterator[tuple[list[Utterance], list[Measured]]]:
    """(utterances of a file, their figures) of each file, which are appended to the cache."""
    if not todo:
        return
    require_writable(cache)
    status, began, seconds = StatusLine(redraw=0.2, interval=30.0), time.monotonic(), 0.0
    measured = in_order(
        lambda job: measure_file(job[1]), todo, threads=threads, ahead=4 * max(threads, 1)
    )
    with cache.open("a", encoding="utf-8") as file:
        for n, ((key, group), found) in enumerate(zip(todo, measured, strict=True), start=1):
            if key:
                row = {"key": key, "figures": [list(dataclasses.astuple(m)) for m in found]}
                file.write(json.dumps(row) + "\n")
            seconds += sum(m.seconds for m in found)
            elapsed = time.monotonic() - began
            text = f"decoded {n}/{len(todo)} files, {in_hours(seconds)} of audio"
            if n < len(todo):
                status.update(f"{text}, {in_hours(elapsed / n * (len(todo) - n))} left")
            else:
                status.log(f"{text}, in {in_hours(elapsed)}")
            yield group, found


def read_cache(path: pathlib.Path) -> dict[str, list[Measured]]:
    """{key: figures of a file's utterances} of a cache; {} without one. Incomplete lines, left by a
    kill, are skipped."""
    if not path.is_file() or not path.stat().st_size:
        return {}
    return {row["key"]: [Measured(*figures) for figures in row["figures"]] for row in _rows(path)}


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    try:
        return read_json_lines(path)
    except ValueError:  # one line, cut by a kill
        return []


def _key(path: str, group: Sequence[Utterance]) -> str:
    """Digest of a file and of the spans measured in it; "" for audio that is no file."""
    if group[0].fetch or not os.path.isfile(path):
        return ""
    status = os.stat(path)
    facts = [VERSION, path, status.st_size, status.st_mtime_ns, [_span(u)[1:] for u in group]]
    return hashlib.blake2b(os.fsencode(json.dumps(facts)), digest_size=16).hexdigest()


def cache_of(uris: Sequence[str]) -> pathlib.Path:
    """The cache of these sources in the user's cache folder, $XDG_CACHE_HOME or ~/.cache."""
    folder = os.environ.get("XDG_CACHE_HOME") or expand_user("~/.cache")
    where = [os.path.abspath(uri) if os.path.exists(uri) else uri for uri in uris]
    name = hashlib.blake2b(os.fsencode("\n".join(where)), digest_size=8).hexdigest()
    return pathlib.Path(folder) / "bljust_jax" / "doctor" / f"{name}.jsonl"
