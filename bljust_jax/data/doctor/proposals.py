"""Settings that suit a corpus: lengths of batches by padding, and steps of text normalisation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bljust_jax.data import bucket_lengths, normalise
from bljust_jax.data.doctor.survey import Survey
from bljust_jax.data.doctor.text_checks import SENTENCE

NUMBERS = (3, 6, 10)  # of lengths that are tried


class BucketTable(NamedTuple):
    """lengths: seconds; padding: share of the padded audio that is no audio."""

    lengths: tuple[float, ...]
    padding: float


class Normalise(NamedTuple):
    """steps: of config.data.text.normalise; reasons: one per step; characters: distinct ones of the
    training texts, as they are and after the steps."""

    steps: tuple[str, ...]
    reasons: tuple[str, ...]
    characters: tuple[int, int]


def bucket_tables(survey: Survey, numbers: Sequence[int] = NUMBERS) -> list[BucketTable]:
    """For each number the lengths of least padding for the training audio."""
    seconds = np.array([item.audio.seconds for item in survey.train if item.readable])
    if not len(seconds):
        return []
    found = bucket_lengths.least_padding(seconds, max(numbers))
    return [BucketTable(*found[min(n, len(found)) - 1]) for n in numbers]


def normalisation(survey: Survey) -> Normalise:
    """The steps that unify how the training texts are written, by what occurs in them."""
    texts = [item.utterance.text or "" for item in survey.train]
    characters = set().union(*texts)
    joined = "".join(sorted(characters))
    found = {
        "invisible": (not all(map(normalise.is_visible, joined)), "characters that cannot be seen"),
        "lower": (joined.lower() != joined, "capitals"),
        "punctuation": (bool(SENTENCE.search(joined)), "punctuation"),
        "alef": (normalise.alef(joined) != joined, "forms of the Arabic alef"),
        "diacritics": (normalise.diacritics(joined) != joined, "Arabic vowel signs"),
    }
    steps = tuple(step for step, (needed, _) in found.items() if needed)
    reasons = tuple(reason for needed, reason in found.values() if needed)
    spell = normalise.make(steps)
    after = set().union(*map(spell, texts))
    return Normalise(steps, reasons, (len(characters), len(after)))
