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


# Several runs: differences paired by run and speaker


class Interval(NamedTuple):
    """A mean difference of error rates, as a fraction, with its interval at `LEVEL`.

    error: standard error of `value`; runs, speakers: numbers of both
    """

    value: float
    low: float
    high: float
    error: float
    runs: int
    speakers: int

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def paired_interval(more: np.ndarray, words: np.ndarray, *, seed: int = 0) -> Interval:
    """Interval of the difference of two methods' error rates, over runs and speakers.

    more: [R, S] errors of the second method minus those of the first, by run (both methods of a run
        share draw and seed) and speaker; words: [S] of the references.

    With D = sum(more) / (R sum(words)) and D* the same after drawing runs and speakers with
    replacement, each on its own (the pigeonhole bootstrap, Owen, 2007), `DRAWS` times:

        interval = D + k (quantiles of D* - D),  k = t se / (z sd(D*)).

    se and the degrees of freedom of the t quantile are those of `standard_error`: few runs or
    speakers make the plain percentile interval too short (Hesterberg, 2015). With one run (or one
    speaker) the interval is over speakers (runs) alone; with one of both it is infinite.
    """
    from scipy import special

    runs, speakers = more.shape
    value = float(more.sum() / (runs * max(words.sum(), 1)))
    error, freedom = standard_error(effects(more, words))
    if freedom == 0:
        return Interval(value, -np.inf, np.inf, np.inf, runs, speakers)
    rng = np.random.default_rng(seed)
    drawn = (rng.multinomial(n, np.full(n, 1 / n), size=DRAWS) for n in more.shape)
    found = replicates(more, words, *drawn)
    spread = found.std()
    if spread == 0:
        return Interval(value, value, value, 0.0, runs, speakers)
    tail = (1 + LEVEL) / 2
    scale = special.stdtrit(freedom, tail) * error / (special.ndtri(tail) * spread)
    low, high = value + scale * (np.quantile(found, [1 - tail, tail]) - value)
    return Interval(value, float(low), float(high), error, runs, speakers)


def replicates(
    more: np.ndarray, words: np.ndarray, runs: np.ndarray, speakers: np.ndarray
) -> np.ndarray:
    """[N] differences of error rates; runs [N, R] and speakers [N, S] are how often each was
    drawn."""
    errors = np.einsum("nr,rs,ns->n", runs, more, speakers, optimize=True)
    return errors / np.maximum(runs.sum(1) * (speakers @ words), 1)


def effects(more: np.ndarray, words: np.ndarray) -> np.ndarray:
    """[R, S] linearised difference by run and speaker, whose mean is D: a ratio's influence,
    D + S (more - D words) / sum(words)."""
    total = max(words.sum(), 1)
    value = more.sum() / (len(more) * total)
    return value + len(words) * (more - value * words) / total


def standard_error(effects: np.ndarray) -> tuple[float, float]:
    """(standard error, degrees of freedom) of the mean of [R, S] effects of runs and speakers, both
    random (two-way analysis of variance without replication):

        se^2 = max(MS_runs + MS_speakers - MS_rest, MS_rest) / (R S)

    with Satterthwaite's degrees of freedom. With one run or one speaker, that of the other alone;
    (0, 0) with one of both.
    """
    runs, speakers = effects.shape
    if min(runs, speakers) == 1:
        n = max(runs, speakers)
        return (float(effects.std(ddof=1) / n**0.5), n - 1.0) if n > 1 else (0.0, 0.0)
    mean, by_run, by_speaker = effects.mean(), effects.mean(1), effects.mean(0)
    rest = effects - by_run[:, None] - by_speaker + mean
    between_runs = speakers * by_run.var(ddof=1)
    between_speakers = runs * by_speaker.var(ddof=1)
    left = (runs - 1) * (speakers - 1)
    within = (rest**2).sum() / left
    total = between_runs + between_speakers - within
    if total <= within:  # neither runs nor speakers differ by more than the rest
        return float((within / effects.size) ** 0.5), float(left)
    parts = between_runs**2 / (runs - 1) + between_speakers**2 / (speakers - 1) + within**2 / left
    return float((total / effects.size) ** 0.5), float(max(total**2 / parts, 1.0))
