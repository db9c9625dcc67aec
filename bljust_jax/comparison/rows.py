"""Rows of results: one JSON object per finished run, appended to results/compare/NAME.jsonl."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bljust_jax.common import files
from bljust_jax.common.errors import UserError
from bljust_jax.comparison import fingerprint
from bljust_jax.comparison.grid import Run
from bljust_jax.reporting import bootstrap, run_files
from bljust_jax.reporting.run_files import RunFiles

DIVERGED = 1.0  # error rates of a trial whose steps were not finite
TIMES = ("wall_s", "train_s")  # fields that differ between two runs of the same config


class Rows(NamedTuple):
    """The file, and its rows by name."""

    path: pathlib.Path
    by_name: dict[str, dict[str, Any]]

    def of(self, run: Run, wanted: str) -> dict[str, Any] | None:
        """The row of a run, None without one; wanted: the fingerprint of its config. UserError for
        a row of another config."""
        row = self.by_name.get(run.name)
        if row is None or row["config"] == wanted:
            return row
        changed = fingerprint.differences(row["fields"], run.fields)
        changed = changed or "a default, or a shipped config, has changed since"
        raise UserError(
            f"{self.path}: the row {run.name} is of another config ({changed}): restore the grid,"
            " give it another name, or delete the row to train that run again"
        )

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row: on disk when this returns, whole or not at all."""
        append(self.path, row)
        self.by_name[row["name"]] = dict(row)


def read(path: pathlib.Path) -> Rows:
    """The rows of a file, none if it does not exist. A damaged line, which a killed process leaves,
    is skipped with a warning. UserError for a second row of the same name."""
    found: dict[str, dict[str, Any]] = {}
    if path.exists() and path.stat().st_size:
        try:
            listed = files.read_json_lines(path)
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}): restore it") from error
        for row in listed:
            missing = {"name", "kind", "config", "fields", "wer", "cer"} - row.keys()
            if missing:
                raise UserError(f"{path}: a row has no {min(missing)!r}: restore the file")
            if row["name"] in found:
                raise UserError(f"{path}: two rows {row['name']}: delete one of them")
            found[row["name"]] = row
    return Rows(path, found)


def append(path: pathlib.Path, row: Mapping[str, Any]) -> None:
    """Append a line by one write, under a lock, synced; a line that a killed process left without
    its end is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def make(
    run: Run, config: str, workdir: pathlib.Path, speakers: Mapping[str, str], split: str
) -> dict[str, Any] | None:
    """The row of a finished run, None if it is not finished.

    config: its fingerprint; speakers: {utterance id: speaker} of the reported split. Rows of runs
    hold per utterance [speaker, words, word errors, characters, character errors].
    """
    about = {"name": run.name, "kind": run.kind, "method": run.method, "amount": run.amount}
    about |= {"budget": run.tflop, "draw": run.draw, "seed": run.seed, "config": config}
    about |= {"fields": dict(run.fields)}
    if run.kind == "trial" and (workdir / "not_finite.json").is_file():
        return about | {"wer": DIVERGED, "cer": DIVERGED, "diverged": True}
    if not (workdir / "metrics.jsonl").is_file() or not (workdir / "config.json").is_file():
        return None
    files_of_run = run_files.read_run_files(workdir)
    if not files_of_run.final:
        return None
    row = about | _figures(files_of_run, split)
    if run.kind == "run":
        row["utterances"] = utterances(workdir / "samples" / f"{split}-best.jsonl", speakers)
    return row


def _figures(run: RunFiles, split: str) -> dict[str, Any]:
    final, spent = run.final, run_files.costs(run)
    updates = "compute/updates/"
    return {
        "split": split,
        "wer": final[f"{split}/wer"],
        "cer": final[f"{split}/cer"],
        "tflop": final["compute/tflop"],
        "encoder_tflop": final["compute/encoder_tflop"],
        "audio_hours": final["compute/audio_hours"],
        "updates": {k.removeprefix(updates): v for k, v in final.items() if k.startswith(updates)},
        "steps": final["step"],
        "params_digest": final["params_digest"],
        "wall_s": round(final["perf/wall_s"], 1),
        "train_s": round(3600 * spent.get("training hours", 0.0), 1),
        "versions": run.facts["versions"],
        "devices": run.facts["devices"],
    }


def utterances(samples: pathlib.Path, speakers: Mapping[str, str]) -> dict[str, list[Any]]:
    """{id: [speaker, words, word errors, characters, character errors]} of a file of samples."""
    words = bootstrap.errors_of(samples, "words")
    characters = bootstrap.errors_of(samples, "characters")
    return {
        name: [speakers[name], count, errors, *reversed(characters[name])]
        for name, (errors, count) in sorted(words.items())
    }


def same_results(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two rows are equal but for times, versions and devices."""
    apart = (*TIMES, "versions", "devices")
    a, b = ({k: v for k, v in row.items() if k not in apart} for row in (first, second))
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def missing(runs: Sequence[Run], rows: Rows) -> list[Run]:
    """The runs without a row."""
    return [run for run in runs if run.name not in rows.by_name]
