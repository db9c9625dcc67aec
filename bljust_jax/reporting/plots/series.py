"""Series over steps and over compute, read from the rows of metrics.jsonl."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

Row = Mapping[str, Any]
Line = tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]  # x and y
Lines = dict[str, Line]
Level = tuple[str, ...]  # the losses of one level


class Span(NamedTuple):
    """`steps` training steps from `start` in the phase `name`; `levels` lists its losses, upper
    level first."""

    name: str
    start: int
    steps: int
    levels: tuple[Level, ...] = ()


class Measure(NamedTuple):
    """Name, factor of logged values and unit of a score."""

    name: str
    scale: float
    unit: str = ""


# Error rates are logged as fractions; BLEU and chrF from 0 to 100 as by sacreBLEU.
MEASURES = {
    "wer": Measure("WER", 100.0, "%"),
    "cer": Measure("CER", 100.0, "%"),
    "mer": Measure("MER", 100.0, "%"),
    "bleu": Measure("BLEU", 1.0),
    "chrf": Measure("chrF", 1.0),
}


def score_name(key: str) -> str:
    """dev/asr/en/wer is "dev asr/en WER"."""
    split, _, rest = key.partition("/")
    part, _, kind = rest.rpartition("/")
    return " ".join(filter(None, [split, part, MEASURES[kind].name]))


def over_steps(rows: Sequence[Row], key: str) -> Line:
    """(steps [N], values [N]) of a metric, float64; NaN separates intervals in which it was not
    logged, such as the turns of alternating training."""
    points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float))]
    if not points:
        return np.zeros(0), np.zeros(0)
    steps, values = np.array(points, np.float64).T
    gaps = np.diff(steps)
    breaks = np.flatnonzero(gaps > 2.5 * np.median(gaps)) + 1 if len(gaps) else np.zeros(0, int)
    return np.insert(steps, breaks, steps[breaks]), np.insert(values, breaks, np.nan)


def matching(rows: Sequence[Row], pattern: str) -> Lines:
    """{first group of `pattern`: series} of all metrics whose full name matches, sorted."""
    keys = {key for row in rows for key in row}
    found = {m[1]: key for key in keys if (m := re.fullmatch(pattern, key))}
    return {name: over_steps(rows, found[name]) for name in sorted(found)}


def over_compute(rows: Sequence[Row], key: str) -> Line:
    """(encoder TFLOP [N], values [N]); compute is interpolated from the steps where it was logged,
    starting with 0 at step 0."""
    rows = [row for row in rows if "final" not in row]
    tflop = "compute/encoder_tflop"
    spent = [(0, 0.0)] + [(row["step"], row[tflop]) for row in rows if tflop in row]
    points = [(row["step"], row[key]) for row in rows if key in row]
    if not points:
        return np.zeros(0), np.zeros(0)
    steps, values = np.array(points, np.float64).T
    return np.interp(steps, *np.array(spent, np.float64).T), values


def last_step(rows: Sequence[Row]) -> int:
    """The last step of `rows`, at least 1."""
    return max((row["step"] for row in rows), default=1) or 1


def late_mean(line: Line) -> float:
    """Mean of the last ceil(N / 3) finite values of a line; NaN without one."""
    values = line[1][np.isfinite(line[1])]
    return float(np.mean(values[-math.ceil(len(values) / 3) :])) if len(values) else math.nan


def bands(phases: Sequence[Span], last: int) -> list[tuple[str, int, int]]:
    """(name, start, end) of the phases up to step `last`; neighbours too narrow for a name are
    merged into "a + b, 12 turns"."""
    cut = [(p.name, p.start, min(p.start + p.steps, last)) for p in phases if p.start < last]
    merged: list[tuple[str, int, int]] = []
    for narrow, group in itertools.groupby(cut, key=lambda band: band[2] - band[1] < last / 12):
        members = list(group)
        if narrow and len(members) > 1:
            names = " + ".join(dict.fromkeys(name for name, _, _ in members))
            label = f"{names}, {len(members)} turns"
            merged.append((label, members[0][1], members[-1][2]))
        else:
            merged += members
    return merged


# Several objectives


def losses(rows: Sequence[Row]) -> list[str]:
    """Names of the losses that were logged, sorted."""
    return list(matching(rows, r"train/(.+)/loss"))


def cosine_keys(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """{pair "a|b": {layer: metric}} of the metrics `moo/cos/<a>|<b>[/<layer>]`, sorted; layer "" is
    all shared parameters.

    Names of objectives and layers may contain slashes: the second objective is the longest logged
    name that matches, or all text after the bar if none does.
    """
    keys = sorted({key for row in rows for key in row})
    known = {*losses(rows), *matching(rows, r"moo/norm/(.+)")}
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        if m := re.fullmatch(r"moo/cos/(.+?)\|(.+)", key):
            first, rest = m.groups()
            heads = [name for name in known if f"{rest}/".startswith(f"{name}/")]
            second = max(heads, key=len, default=rest)
            found.setdefault(f"{first}|{second}", {})[rest[len(second) + 1 :]] = key
    return found


def in_network_order(layers: Iterable[str]) -> list[str]:
    """Parts without a number ("encoder/frontend") first, then "encoder/blocks/0", 1, ... 10."""

    def place(layer: str) -> tuple:
        parts = re.split(r"(\d+)", layer)
        return len(parts) > 1, [int(p) if n % 2 else p for n, p in enumerate(parts)]

    return sorted(layers, key=place)


def distinct_levels(phases: Sequence[Span]) -> list[tuple[str, Level]]:
    """("level 0" for the top one, its losses) of every level of some phase, in order."""
    pairs = [(f"level {n}", level) for p in phases for n, level in enumerate(p.levels)]
    return list(dict.fromkeys(pairs))


def in_level(rows: Sequence[Row], phases: Sequence[Span], level: Level) -> list[Row]:
    """The rows whose log window, the usual number of steps before the row, overlaps a phase with
    this level."""
    if not rows:
        return []
    gap = usual_gap([row["step"] for row in rows])
    spans = [(p.start, p.start + p.steps) for p in phases if level in p.levels]
    return [
        row
        for row in rows
        if any(start < row["step"] and row["step"] - gap < end for start, end in spans)
    ]


def usual_gap(steps: Sequence[int]) -> float:
    """Median number of steps between log lines; the step itself if there is one line."""
    return float(np.median(np.diff(steps))) if len(steps) > 1 else float(steps[0])
