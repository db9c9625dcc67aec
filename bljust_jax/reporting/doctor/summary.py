"""Report of the data doctor as lines of text and as a JSON object."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bljust_jax.common.durations import in_hours
from bljust_jax.data.doctor.checks import CHECKS, Finding
from bljust_jax.data.doctor.proposals import BucketTable, Normalise
from bljust_jax.data.doctor.survey import Item, Survey
from bljust_jax.data.doctor.text_checks import characters_per_second
from bljust_jax.data.summary import speakers

SHOWN = 3  # examples per finding in the text
QUANTILES = {"least": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "most": 1.0}


class Report(NamedTuple):
    """uri: of the training data."""

    uri: str
    survey: Survey
    findings: Sequence[Finding]
    buckets: Sequence[BucketTable]
    normalise: Normalise


def splits(survey: Survey) -> dict[str, list[Item]]:
    """{split: its items} in the order of reading."""
    found: dict[str, list[Item]] = {}
    for item in survey.items:
        found.setdefault(item.split, []).append(item)
    return found


def measures(survey: Survey) -> dict[str, tuple[str, np.ndarray]]:
    """{name: (unit, value per item)} of the histograms."""
    readable, spoken = survey.readable, survey.spoken
    return {
        "duration": ("seconds", np.array([item.audio.seconds for item in readable])),
        "speaking rate": (
            "characters per second",
            np.array([characters_per_second(item) for item in spoken]),
        ),
        "level": ("dBFS, 95th percentile of frames", np.array([i.audio.loud for i in readable])),
        "samples at the peak": (
            "per cent of the samples",
            np.array([100 * item.audio.near_peak for item in readable]),
        ),
    }


def where(item: Item) -> str:
    """Where an item is declared, or the path of its audio."""
    return item.utterance.line or item.utterance.path


def lines(report: Report) -> list[str]:
    """The report as text."""
    made = []
    for split, items in splits(report.survey).items():
        made.append(f"{split}: {', '.join(sizes(items))}")
    for name, (unit, values) in measures(report.survey).items():
        if len(values):
            shown = [f"{label} {v:.4g}" for label, v in quantiles(values).items()]
            made.append(f"{name}, {unit}: {', '.join(shown)}")
    made.append("")
    for finding in report.findings:
        made += _finding(finding)
    number = len(report.findings)
    verdict = f"{number} of {len(CHECKS)} checks have findings" if number else "fit to train on"
    made += [verdict, ""]
    for table in report.buckets:
        shown = ",".join(f"{seconds:g}" for seconds in table.lengths)
        made.append(f"{len(table.lengths)} lengths: {table.padding:.1%} padding, buckets={shown}")
    made.append(normalise(report.normalise))
    if report.survey.assumption:
        made.append(report.survey.assumption)
    return made


def sizes(items: Sequence[Item]) -> list[str]:
    """Utterances, hours, speakers and languages."""
    seconds = sum(item.audio.seconds for item in items)
    languages = sorted({item.utterance.lang for item in items} - {""})
    return [
        f"{len(items)} utterances",
        in_hours(seconds),
        speakers([item.utterance for item in items]),
        *([f"language {' '.join(languages)}"] if languages else []),
    ]


def quantiles(values: np.ndarray) -> dict[str, float]:
    """{label: quantile} of `QUANTILES`."""
    found = np.quantile(values, list(QUANTILES.values()))
    return dict(zip(QUANTILES, found.tolist(), strict=True))


def _finding(finding: Finding) -> list[str]:
    check, found = finding
    made = [f"{check.severity}: {check.name}: {len(found)} with {check.what}"]
    for item, detail in found[:SHOWN]:
        made.append(f"    {where(item)}: {item.utterance.id}: {detail}")
    if len(found) > SHOWN:
        made.append(f"    and {len(found) - SHOWN} more; --json lists all")
    return [*made, f"    cure: {check.cure}", ""]


def normalise(proposal: Normalise) -> str:
    """The line on config.data.text.normalise."""
    if not proposal.steps:
        return "text.normalise: the texts need no step"
    setting = f"--config.data.text.normalise={','.join(proposal.steps)}"
    before, after = proposal.characters
    reasons = ", ".join(proposal.reasons)
    return f"text.normalise: {setting} ({reasons}; {before} characters become {after})"


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON types, with all examples."""
    return {
        "uri": report.uri,
        "fit": not report.findings,
        "splits": {s: _sizes(items) for s, items in splits(report.survey).items()},
        "measures": {
            name: {"unit": unit, **quantiles(values)}
            for name, (unit, values) in measures(report.survey).items()
            if len(values)
        },
        "findings": [_as_json(finding) for finding in report.findings],
        "buckets": [
            {"lengths": list(table.lengths), "padding": table.padding} for table in report.buckets
        ],
        "normalise": list(report.normalise.steps),
        "assumption": report.survey.assumption,
    }


def _sizes(items: Sequence[Item]) -> Mapping[str, Any]:
    seconds = sum(item.audio.seconds for item in items)
    names = {item.utterance.speaker for item in items}
    return {"utterances": len(items), "hours": seconds / 3600, "speakers": len(names)}


def _as_json(finding: Finding) -> dict[str, Any]:
    check, found = finding
    examples = [
        {"id": i.utterance.id, "split": i.split, "where": where(i), "detail": detail}
        for i, detail in found
    ]
    return {
        "kind": check.name,
        "severity": check.severity,
        "what": check.what,
        "cure": check.cure,
        "count": len(found),
        "examples": examples,
    }
