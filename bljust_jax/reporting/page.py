"""report.md of one run: scores, costs, phases, pictures, course and worst utterances."""

import pathlib
import re
from collections.abc import Callable, Iterable

import numpy as np

from bljust_jax.common.errors import UserError, one_line
from bljust_jax.common.files import read_arrays, write_text
from bljust_jax.reporting import plots
from bljust_jax.reporting.answers import answers
from bljust_jax.reporting.run_files import (
    MEASURES,
    RAW,
    RunFiles,
    costs,
    input_wait,
    read_run_files,
)
from bljust_jax.reporting.text import narrow_table, number, rate, table
from bljust_jax.reporting.utterances import worst

WORST = 12  # utterances shown per split
POINTS = 12  # rows of the course table
PAIRS = 3  # maximum number of cosines in the course table; pictures show more
COURSE = ("train/.+/loss", r"penalty/\d+", "moo/weight/.+")


def write(workdir: pathlib.Path) -> pathlib.Path:
    """Write `workdir/report.md` and `workdir/plots/*.png`; returns the path of report.md.

    Reads config.json and metrics.jsonl, and if present run.json (phases, command, versions),
    samples/*-best.jsonl and example.npz. Raises UserError if `workdir` is not a run.
    """
    run = read_run_files(workdir)
    lines = [*summary(run), ""]
    for heading, section in SECTIONS.items():
        body = section(run)
        if body:
            lines += [f"## {heading}", "", *body, ""]
    path = workdir / "report.md"
    write_text(path, "\n".join(lines))
    return path


def summary(run: RunFiles) -> list[str]:
    """Name, scores and costs of the run."""
    config = run.config
    title = f"# {run.name}: {config['recipe']}, method {config['method']}, seed {config['seed']}"
    state = [] if run.final else ["", f"**{run.state}**; the scores are the last ones logged."]
    scores = _scores(run)
    first = [*state, "", *answers(run), *([""] if scores else []), *scores]
    return [title, *first, "", *_cost(run)]


def _scores(run: RunFiles) -> list[str]:
    names = dict.fromkeys(key.rpartition("/")[0] for key in run.scores)
    measures = [m for m in MEASURES if any(key.endswith(f"/{m}") for key in run.scores)]
    counts = [c for c in COUNTS if any(f"{name}/{c}" in run.final for name in names)]
    head = ("split", *(MEASURES[m].name for m in measures), *(COUNTS[c] for c in counts))
    rows = []
    for name in names:
        rates = [rate(m, run.scores.get(f"{name}/{m}")) for m in measures]
        label = f"{name}, mean of tasks" if run.tasks and "/" not in name else name
        rows.append((label, *rates, *(number(run.final.get(f"{name}/{c}", "")) for c in counts)))
    raw = run.raw_scores
    for name in (n for n in names if any(f"{n}/{m}" in raw for m in measures)):
        rates = [rate(m, raw.get(f"{name}/{m}")) for m in measures]
        own = (number(run.final.get(f"{RAW}{name}/{c}", "")) for c in counts)
        rows.append((f"{name}, raw", *rates, *own))
    if not rows:
        return []
    return table(head, rows) + (["", *RAW_NOTE] if raw else [])


RAW_NOTE = (
    "Raw: the parameters of the last step. The other rows are of averaged parameters (EMA), from",
    "the step with the best dev score.",
)


COUNTS = {
    "substitutions": "sub",
    "deletions": "del",
    "insertions": "ins",
    "words": "words",
    "empty": "empty",
    "utterances": "utterances",
    "without_reference": "without text",
    "blank_share": "blank frames",
}


def _cost(run: RunFiles) -> list[str]:
    rows = [(label, value) for label, value in run.facts.get("sizes", {}).items()]
    rows.append(("steps", number(run.step)))
    if run.final:
        rows.append(("best step (by dev)", number(run.final["best_step"])))
    rows += [(label, number(value)) for label, value in costs(run).items()]
    wait = input_wait(run.rows)
    rows += [("waiting for batches", f"{wait:.1%} of the time")] if wait is not None else []
    if run.last("data/quarantined"):
        rows.append(("utterances in quarantine", number(run.last("data/quarantined"))))
    if run.final:
        rows.append(("digest of the parameters", run.final["params_digest"]))
        goodput = run.final.get("perf/goodput")
        rows += [("share of the time in steps", f"{goodput:.0%}")] if goodput is not None else []
    return [*table(("measure", "value"), rows), "", *NOTE]


NOTE = (
    "Compute counts encoder FLOPs (forward 1, backward 2) over padded audio; audio hours are",
    "padded as well; training hours exclude evaluation and saving.",
)


def _phases(run: RunFiles) -> list[str]:
    """A row per phase name, in the order of first appearance."""
    merged: dict[str, list] = {}
    for phase in run.facts.get("phases", []):
        entry = merged.setdefault(phase["name"], [0, 0, phase["levels"]])
        entry[0] += 1
        entry[1] += phase["steps"]
    compute = {row["name"]: row for row in run.facts.get("phase_table", [])}
    head = ["phase", "stretches", "steps", "levels (upper > lower)"]
    rows = [[name, n, steps, levels] for name, (n, steps, levels) in merged.items()]
    if compute:
        head += ["share of FLOPs", "of each loss", "weights of lower levels: start, end, most"]
        rows = [[*row, *_compute(compute.values(), compute[row[0]])] for row in rows]
    return table(head, rows) if rows else []


def _compute(phases: Iterable[dict], phase: dict) -> tuple[str, str, str]:
    """A phase's share of the run's FLOPs, that of each loss, and its level weights."""
    whole = sum(sum(p["tflop"].values()) for p in phases)
    parts = [f"{loss} {tflop / whole:.1%}" for loss, tflop in phase["tflop"].items()]
    lower = list(phase["weights"].items())[1:]
    weights = [f"{n} {w['start']:.3g}, {w['end']:.3g}, {w['most']:.3g}" for n, w in lower]
    return f"{phase['share']:.1%}", "; ".join(parts), "; ".join(weights)


def _pictures(run: RunFiles) -> list[str]:
    spans = [
        plots.Span(p["name"], p["start"], p["steps"], losses_of(p["levels"]))
        for p in run.facts.get("phases", [])
    ]
    path = run.folder / "example.npz"
    example = read_example(path) if path.is_file() else None
    lines = []
    for picture in plots.draw(run.folder / "plots", run.rows, spans, example):
        lines += [f"![{picture.file}](plots/{picture.file})", "", picture.caption, ""]
    if example is not None:
        lines += table(
            ("utterance", str(example["id"])),
            [(key, str(example[key])) for key in ("reference", "hypothesis")],
        )
    return lines


def read_example(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an example.npz; UserError for a damaged file or one with pickled objects."""
    try:
        return read_arrays(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); run the training again") from error


def losses_of(levels: str) -> tuple[tuple[str, ...], ...]:
    """The losses per level of a phase, parsed from "a+b > c" of run.json."""
    return tuple(tuple(level.split("+")) for level in levels.split(" > "))


def _course(run: RunFiles) -> list[str]:
    """The last value of every measure in `POINTS` equal intervals of steps; intervals without one
    are omitted. Cosines are those over all shared parameters, if at most `PAIRS`."""
    keys = sorted({key for row in run.rows for key in row})
    cosines = [layers[""] for layers in plots.cosine_keys(run.rows).values() if "" in layers]
    shown = [key for pattern in COURSE for key in keys if re.fullmatch(pattern, key)]
    shown += cosines if len(cosines) <= PAIRS else []
    shown += [f"dev/{m}" for m in MEASURES if f"dev/{m}" in keys]
    marks = sorted({round(run.step * (n + 1) / POINTS) for n in range(POINTS)})
    rows = []
    for start, end in zip([-1, *marks], marks, strict=False):
        logged = {k: v for r in run.rows if start < r["step"] <= end for k, v in r.items()}
        values = [number(logged.get(key, "")) for key in shown]
        if any(values):
            rows.append((end, *values))
    return narrow_table(("step", *shown), rows) if shown else []


def _worst(run: RunFiles) -> list[str]:
    """The utterances with the most errors, each hypothesis under its reference: word errors, or
    character errors for a task measured by CER."""
    parts = {
        f"{split}-{task.replace('/', '_')}": (f"{split}/{task}", settings["measure"])
        for task, settings in run.tasks.items()
        for split in ("dev", "test", "train_sample")
    }
    most = max(WORST // max(len(run.tasks), 1), 3)
    lines = []
    for path in sorted((run.folder / "samples").glob("*-best.jsonl")):
        stem = path.name.removesuffix("-best.jsonl")
        split, measure = parts.get(stem, (stem, run.measure))
        unit = "characters" if measure == "cer" else "words"
        rows = []
        for errors, pair in worst(path, most, unit):
            rows.append((errors, pair["id"], "reference", pair["reference"]))
            rows.append(("", "", "hypothesis", pair["hypothesis"]))
        if rows:
            heading = f"{unit.removesuffix('s')} errors"
            lines += [*table((heading, f"utterance of {split}", "", "text"), rows), ""]
    note = [*TRANSLATED, ""] if lines and any(m == "bleu" for _, m in parts.values()) else []
    return [*note, *lines[:-1]]


TRANSLATED = (
    "A correct translation may differ from its reference: the number of different words only",
    "selects the utterances shown here.",
)


def _origin(run: RunFiles) -> list[str]:
    facts = run.facts
    rows = [(name, facts[name]) for name in ("command", "git", "devices") if facts.get(name)]
    for task, signatures in facts.get("signatures", {}).items():
        rows += [
            (f"{task} {MEASURES[m].name}", text.replace("|", " ")) for m, text in signatures.items()
        ]
    rows += sorted(facts.get("versions", {}).items())
    return table(("what", "value"), rows) if rows else []


SECTIONS: dict[str, Callable[[RunFiles], list[str]]] = {
    "Phases": _phases,
    "Pictures": _pictures,
    "Course": _course,
    "Worst utterances": _worst,
    "How it was made": _origin,
}
