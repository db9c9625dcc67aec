"""Which utterances to show."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jiwer
import numpy as np

SECONDS = (2.0, 6.0)  # of the pictured utterance, where the split has such


def word_errors(reference: str, hypothesis: str) -> int:
    """Substitutions, deletions and insertions that turn one into the other."""
    return _errors(jiwer.process_words(reference, hypothesis))


def character_errors(reference: str, hypothesis: str) -> int:
    """`word_errors`, of characters."""
    return _errors(jiwer.process_characters(reference, hypothesis))


def _errors(found: jiwer.WordOutput | jiwer.CharacterOutput) -> int:
    return found.substitutions + found.deletions + found.insertions


COUNTED = {"words": word_errors, "characters": character_errors}


def typical(
    pairs: Sequence[Mapping[str, str]],
    seconds: Mapping[str, float],
    covers: Callable[[str], bool],
) -> str | None:
    """The id of the utterance to picture: of the word error rate nearest the median.

    Candidates last 2 to 6 s (any, where none does) and have a reference that `covers` accepts;
    None where there are none. Ties go to the longer one, then to the first. `pairs` holds id,
    reference, hypothesis; `seconds` durations by id.
    """
    usable = [p for p in pairs if p["reference"] and covers(p["reference"])]
    low, high = SECONDS
    usable = [p for p in usable if low <= seconds[p["id"]] <= high] or usable
    if not usable:
        return None
    errors = [word_errors(p["reference"], p["hypothesis"]) for p in usable]
    rates = [n / len(p["reference"].split()) for n, p in zip(errors, usable, strict=True)]
    middle = float(np.median(rates))
    best = min(
        range(len(usable)), key=lambda n: (abs(rates[n] - middle), -seconds[usable[n]["id"]])
    )
    return usable[best]["id"]


def worst(
    samples: pathlib.Path, most: int, unit: str = "words"
) -> list[tuple[int, dict[str, str]]]:
    """(errors, pair) of the `most` worst pairs of a file that `evaluate.write_samples` wrote, those
    without an error left out; `unit`: words or characters."""
    pairs = [json.loads(line) for line in samples.read_text().splitlines()]
    counted = [(COUNTED[unit](p["reference"], p["hypothesis"]), p) for p in pairs]
    counted = [(n, p) for n, p in counted if n]
    return sorted(counted, key=lambda c: (-c[0], c[1]["id"]))[:most]
