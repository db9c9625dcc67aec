"""How often an epoch holds each utterance: by a temperature over languages, or weights of sources.

An epoch holds as much audio as there is. Its draws are a function of (seed, epoch).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bljust_jax.common.errors import UserError


def shares(hours: Sequence[float], temperature: float) -> np.ndarray:
    """Temperature sampling: p_i = hours_i ^ (1/T) / sum_j hours_j ^ (1/T), [N], sum 1.

    T = 1 is proportional to size; a higher T is more even; T = 0 stands for its limit, 1/N each.
    """
    sizes = np.asarray(hours, np.float64)
    weights = (sizes / sizes.max()) ** (1 / temperature) if temperature else np.ones(len(sizes))
    return weights / weights.sum()


class Language(NamedTuple):
    """Utterance indices, and their number per epoch."""

    utterances: np.ndarray
    wanted: int


class Source(NamedTuple):
    """Utterance indices, their seconds, and the seconds of them in an epoch."""

    utterances: np.ndarray
    seconds: float
    wanted: float


def languages(
    kept: np.ndarray, durations: np.ndarray, codes: np.ndarray, names: Sequence[str], T: float
) -> dict[str, Language]:
    """The utterances `kept` by language, and their number per epoch at temperature T.

    codes: numbers of the languages in the order of their names, [N]; names: of each utterance.
    """
    members = _members(kept, codes)
    if not members:
        return {}
    seconds = np.array([durations[own].sum() for own in members])
    factors = shares(seconds.tolist(), T) * seconds.sum() / seconds
    return {
        names[int(own[0])]: Language(own, max(1, round(factor * len(own))))
        for own, factor in zip(members, factors, strict=True)
    }


def sources(
    kept: np.ndarray,
    durations: np.ndarray,
    codes: np.ndarray,
    names: Sequence[str],
    weights: Mapping[str, float],
) -> dict[str, Source]:
    """The utterances `kept` by source; a source has weight / (sum of weights) of an epoch's audio.

    Raises UserError for a source without utterances.
    """
    members = {names[int(own[0])]: own for own in _members(kept, codes)}
    for name in weights:
        if name not in members:
            problem = f"no utterance of {name!r} is left to train on"
            raise UserError(f"config.data.mix: {problem}; remove the source and its weight")
    seconds = {name: float(durations[members[name]].sum()) for name in weights}
    total = sum(seconds.values()) / sum(weights.values())
    return {name: Source(members[name], seconds[name], weights[name] * total) for name in weights}


def _members(kept: np.ndarray, codes: np.ndarray) -> list[np.ndarray]:
    """The utterances of each code that is used, in the order of the codes."""
    own = codes[kept]
    return [kept[own == code] for code in np.unique(own)]


def repeats_of_languages(
    found: Mapping[str, Language], size: int, seed: int, epoch: int
) -> np.ndarray:
    """Times that an epoch holds each utterance, [N]: equal within a language, or 1 apart."""
    rng = np.random.default_rng([seed, epoch, 3])
    times = np.zeros(size, np.int64)
    for utterances, wanted in found.values():
        whole, rest = divmod(wanted, len(utterances))
        times[utterances] = whole
        times[rng.permutation(utterances)[:rest]] += 1
    return times


def repeats_of_sources(
    found: Mapping[str, Source], durations: np.ndarray, seed: int, epoch: int
) -> np.ndarray:
    """Times that an epoch holds each utterance, [N]: equal within a source, or 1 apart; the seconds
    of a source are as wanted to within half an utterance, and it has one at least."""
    rng = np.random.default_rng([seed, epoch, 4])
    times = np.zeros(len(durations), np.int64)
    for utterances, seconds, wanted in found.values():
        whole = int(wanted // seconds)
        order = rng.permutation(utterances)
        ends = np.append(0.0, np.cumsum(durations[order]))
        number = int(np.argmin(np.abs(ends - (wanted - whole * seconds))))
        times[utterances] = whole
        times[order[: max(number, 0 if whole else 1)]] += 1
    return times
