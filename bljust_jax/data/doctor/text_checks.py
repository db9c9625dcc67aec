"""Checks of texts: rate, labels, scripts, case, punctuation, digits; with a detail in words."""

import itertools
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from bljust_jax.data import normalise
from bljust_jax.data.doctor.survey import TRAIN, Item, Survey
from bljust_jax.data.scripts import MIXED, alphabet, is_unspaced, script
from bljust_jax.data.summary import MARK

Faults = Iterator[tuple[Item, str]]

FACTOR = 4.0  # above the median rate, in characters per second
SLOW = 8.0  # below the median rate: speech with long pauses is 5 times slower
FASTEST, FASTEST_UNSPACED = 40.0, 15.0  # characters per second that nobody speaks
ENOUGH = 20  # texts from which on a median counts
LEAST = 0.1  # share of texts from which on the rarer spelling is no exception but a habit
CAPITALS = 8  # letters from which on a text in capitals is no abbreviation
SENTENCE = re.compile('[.,;:!?…"«»“”„()\\[\\]{}。，、；：！？「」『』（）؟،؛।]')


def speaking_rate(survey: Survey) -> Faults:
    rates = [characters_per_second(item) for item in survey.spoken]
    middle = statistics.median(rates) if len(rates) >= ENOUGH else math.nan
    for item, rate in zip(survey.spoken, rates, strict=True):
        unspaced = sum(map(is_unspaced, item.text)) > len(item.text) / 2
        most = FASTEST_UNSPACED if unspaced else FASTEST
        if rate > most or rate > FACTOR * middle or rate < middle / SLOW:
            usual = "" if math.isnan(middle) else f", the median is {middle:.1f}"
            yield item, f"{rate:.1f} characters per second{usual}"


def characters_per_second(item: Item) -> float:
    """Characters of the text, spaces included, per second of audio."""
    return len(item.text) / max(item.audio.seconds, 1e-3)


def infeasible(survey: Survey) -> Faults:
    """CTC needs a frame per label and a blank between equal ones, T >= U + repeats."""
    for item in survey.spoken:
        labels: Sequence = item.text
        if survey.tokenizer:
            if not survey.tokenizer.covers(item.text):
                continue
            labels = survey.tokenizer.encode(item.text).tolist()
        needed = len(labels) + sum(a == b for a, b in itertools.pairwise(labels))
        frames = survey.frames(item.audio.seconds)
        if needed > frames:
            yield item, f"{frames} frames for {needed} labels and blanks"


def outside_vocabulary(survey: Survey) -> Faults:
    """Characters that the tokenizer lacks, or, without one, that the training texts lack."""
    known = set().union(*(item.text for item in survey.train))
    for item in survey.items:
        if survey.tokenizer:
            lacking = list(survey.tokenizer.uncovered([item.text]))
        else:
            lacking = sorted(set(item.text) - known) if item.split != TRAIN else []
        if lacking:
            yield item, f"{''.join(lacking)!r} of {_cut(item.text)!r}"


def mixed_scripts(survey: Survey) -> Faults:
    """A script that has at least `MIXED` of a language's letters is one of its own."""
    counts: dict[str, Counter[str]] = {}
    for item in survey.items:
        own = counts.setdefault(item.utterance.lang, Counter())
        own.update(filter(None, map(script, item.text)))
    for item in survey.items:
        own = counts[item.utterance.lang]
        found = Counter(filter(None, map(script, item.text)))
        rare = [name for name in found if own[name] < MIXED * own.total()]
        if rare and not _mixes_alphabets(item.text):
            yield item, f"{', '.join(rare).lower()} in {_cut(item.text)!r}"


def look_alikes(survey: Survey) -> Faults:
    for item in survey.items:
        words = [word for word in item.text.split() if _mixes_alphabets(word)]
        if words:
            parts = " and ".join(sorted(alphabet(c).title() for c in set(words[0]) if alphabet(c)))
            yield item, f"{words[0]!r} has letters of {parts}"


def _mixes_alphabets(text: str) -> bool:
    """Whether a word of the text has letters of two alphabets."""
    return any(len({alphabet(c) for c in word} - {""}) > 1 for word in text.split())


def mixed_case(survey: Survey) -> Faults:
    """Texts in capitals among others, and texts without or with any capital, whichever are fewer;
    properly written texts without a capital are frequent enough not to count below `LEAST`."""
    kinds = [_case(item.text) for item in survey.items]
    counts = Counter(filter(None, kinds))
    lower, total = counts["lower case"], counts.total()
    rare = {"capitals"} if counts["capitals"] < total / 2 else {"lower case", "mixed case"}
    if lower >= total / 2:
        rare |= {"mixed case"}
    elif LEAST * total <= lower:
        rare |= {"lower case"}
    for item, kind in zip(survey.items, kinds, strict=True):
        if kind in rare:
            yield item, f"{kind}: {_cut(item.text)!r}"


def _case(text: str) -> str:
    upper, lower = sum(map(str.isupper, text)), sum(map(str.islower, text))
    if not upper:
        return "lower case" if lower else ""
    return "capitals" if not lower and upper >= CAPITALS else "mixed case"


def mixed_punctuation(survey: Survey) -> Faults:
    def has(item: Item) -> bool:
        return bool(SENTENCE.search(MARK.sub("", item.text)))

    with_text = [item for item in survey.items if item.text]
    number = sum(map(has, with_text))
    if number <= len(with_text) / 2:
        yield from _with_detail(with_text, has)
    elif len(with_text) - number >= LEAST * len(with_text):
        yield from _with_detail(with_text, lambda item: not has(item))


def digits(survey: Survey) -> Faults:
    yield from _with_detail(survey.items, lambda item: any(map(str.isdigit, item.text)))


def invisible(survey: Survey) -> Faults:
    for item in survey.items:
        hidden = sorted(set(item.text) - set(normalise.invisible(item.text)))
        if hidden:
            yield item, f"{', '.join(f'U+{ord(c):04X}' for c in hidden)} in {_cut(item.text)!r}"


def marks(survey: Survey) -> Faults:
    for item in survey.items:
        found = MARK.findall(item.text)
        if found:
            yield item, f"{found[0]} in {_cut(item.text)!r}"


def _with_detail(items: Sequence[Item], fault: Callable[[Item], bool]) -> Faults:
    for item in items:
        if fault(item):
            yield item, repr(_cut(item.text))


def _cut(text: str, width: int = 60) -> str:
    return text if len(text) <= width else f"{text[:width]}..."
