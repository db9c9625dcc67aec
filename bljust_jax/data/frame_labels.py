"""Labels per frame of unlabelled audio, such as k-means classes in fairseq's `.km` files.

One line per utterance: whole numbers of 0 or above with spaces between them,
`config.data.frame_label_rate` per second. A line starts with the utterance's id
(`ID<TAB>12 12 7`; a space does where the id is no number), or no line does: then the lines follow
the utterances of the sources, as fairseq's `.km` follows its `.tsv`.
"""

import math
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from bljust_jax.common.errors import UserError
from bljust_jax.common.files import expand_user
from bljust_jax.data.sources import Utterance, read_lines

TOLERANCE = 0.1  # seconds that labels may be longer or shorter than their audio
FIELD = "config.data.frame_labels"
CURE = "make them by `python -m bljust_jax.prepare --labels`"

Batch = dict[str, np.ndarray]
# (file:line, id or "" in the order of the sources, labels)
Line = tuple[str, str, np.ndarray]


class FrameLabels:
    """Labels of utterances by id, `rate` per second; label j is of j / rate .. (j + 1) / rate.

    largest: (label, "file:line") of the largest one.
    """

    def __init__(self, rate: float, found: Mapping[str, np.ndarray], largest: tuple[int, str]):
        self.rate, self.largest = rate, largest
        ends = np.cumsum([len(labels) for labels in found.values()]).tolist()
        self._spans = dict(zip(found, zip([0, *ends], ends, strict=False), strict=True))
        self._labels = np.concatenate([*found.values(), np.zeros(0, np.uint8)])

    def __len__(self) -> int:
        """Number of utterances."""
        return len(self._spans)

    def of(self, u: Utterance) -> np.ndarray:
        """All labels of an utterance, none for one without."""
        start, stop = self._spans.get(u.id, (0, 0))
        return self._labels[start:stop]

    def room(self, seconds: float) -> int:
        """Number of labels of padded audio."""
        return math.ceil(seconds * self.rate - 1e-9)

    def cut(
        self, u: Utterance, seconds: float, start: float = 0.0, speed: float = 1.0
    ) -> Int[np.ndarray, "t"]:
        """Labels of `seconds` of audio, which a speed factor makes of `u` from `start` s on: int32
        [round(seconds rate)]; none for an utterance without labels.

        Label j of the result is that of the recording at start + speed (j + 1/2) / rate, the last
        one where the labels end earlier.
        """
        labels = self.of(u)
        count = min(round(seconds * self.rate), self.room(seconds)) if len(labels) else 0
        at = np.floor(start * self.rate + speed * (np.arange(count) + 0.5)).astype(np.int64)
        return labels[np.minimum(at, len(labels) - 1)].astype(np.int32)

    def fill_row(self, batch: Batch, row: int, u: Utterance, *cut: float) -> None:
        """Write labels of an utterance, as `cut` gives them, into a row of a batch with room."""
        labels = self.cut(u, *cut)
        batch["frame_labels"][row, : len(labels)] = labels
        batch["frame_label_lengths"][row] = len(labels)

    def added_to(self, batch: Batch, members: Sequence[Utterance], sample_rate: int) -> Batch:
        """A batch with the labels of the utterances in its first rows; they have length 0 in rows
        without."""
        rows, samples = batch["audio"].shape
        batch = {**batch, **empty_labels(rows, self.room(samples / sample_rate))}
        for row, u in enumerate(members):
            self.fill_row(batch, row, u, int(batch["audio_lengths"][row]) / sample_rate)
        return batch

    def digest(self) -> list[Any]:
        """What a run that resumes must have in common."""
        return [self.rate, zlib.crc32(repr(self._spans).encode()), zlib.crc32(self._labels)]

    def check_classes(self, classes: int, field: str) -> None:
        """UserError for a label beyond the classes that a config field sets."""
        label, line = self.largest
        if label >= classes:
            raise UserError(
                f"{line}: label {label} is none of the {classes} of {field}: set it to {label + 1}"
            )

    def describe(self) -> str:
        """Line of the summary."""
        return f"frame labels: {len(self)} utterances, {self.rate:g} labels per second"


def empty_labels(rows: int, room: int) -> Batch:
    """Rows of length 0: {frame_labels: int32 [B, F], frame_label_lengths: int32 [B]}, F = room."""
    return {
        "frame_labels": np.zeros((rows, room), np.int32),
        "frame_label_lengths": np.zeros(rows, np.int32),
    }


def load(
    data: Any,
    train: Iterable[Utterance],
    others: Iterable[Utterance],
    in_order: Callable[[], Sequence[Utterance]],
) -> FrameLabels | None:
    """The labels of `data.frame_labels`: files, or folders of *.km, joined by "+"; None for "".

    train: utterances of the unlabelled stream, which all need labels; others: those that may have
    some; in_order: all utterances of the sources, for lines without ids. Raises UserError, with
    file and line, for labels that are no whole numbers of 0 or above, an id that occurs twice, and
    labels more than `TOLERANCE` longer or shorter than the audio; for another number of lines than
    of utterances; and for an utterance of `train` without labels.
    """
    if not data.frame_labels:
        return None
    rate, train = float(data.frame_label_rate), list(train)
    wanted = {u.id: u for u in (*others, *train)}
    found, largest, lines = {}, (0, ""), {}
    for where, name, labels in _with_ids(data.frame_labels, in_order):
        if name in lines:
            raise UserError(f"{where}: {name!r} has labels already, at {lines[name]}; remove one")
        lines[name] = where
        if name not in wanted:
            continue
        _check_length(where, wanted[name], len(labels), rate)
        found[name] = labels
        largest = max(largest, (int(labels.max(initial=0)), where), key=lambda pair: pair[0])
    missing = [u for u in train if u.id not in found]
    if missing:
        first = missing[0]
        raise UserError(
            f"{FIELD}={data.frame_labels}: {len(missing)} of {len(train)} utterances to train on "
            f"have no labels, first {first.id} ({first.line or first.path}); {CURE}"
        )
    return FrameLabels(rate, dict(sorted(found.items())), largest)


def _check_length(where: str, u: Utterance, count: int, rate: float) -> None:
    expected = u.duration * rate
    if abs(count - expected) > max(TOLERANCE * rate, 1.0):
        raise UserError(
            f"{where}: {count} labels of {u.id!r}, whose {u.duration:.2f} s have {expected:.0f} at "
            f"config.data.frame_label_rate={rate:g}: set the rate of the file, or {CURE}"
        )


def _with_ids(paths: str, in_order: Callable[[], Sequence[Utterance]]) -> Iterator[Line]:
    """The lines of all files, those without ids with the ids of the utterances in their order."""
    plain = []
    for path in files(paths):
        for where, name, labels in _read(path):
            if name and plain:
                raise UserError(f"{where}: has an id where {plain[0][0]} has none")
            if name:
                yield where, name, labels
            else:
                plain.append((where, labels))
    if not plain:
        return
    utterances = in_order()
    if len(plain) != len(utterances):
        raise UserError(
            f"{FIELD}={paths}: {len(plain)} lines without ids for {len(utterances)} utterances: "
            "give one line per utterance, in the order of the sources, or start each with its id "
            "and a tab"
        )
    for (where, labels), u in zip(plain, utterances, strict=True):
        yield where, u.id, labels


def files(paths: str) -> list[pathlib.Path]:
    """The files that "+" joins, a folder standing for its *.km in the order of their names;
    UserError for one that does not exist, and for a folder without any."""
    found, whole = [], pathlib.Path(expand_user(paths)).exists()
    for name in [paths] if whole else paths.split("+"):
        path = pathlib.Path(expand_user(name))
        inside = sorted(path.glob("*.km")) if path.is_dir() else [path]
        if not inside or not inside[0].is_file():
            kind = "no *.km in the folder" if path.is_dir() else "no such file"
            raise UserError(f"{FIELD}: {kind}: {path}; {CURE}")
        found += inside
    return found


def _read(path: pathlib.Path) -> Iterator[Line]:
    for where, line in read_lines(path):
        name, tab, rest = line.partition("\t")
        if not tab:
            first, _, others = line.strip().partition(" ")
            name, rest = ("", line) if first.lstrip("-").isdigit() else (first, others)
        try:
            labels = np.fromiter(map(int, rest.split()), np.int64)
        except ValueError as error:
            raise UserError(f"{where}: {error}; labels are whole numbers of 0 or above") from error
        if labels.min(initial=0) < 0:
            raise UserError(
                f"{where}: label {labels.min()}; labels are whole numbers of 0 or above"
            )
        yield where, name, labels.astype(np.min_scalar_type(labels.max(initial=0)))
