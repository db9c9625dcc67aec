"""Results of a comparison: paired differences, one table, and a sentence per answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bljust_jax.common.errors import UserError
from bljust_jax.comparison.grid import Grid, Run
from bljust_jax.reporting import bootstrap
from bljust_jax.reporting.bootstrap import Interval
from bljust_jax.reporting.text import table

TOLERANCE = 0.02  # of the compute of a run, against its budget
Row = Mapping[str, Any]
WORDS, CHARACTERS = (1, 2), (3, 4)  # (units, errors) in the entries of a row's utterances


class Setting(NamedTuple):
    """A labelled amount and a budget: runs of one setting are compared."""

    amount: Any
    tflop: float


class Summary(NamedTuple):
    """The runs of a method in a setting.

    wers: {(draw, seed): WER}; differences: {reference: `Interval` of the WER minus its}, for runs
    that both have
    """

    method: str
    rows: tuple[Row, ...]
    wers: dict[tuple[int, int], float]
    differences: dict[str, Interval]

    def mean(self, key: str) -> float:
        return float(np.mean([row[key] for row in self.rows]))

    @property
    def spread(self) -> float | None:
        """Standard deviation of the WER over runs; None for one run."""
        values = list(self.wers.values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def summarise(
    grid: Grid, runs: Sequence[Run], rows: Mapping[str, Row]
) -> dict[Setting, list[Summary]]:
    """{setting: summaries in the order of the methods} of the runs that have a row.

    UserError for a run whose compute is not that of its budget to `TOLERANCE`, and for rows that
    were scored on other utterances.
    """
    found: dict[Setting, dict[str, dict[tuple[int, int], Row]]] = {}
    for run in runs:
        row = rows.get(run.name)
        if row is None:
            continue
        check_compute(row)
        setting = Setting(run.amount, run.tflop)
        found.setdefault(setting, {}).setdefault(run.method, {})[run.draw, run.seed] = row
    check_utterances([row for own in found.values() for m in own.values() for row in m.values()])
    return {
        setting: [
            _summary(method, own, grid.references) for method in grid.methods if method in own
        ]
        for setting, own in found.items()
    }


def _summary(
    method: str, own: Mapping[str, Mapping[tuple[int, int], Row]], references: Sequence[str]
) -> Summary:
    rows = own[method]
    others = {name: own[name] for name in references if name in own and name != method}
    compared = {name: difference(other, rows) for name, other in others.items()}
    kept = {name: interval for name, interval in compared.items() if interval is not None}
    return Summary(method, tuple(rows.values()), {k: r["wer"] for k, r in rows.items()}, kept)


def check_compute(row: Row) -> None:
    """UserError for a run whose FLOPs are not its budget's, to `TOLERANCE`."""
    off = row["tflop"] / row["budget"] - 1
    if abs(off) > TOLERANCE:
        raise UserError(
            f"{row['name']} used {row['tflop']:.4g} TFLOP, {off:+.1%} of its budget of"
            f" {row['budget']:g}: beyond {TOLERANCE:.0%} runs are not compared; look for phases of"
            " few steps, or a recipe that does not count a pass"
        )


def check_utterances(rows: Sequence[Row]) -> None:
    """UserError unless all rows were scored on the same utterances with the same references."""
    for row in rows[1:]:
        if _references(row) != _references(rows[0]):
            raise UserError(
                f"{row['name']} and {rows[0]['name']} were scored on other utterances: their"
                " errors cannot be paired; restore the data, and delete the rows of other data"
            )


def _references(row: Row) -> dict[str, tuple]:
    return {name: (e[0], e[1], e[3]) for name, e in row["utterances"].items()}


def counts(row: Row, speakers: Sequence[str], which: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """([S] units of the references, [S] errors) by speaker."""
    index = {speaker: n for n, speaker in enumerate(speakers)}
    made = np.zeros((2, len(speakers)))
    for entry in row["utterances"].values():
        made[:, index[entry[0]]] += entry[which[0]], entry[which[1]]
    return made[0], made[1]


def difference(
    first: Mapping[tuple[int, int], Row],
    second: Mapping[tuple[int, int], Row],
    which: tuple[int, int] = WORDS,
) -> Interval | None:
    """Error rate of the second method minus that of the first, over their common (draw, seed); None
    without any. Runs of several seeds per draw are averaged: draws are then what is resampled."""
    common = sorted(first.keys() & second.keys())
    if not common:
        return None
    speakers = sorted({entry[0] for entry in first[common[0]]["utterances"].values()})
    units = counts(first[common[0]], speakers, which)[0]
    more = [
        counts(second[key], speakers, which)[1] - counts(first[key], speakers, which)[1]
        for key in common
    ]
    draws = sorted({draw for draw, _ in common})
    if len(draws) > 1:
        pairs = list(zip(more, common, strict=True))
        more = [np.mean([d for d, (draw, _) in pairs if draw == n], axis=0) for n in draws]
    return bootstrap.paired_interval(np.array(more), units)


def lines(grid: Grid, found: Mapping[Setting, Sequence[Summary]], total: int) -> list[str]:
    """The Markdown page: answers, then one table per setting; total: number of runs of the grid."""
    done = sum(len(summary.rows) for own in found.values() for summary in own)
    made = [f"# Comparison {grid.name}", ""]
    made += [f"{done} of {total} runs." + (" Unfinished." if done < total else ""), ""]
    for setting, summaries in found.items():
        made += [f"## {title(grid, setting)}", "", *answers(grid, summaries), ""]
        made += [*_table(grid, summaries), "", compute_line(setting, summaries), ""]
    return made


def title(grid: Grid, setting: Setting) -> str:
    """data.labelled_speakers 2, 4 TFLOP per run."""
    return f"{grid.amount.removeprefix('data.')} {setting.amount}, {setting.tflop:g} TFLOP per run"


def answers(grid: Grid, summaries: Sequence[Summary]) -> list[str]:
    """One line per method and reference: better, worse, or no answer yet."""
    made = []
    for reference in grid.references:
        for summary in summaries:
            interval = summary.differences.get(reference)
            if interval is not None:
                made.append(f"- {answer(summary.method, reference, interval)}")
    return made


def answer(method: str, reference: str, interval: Interval) -> str:
    """bljust against ptft: -3.1 points [-5.0, -1.2], better."""
    if not np.isfinite(interval.high):
        verdict = "one run and one speaker give no interval"
        return f"{method} against {reference}: {100 * interval.value:+.1f} points, {verdict}"
    verdict = "no answer yet"
    if interval.distinguishable:
        verdict = "better" if interval.value < 0 else "worse"
    return f"{method} against {reference}: {points(interval)}, {verdict}"


def points(interval: Interval) -> str:
    """-3.1 points [-5.0, -1.2]."""
    ends = f"{100 * interval.low:+.1f}, {100 * interval.high:+.1f}"
    return f"{100 * interval.value:+.1f} points [{ends}]"


def _table(grid: Grid, summaries: Sequence[Summary]) -> list[str]:
    losses = sorted({loss for s in summaries for row in s.rows for loss in row["updates"]})
    head = ["method", "runs", "WER %", "sd", "CER %"]
    head += [f"WER minus {name}, points [95 %]" for name in grid.references]
    head += ["TFLOP", "audio h", *(f"{loss} updates" for loss in losses), "min"]
    body = []
    for s in sorted(summaries, key=lambda s: s.mean("wer")):
        spread = "" if s.spread is None else f"{100 * s.spread:.1f}"
        apart = [_cell(s.differences.get(name)) for name in grid.references]
        updates = [f"{np.mean([r['updates'].get(x, 0) for r in s.rows]):.0f}" for x in losses]
        figures = [f"{s.mean('tflop'):.3f}", f"{s.mean('audio_hours'):.2f}", *updates]
        rates = [f"{100 * s.mean('wer'):.1f}", spread, f"{100 * s.mean('cer'):.1f}"]
        body.append(
            [s.method, len(s.rows), *rates, *apart, *figures, f"{s.mean('wall_s') / 60:.1f}"]
        )
    return table(head, body)


def _cell(interval: Interval | None) -> str:
    if interval is None:
        return ""
    if not np.isfinite(interval.high):
        return f"{100 * interval.value:+.1f}"
    return points(interval).replace(" points", "")


def as_json(found: Mapping[Setting, Sequence[Summary]]) -> list[dict[str, Any]]:
    """One object per setting and method, with WERs per run and differences per reference."""
    return [
        {
            **{"amount": setting.amount, "tflop": setting.tflop, "method": s.method},
            "wer": s.mean("wer"),
            "cer": s.mean("cer"),
            "wers": {f"draw{draw}-seed{seed}": wer for (draw, seed), wer in s.wers.items()},
            "differences": {name: i._asdict() for name, i in s.differences.items()},
        }
        for setting, own in found.items()
        for s in own
    ]


def compute_line(setting: Setting, summaries: Sequence[Summary]) -> str:
    """The largest distance of a run from the budget."""
    off = max(abs(row["tflop"] / setting.tflop - 1) for s in summaries for row in s.rows)
    return (
        f"Compute: {setting.tflop:g} TFLOP per run (encoder, heads and passes for labels, forward"
        f" 1, backward 2), to {off:.2%}; beyond {TOLERANCE:.0%} a run is refused. sd: standard"
        " deviation over runs. Intervals: 95 %, paired, over runs (draws of labels) and speakers."
    )
