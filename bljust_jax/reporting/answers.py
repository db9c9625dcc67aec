"""The first lines of a report: is the run learning, does its method help, and what to do next."""

import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from bljust_jax.reporting.bootstrap import difference, errors_of
from bljust_jax.reporting.plots import MEASURES
from bljust_jax.reporting.run_files import RunFiles
from bljust_jax.reporting.text import rate

RECENT = 0.25  # last part of the steps, for the trend
BLANK = 0.95  # share of blank frames above which hardly anything is recognised
LEARNED_BY_HEART = 0.2  # error on training data over that on dev below which more steps help little
POOR = 0.9  # error rate above which nothing is learned yet


class Course(NamedTuple):
    """A dev score over the evaluations of a run: [(step, value), ...], of a measure."""

    measure: str
    points: list[tuple[int, float]]

    @property
    def best(self) -> tuple[int, float]:
        """(step, value): the first of the best."""
        return min(self.points, key=lambda point: (self.error(point[1]), point[0]))

    @property
    def is_error(self) -> bool:
        """Whether lower values are better."""
        return self.measure not in ("bleu", "chrf")

    def error(self, value: float) -> float:
        """A number that is lower for a better value."""
        return value if self.is_error else -value

    def describe(self, value: float) -> str:
        return f"{MEASURES[self.measure].name} {rate(self.measure, value)}"


def course(run: RunFiles) -> Course | None:
    """The score that chose the best parameters, per evaluation; None without two evaluations."""
    measures = [m for m in (run.measure, *MEASURES) if run.last(f"dev/{m}") is not None]
    if not measures:
        return None
    key = f"dev/{measures[0]}"
    points = [(row["step"], row[key]) for row in run.rows if key in row]
    return Course(measures[0], points) if len(points) > 1 else None


def is_learning(run: RunFiles) -> str:
    """Change of dev score and losses, the best step, and the trend over the last quarter."""
    found = course(run)
    if found is None:
        return "Dev was scored less than twice, so there is no trend: lower config.eval_every."
    (first, before), (last, now), (step, best) = found.points[0], found.points[-1], found.best
    parts = [
        f"On dev, {found.describe(before)} at step {first} became {rate(found.measure, now)} at"
        f" step {last}; the best, {rate(found.measure, best)}, is of step {step}."
    ]
    start = last - RECENT * (last - first)
    earlier = [value for at, value in found.points if at <= start]
    if earlier:
        gained = found.error(earlier[-1]) - found.error(now)
        points = f"{MEASURES[found.measure].scale * abs(gained):.2f} points"
        trend = f"{'better' if gained > 0 else 'worse'} by {points}" if gained else "no change"
        parts.append(f"Over the last quarter: {trend}.")
    if gap := _gap(run, found):
        parts.append(gap)
    blanks = run.last("dev/blank_share")
    if blanks is not None:
        parts.append(f"{blanks:.0%} of the frames of dev are blank.")
    for split, where in LOSSES.items():
        losses = [text for loss in run.losses if (text := _loss(run, split, loss))]
        if losses:
            parts.append(f"{where}: {', '.join(losses)}.")
    return " ".join(parts)


def _heard(run: RunFiles, found: Course) -> float | None:
    """The last score of the sample of training utterances, logged beside that of dev."""
    values = [row.get(f"train_sample/{found.measure}") for row in run.rows]
    return next((value for value in reversed(values) if value is not None), None)


def _gap(run: RunFiles, found: Course) -> str:
    heard = _heard(run, found)
    if heard is None:
        return ""
    (step, now) = found.points[-1]
    gap = MEASURES[found.measure].scale * (found.error(now) - found.error(heard))
    return (
        f"At step {step}, utterances of the training data have {found.describe(heard)}: dev is"
        f" {abs(gap):.2f} points {'worse' if gap > 0 else 'better'}."
    )


LOSSES = {
    "train": "Training losses, first and last log window",
    "dev": "On dev, first and last",
    "train_sample": "On these utterances of the training data",
}


def _loss(run: RunFiles, split: str, loss: str) -> str:
    key = f"{split}/{loss}/loss"
    values = [row[key] for row in run.rows if key in row]
    return f"{loss} {values[0]:.3g} to {values[-1]:.3g}" if len(values) > 1 else ""


def what_next(run: RunFiles) -> str:
    """Advice from the course of the dev score; "" where there is none."""
    found = course(run)
    if found is None:
        return ""
    (last, now), (step, best) = found.points[-1], found.best
    blanks = run.last("dev/blank_share") or 0.0
    if not run.final:
        return "The run is not finished."
    if found.is_error and best >= POOR and blanks > BLANK:
        return (
            "Nearly all frames are blank: see docs/troubleshooting.md, and reach an error of 0 with"
            " the variant `overfit` of this config first."
        )
    if found.is_error and best == 0:
        return "Dev has no errors left: it cannot tell better parameters from these."
    heard = _heard(run, found)
    if found.is_error and heard is not None and heard < LEARNED_BY_HEART * now:
        return (
            f"The training data are learned by heart ({rate(found.measure, heard)} on a sample of"
            f" them) and dev is not: augment more (config.data.speed, config.specaugment), add"
            " labelled or unlabelled audio, or end earlier (config.stop.patience)."
        )
    if step >= last - RECENT * (last - found.points[0][0]):
        return (
            f"The best score is of step {step} of {last}: it may fall further, so train longer"
            " (config.phases), or add audio."
        )
    if found.error(now) > found.error(best):
        return (
            f"Dev has not improved since step {step} of {last}: end earlier"
            " (config.stop.patience), augment more (config.data.speed, config.specaugment), or"
            " add labelled or unlabelled audio."
        )
    return "Try a language model (`bljust ngram`, `bljust evaluate --lm`), or more audio."


def answers(run: RunFiles) -> list[str]:
    """Lines of Markdown for one run."""
    method = run.config["method"]
    other = "ptft" if method not in ("ptft", "supervised") else "bljust"
    compare = (
        f"One run cannot tell. Train method `{other}`, which takes equal FLOPs, and others with"
        " more seeds, and give all of them to `bljust compare`."
    )
    lines = [
        f"- **Is it learning?** {is_learning(run)}",
        f"- **Does method `{method}` help?** {compare}",
    ]
    advice = what_next(run)
    return [*lines, f"- **What next?** {advice}"] if advice else lines


def differences(names: Sequence[str], runs: Sequence[RunFiles]) -> list[str]:
    """Lines of Markdown: each run against the first on the utterances of dev, by paired bootstrap.
    Only runs of one task have such lines."""

    @functools.cache
    def own_errors(run: pathlib.Path, unit: str) -> dict[str, tuple[int, int]]:
        return errors_of(run / "samples" / "dev-best.jsonl", unit)

    lines = []
    for name, run in zip(names[1:], runs[1:], strict=True):
        unit = "characters" if run.measure == "cer" else "words"
        found = difference(own_errors(runs[0].folder, unit), own_errors(run.folder, unit))
        if found is None:
            continue
        points = [100 * x for x in (found.value, found.low, found.high)]
        size = f"{found.units:,} {unit}"
        verdict = "" if found.distinguishable else f"not distinguishable with {size}: "
        lines.append(
            f"- {name} against {names[0]}: {verdict}{'CER' if unit == 'characters' else 'WER'} on"
            f" dev differs by {points[0]:+.2f} points (95 % interval {points[1]:+.2f} to"
            f" {points[2]:+.2f})"
        )
    if not lines:
        return []
    note = "Intervals are over the utterances of dev alone: one seed per run, and dev chose the"
    return [*lines, "", f"{note} parameters. Speakers and seeds add to them."]
