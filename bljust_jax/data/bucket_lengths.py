"""Buckets that follow from durations: equal shares of batches for streams of unlike length.

Streams that are read together take their batches of one bucket index in the same step, so that a
run has one program per index. A stream is read at one pace, each utterance equally often, only if
its buckets have the same shares of its batches as those of the stream that leads.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bljust_jax.data.batch_plan import Plan
from bljust_jax.data.buckets import Bucket, batch_rows, bucket_table
from bljust_jax.data.streams import UNLABELLED

TOLERANCE = 0.02  # relative error of a bucket's share up to which configured lengths are kept
GRID = 100  # lengths that follow are in hundredths of a second
BISECTIONS = 60
LONGEST = 40.0  # seconds, of buckets=auto without data.max_seconds
SLACK = 1e-6  # seconds: products of rows and lengths are rounded


AUTO = ("auto",)


def resolve_auto(config: Any) -> None:
    """Replace data.buckets=auto, in place: lengths up to data.max_seconds, chosen from durations;
    their number is data.num_buckets, or that of least cost if it is 0. Does nothing for lengths."""
    data = config.get("data", {})
    if data and tuple(data.buckets) == AUTO:
        data.buckets = (float(data.max_seconds) or LONGEST,)
        data.num_buckets = data.num_buckets or -1


def settle(
    plans: Mapping[str, Plan],
    leader: str,
    batch_seconds: Mapping[str, float],
    multiple: int,
    data: Any,
    hours: float,
) -> list[str]:
    """Give the plans their buckets by `config.data`: those of `leader` as configured or, with
    `data.num_buckets`, chosen from durations for a run that reads `hours`; those of the others
    coupled to it. Returns log lines."""
    lines, density = [], data.labels_per_second
    if data.num_buckets:
        lengths, line = choose(
            plans[leader], data.num_buckets, hours, float(data.program_hours), density
        )
        table = bucket_table(lengths, batch_seconds[leader], density, multiple)
        plans[leader].replace_buckets(table)
        lines.append(f"{leader}: {line}")
    alone = UNLABELLED if len(data.unlabelled_buckets) == 1 else ""
    return lines + couple(plans, leader, batch_seconds, density, multiple, alone)


def couple(
    plans: Mapping[str, Plan],
    leader: str,
    batch_seconds: Mapping[str, float],
    labels_per_second: float,
    multiple: int,
    alone: str = "",
) -> list[str]:
    """Give every plan the shares of batches per bucket of the plan `leader`, by buckets that
    `follow` from its own durations; returns log lines.

    The plan `alone` is left as it is, and so are those whose shares are met to within `TOLERANCE`.
    batch_seconds: padded audio per batch of each stream; multiple: of its rows.
    """
    lines, counts = [], np.array(plans[leader].counts)
    shares = counts / counts.sum()
    for name, plan in plans.items():
        if name in (leader, alone) or len(plan.buckets) == len(counts) == 1:
            continue
        needs = np.minimum(plan.needs(labels_per_second), plan.buckets[-1].seconds)
        if _meets(needs, shares, plan.buckets):
            continue
        last = min(plan.buckets[-1].seconds, _round_up(plan.longest_need(labels_per_second)))
        found = follow(needs, shares, batch_seconds[name], multiple, float(last))
        table = [Bucket(s, rows, math.ceil(s * labels_per_second - 1e-9)) for s, rows in found]
        plan.replace_buckets(table)
        lines.append(
            f"{name}: lengths of batches follow from its durations and from the shares of"
            f" {leader}'s batches, so that a pass reads each utterance once"
        )
    return lines


def _meets(needs: np.ndarray, shares: np.ndarray, buckets: Sequence[Bucket]) -> bool:
    """Whether batches of these buckets have the shares, to within `TOLERANCE`."""
    if len(buckets) != len(shares):
        return False
    lengths = np.array([bucket.seconds for bucket in buckets])
    counts = np.bincount(lengths.searchsorted(needs - 1e-6), minlength=len(lengths))
    batches = counts / [bucket.batch_size for bucket in buckets]
    return bool(np.all(np.abs(batches / batches.sum() - shares) <= TOLERANCE * shares))


def choose(
    plan: Plan, number: int, hours: float, program_hours: float, labels_per_second: float
) -> tuple[list[float], str]:
    """(lengths, log line): the `number` lengths with the least padded audio in an epoch of a plan,
    up to its longest item or last bucket; for `number` -1 the number K whose total cost

        C(K) = hours * padded(K) / audio + K * program_hours

    is least, where a run reads `hours` of audio, an epoch of `audio` hours is padded to padded(K)
    by the best K lengths, and compiling a program takes as long as `program_hours` of padded audio.
    """
    last = min(plan.buckets[-1].seconds, float(_round_up(plan.longest_need(labels_per_second))))
    needs = np.minimum(plan.needs(labels_per_second), last)
    audio, costs = float(needs.sum()), []
    for lengths, padded in _least_padding(needs, last):
        costs.append(hours * padded / audio + len(lengths) * program_hours)
        if number < 0 and len(costs) > 1 and costs[-1] >= costs[-2]:
            break  # padded(K) is convex, so that the cost keeps rising
        found = lengths
        if len(costs) == number:
            break
    listed = ", ".join(f"{k} {cost:.4g}" for k, cost in enumerate(costs, 1))
    return found, (
        f"number of lengths of batches, chosen from durations: {len(found)}; cost by number, padded"
        f" hours of the run and {program_hours:g} per program: {listed}"
    )


def least_padding(seconds: np.ndarray, most: int) -> list[tuple[tuple[float, ...], float]]:
    """(lengths, share of padding) for 1, 2, ..., `most` lengths of batches, fewer if items have
    fewer lengths: those with the least padding of items of `seconds` [N], the last as long as the
    longest item. The share is of the padded audio, in batches that are full."""
    last, audio = float(_round_up(seconds.max())), float(seconds.sum())
    found = itertools.islice(_least_padding(seconds, last), most)
    return [(tuple(lengths), 1 - audio / padded) for lengths, padded in found]


def _least_padding(needs: np.ndarray, last: float) -> Iterator[tuple[list[float], float]]:
    """([length], padded seconds), ([length, length], padded seconds), ...: the lengths with the
    least padding of all items, the last one `last`, by dynamic programming over the items' lengths;
    ends where each length has its own bucket."""
    lengths, counts = np.unique(_round_up(needs), return_counts=True)
    lengths[-1] = last
    below = np.append(0, np.cumsum(counts))
    least = below * np.append(0.0, lengths)  # padded seconds of the items up to each length
    starts = [np.zeros(len(below), int)]  # where the last bucket of these items begins
    while True:
        found, j = [], len(lengths)
        for before in reversed(starts):
            found.append(float(lengths[j - 1]))
            j = int(before[j])
            if not j:
                break
        yield found[::-1], float(least[-1])
        if len(starts) == len(lengths):
            return
        shorter, least, before = least, least.copy(), np.zeros(len(below), int)
        for j in range(1, len(below)):
            padded = shorter[:j] + (below[j] - below[:j]) * lengths[j - 1]
            before[j] = int(np.argmin(padded))
            least[j] = padded[before[j]]
        starts.append(before)


def hours_of_run(phases: Any, batch_seconds: float, labelled: float, unlabelled: float) -> float:
    """Hours of audio that a run reads, by `config.phases`: steps times `batch_seconds`, or epochs
    times the hours of a stream; the phases `explore` and `pretrain` read the unlabelled one."""
    alone = sum(float(phases.get(name, 0.0)) for name in ("explore", "pretrain"))
    others = sum(float(phases.get(name, 0.0)) for name in ("joint", "finetune"))
    if phases.unit == "step":
        return (alone + others) * batch_seconds / 3600
    return alone * unlabelled + others * labelled


def _round_up(seconds: Any) -> Any:
    """Seconds rounded up to hundredths."""
    return np.ceil(np.asarray(seconds) * GRID - 1e-4) / GRID


def follow(
    needs: np.ndarray, shares: np.ndarray, batch_seconds: float, multiple: int, last: float
) -> list[tuple[float, int]]:
    """(seconds, rows) of the buckets of a stream whose batches have the shares `shares` [K], sum 1.

    needs: seconds of each item [N], at most `last`, the length of the last bucket.
    Bucket k takes the next longer items, n_k of them, with

        n_k = N * shares_k rows_k / sum_j shares_j rows_j,   rows_k * length_k <= batch_seconds,

    and its length is that of the longest. Each item is then read shares_k rows_k / n_k times per
    step, whatever its bucket. rows_k, multiples of `multiple`, start from the solution in real
    numbers, rows_k = batch_seconds / length_k, and no one can be larger. Items of one length stay
    together. A bucket without a share has no items.
    """
    lengths, counts = np.unique(_round_up(needs), return_counts=True)
    below = np.append(0, np.cumsum(counts))  # number of items shorter than each length, and all
    used = np.flatnonzero(shares)

    def bounds(ends: np.ndarray) -> np.ndarray:
        """Lengths of the used buckets that end before these positions in `lengths`."""
        return np.append(lengths[np.maximum(ends, 1) - 1], last)

    def excess(rows: np.ndarray) -> np.ndarray:
        """Seconds of the batches beyond `batch_seconds`, -inf for the fewest rows."""
        seconds = rows * bounds(_ends(below, shares[used] * rows))
        return np.where(rows > multiple, seconds - batch_seconds, -np.inf)

    ends = _real_ends(lengths, below, shares[used], batch_seconds, last)
    rows = batch_rows(bounds(ends), batch_seconds, multiple)
    while np.max(over := excess(rows)) > SLACK:
        rows[np.argmax(over)] -= multiple
    more = multiple * np.eye(len(rows), dtype=rows.dtype)
    while fitting := [k for k in range(len(rows)) if np.max(excess(rows + more[k])) <= SLACK]:
        rows += more[fitting[0]]
    found = bounds(_ends(below, shares[used] * rows))
    table = dict(zip(used.tolist(), zip(found.tolist(), rows.tolist(), strict=True), strict=True))
    shortest = max(1 / GRID, float(lengths[0]) - 1 / GRID)
    made = [(shortest, int(batch_rows(shortest, batch_seconds, multiple)))]
    for k in range(len(shares)):
        made.append(table.get(k, made[-1]))
    return made[1:]


def _ends(below: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Ends of the buckets but the last, positions in `below`, for numbers of items in proportion to
    `parts`: the nearest ones, at least 1."""
    items = np.cumsum(parts[:-1]) / np.sum(parts) * below[-1]
    after = np.searchsorted(below, items).clip(1, len(below) - 1)
    before = after - 1
    nearest = np.where(items - below[before] < below[after] - items, before, after)
    return np.maximum(nearest, 1)


def _real_ends(
    lengths: np.ndarray, below: np.ndarray, shares: np.ndarray, batch_seconds: float, last: float
) -> np.ndarray:
    """Ends of the buckets but the last, positions in `lengths`, for rows in real numbers: bucket k
    has n_k length_k / batch_seconds = P shares_k batches, P the batches of a pass, by bisection:
    the more batches, the more items before the last bucket."""

    def ends(batches: float) -> np.ndarray:
        made, start = [], 0
        for share in shares[:-1]:
            seconds = (below[start + 1 :] - below[start]) * lengths[start:]
            wanted = batches * share * batch_seconds
            start = min(start + 1 + int(np.searchsorted(seconds, wanted)), len(lengths))
            made.append(start)
        return np.array(made, int)

    low, high = 0.0, below[-1] * last / batch_seconds
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        rest = below[-1] - below[ends(middle)[-1] if len(shares) > 1 else 0]
        if rest * last > middle * shares[-1] * batch_seconds:
            low = middle
        else:
            high = middle
    return ends(high)
