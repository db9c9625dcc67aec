"""Select the utterances that a report shows: a typical one, and those with the most errors."""

import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jiwer
import numpy as np

from bljust_jax.common.files import read_json_lines

SECONDS = (2.0, 6.0)  # preferred duration of the pictured utterance


def word_errors(reference: str, hypothesis: str) -> int:
    """Number of word substitutions, deletions and insertions."""
    return _errors(jiwer.process_words(reference, hypothesis))


def character_errors(reference: str, hypothesis: str) -> int:
    """Number of character substitutions, deletions and insertions."""
    return _errors(jiwer.process_characters(reference, hypothesis))


def _errors(found: jiwer.WordOutput | jiwer.CharacterOutput) -> int:
    return found.substitutions + found.deletions + found.insertions


COUNTED = {"words": word_errors, "characters": character_errors}


def typical(
    pairs: Sequence[Mapping[str, str]],
    seconds: Mapping[str, float],
    covers: Callable[[str], bool],
) -> str | None:
    """The id of the utterance whose word error rate is nearest the median; None without candidates.

    Candidates last 2 to 6 s (any duration if none does) and have a reference that `covers` accepts.
    Ties go to the longer one, then to the first. `pairs` holds id, reference, hypothesis; `seconds`
    durations by id.
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


def read_pairs(samples: pathlib.Path) -> list[dict[str, str]]:
    """The pairs of a file of samples; none, with a warning, of a damaged one."""
    try:
        return read_json_lines(samples)
    except ValueError as error:
        logging.warning("%s is damaged (%s); its utterances are not shown", samples, error)
        return []


def worst(
    samples: pathlib.Path, most: int, unit: str = "words"
) -> list[tuple[int, dict[str, str]]]:
    """(errors, pair) of the `most` pairs with the most errors, at least one, of a file of samples;
    `unit`: words or characters."""
    pairs = read_pairs(samples)
    counted = [(COUNTED[unit](p["reference"], p["hypothesis"]), p) for p in pairs]
    counted = [(n, p) for n, p in counted if n]
    return sorted(counted, key=lambda c: (-c[0], c[1]["id"]))[:most]
