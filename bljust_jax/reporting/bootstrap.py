"""Paired bootstrap of the difference of two error rates on the same utterances."""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bljust_jax.reporting.utterances import COUNTED, read_pairs

DRAWS = 2000
LEVEL = 0.95


class Difference(NamedTuple):
    """Error rate of the second run minus that of the first, as fractions, with its interval.

    units: words (characters) of the references that both runs recognised
    """

    value: float
    low: float
    high: float
    units: int

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def difference(
    first: Mapping[str, tuple[int, int]], second: Mapping[str, tuple[int, int]]
) -> Difference | None:
    """Percentile interval at `LEVEL` of the paired bootstrap (Bisani and Ney, 2004): utterances
    are drawn with replacement, the same for both runs, `DRAWS` times, with a fixed seed.

    first, second: {utterance id: (errors, units of the reference)}. None without common utterances.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        return None
    units = np.array([first[name][1] for name in common], np.float64)
    more = np.array([second[name][0] - first[name][0] for name in common], np.float64)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(common), np.full(len(common), 1 / len(common)), size=DRAWS)
    rates = counts @ more / np.maximum(counts @ units, 1)
    low, high = np.quantile(rates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    total = max(units.sum(), 1)
    return Difference(float(more.sum() / total), float(low), float(high), int(units.sum()))


def errors_of(samples: pathlib.Path, unit: str) -> dict[str, tuple[int, int]]:
    """{utterance id: (errors, units of the reference)} of a file of samples; unit: words or
    characters. {} without the file, as of a run that is not finished."""
    pairs = read_pairs(samples) if samples.is_file() else []
    return {
        p["id"]: (COUNTED[unit](p["reference"], p["hypothesis"]), _size(p["reference"], unit))
        for p in pairs
        if p["reference"]
    }


def _size(reference: str, unit: str) -> int:
    return len(reference.split()) if unit == "words" else len(reference)
