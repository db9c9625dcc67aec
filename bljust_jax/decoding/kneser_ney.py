"""Estimate n-gram models by interpolated modified Kneser-Ney (Chen & Goodman, 1999, eq. 28-31).

    p(w | h) = max(c(hw) - D(c(hw)), 0) / sum_v c(hv)  +  g(h) p(w | h without its first word)
    g(h)     = (D1 N1(h) + D2 N2(h) + D3 N3+(h)) / sum_v c(hv)

N_k(h) is the number of words that follow h exactly k times. c is the number of occurrences at the
highest order and after <s>, else the number of different words that precede the n-gram. The empty
history backs off to the uniform distribution over all words, </s> and <unk>, so <unk> gets g() / V.
D1, D2, D3+ are computed per order from the counts of counts n1..n4:

    Y = n1 / (n1 + 2 n2),   Dk = k - (k + 1) Y n(k+1) / nk

If one of n1..n4 is 0 (small texts), or a D is outside [0, k], the order uses D = 0.5, 1, 1.5, the
fallback of KenLM. In back-off form the probabilities sum to 1 after every history.
"""

import collections
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bljust_jax.common.errors import UserError
from bljust_jax.decoding.arpa import END, START, UNKNOWN

Ngram = tuple[str, ...]
FALLBACK = (0.5, 1.0, 1.5)
RESERVED = frozenset({START, END, UNKNOWN})  # words that a model has of its own


class Estimate(NamedTuple):
    """orders[n - 1]: {n-gram: (p, back-off weight)}; discounts: (D1, D2, D3+) per order; fallback:
    orders with too few counts, which use `FALLBACK`."""

    orders: list[dict[Ngram, tuple[float, float]]]
    discounts: list[tuple[float, ...]]
    fallback: list[int]


def estimate(sentences: Iterable[Sequence[str]], order: int) -> Estimate:
    """Estimate a model of `order` >= 1 from sentences as lists of words.

    Raises UserError without any word, and for the words <s>, </s> and <unk>.
    """
    if order < 1:
        raise UserError(f"--order {order}: an n-gram has at least one word")
    counts = adjusted_counts(occurrences(sentences, order))
    found = [discounts(table) for table in counts]
    fallback = [n for n, d in enumerate(found, start=1) if d is None]
    chosen = [d or FALLBACK for d in found]
    vocabulary = {words[0] for words in counts[0]} | {UNKNOWN}
    lower: dict[Ngram, float] = {(): 1.0 / len(vocabulary)}
    probabilities, backoffs = [], []
    for table, discount in zip(counts, chosen, strict=True):
        backoff, lower = interpolate(table, discount, lower)
        probabilities.append(lower)
        backoffs.append(backoff)
    probabilities[0] |= {(UNKNOWN,): backoffs[0][()] / len(vocabulary), (START,): 0.0}
    backoffs.append({})
    orders = [
        {words: (p, backoffs[n].get(words, 1.0)) for words, p in q.items()}
        for n, q in enumerate(probabilities, start=1)
    ]
    return Estimate(orders, chosen, fallback)


def occurrences(sentences: Iterable[Sequence[str]], order: int) -> list[collections.Counter]:
    """Occurrences of each n-gram of <s> words </s>, per order; the 1-gram <s> is not counted."""
    counts: list[collections.Counter] = [collections.Counter() for _ in range(order)]
    some = False
    for words in sentences:
        wrong = RESERVED.intersection(words)
        if wrong:
            raise UserError(f"a text holds {min(wrong)}, a mark of the language model: {words}")
        some = some or bool(words)
        padded = (START, *words, END)
        for n, table in enumerate(counts, start=1):
            table.update(padded[i : i + n] for i in range(n == 1, len(padded) - n + 1))
    if not some:
        raise UserError("there is no word to learn a language model from")
    return counts


def adjusted_counts(counts: Sequence[Mapping[Ngram, int]]) -> list[dict[Ngram, int]]:
    """Below the highest order: the number of different words that precede an n-gram. N-grams that
    start with <s> keep their count."""
    adjusted: list[dict[Ngram, int]] = []
    for lower, higher in itertools.pairwise(counts):
        before = collections.Counter(words[1:] for words in higher)
        adjusted.append({w: n if w[0] == START else before[w] for w, n in lower.items()})
    return [*adjusted, dict(counts[-1])]


def discounts(counts: Mapping[Ngram, int]) -> tuple[float, ...] | None:
    """(D1, D2, D3+), or None if the counts of counts do not determine them."""
    times = collections.Counter(counts.values())
    n = [times[k] for k in range(1, 5)]
    if not all(n):
        return None
    y = n[0] / (n[0] + 2 * n[1])
    found = tuple(k - (k + 1) * y * n[k] / n[k - 1] for k in (1, 2, 3))
    return found if all(0 <= d <= k for k, d in enumerate(found, start=1)) else None


def interpolate(
    counts: Mapping[Ngram, int], discount: tuple[float, ...], lower: Mapping[Ngram, float]
) -> tuple[dict[Ngram, float], dict[Ngram, float]]:
    """({history: g}, {n-gram: p}) of one order, given the probabilities of the order below."""
    totals: collections.Counter = collections.Counter()
    freed: collections.Counter = collections.Counter()
    for words, count in counts.items():
        totals[words[:-1]] += count
        freed[words[:-1]] += discount[min(count, 3) - 1]
    backoff = {history: freed[history] / total for history, total in totals.items()}
    share = {w: n - discount[min(n, 3) - 1] for w, n in counts.items()}
    p = {
        words: share[words] / totals[words[:-1]] + backoff[words[:-1]] * lower[words[1:]]
        for words in counts
    }
    return backoff, p
