"""Run a comparison: its trials, its runs, and what their rows show."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bljust_jax.common.errors import UserError
from bljust_jax.comparison import fingerprint, processes, rows
from bljust_jax.comparison import grid as grids
from bljust_jax.comparison.grid import Grid, Run
from bljust_jax.comparison.processes import Job, Slot, Start
from bljust_jax.comparison.rows import Rows
from bljust_jax.data.sources import open_source
from bljust_jax.monitoring.goodput import in_minutes


class Place(NamedTuple):
    """Where a comparison keeps its files: workdirs of the runs, and the file of rows."""

    runs: pathlib.Path
    results: pathlib.Path


class Study:
    """A grid, its rows, and the children that train what is missing."""

    def __init__(
        self, grid: Grid, place: Place, where: Sequence[Slot], starting: Start = processes.start
    ):
        self.grid, self.place, self._where, self._starting = grid, place, where, starting
        self.rows = rows.read(place.results)
        self._speakers: dict[str, str] = {}

    @property
    def split(self) -> str:
        """The reported split: test if the config names one, else dev."""
        first = grids.runs(self.grid, {})[0]
        return "test" if fingerprint.config_of(self.grid, first).data.test else "dev"

    def tune(self, *, allowed: bool) -> dict[str, dict[str, Any]]:
        """{method: fields of its best trial}; {} without tuning. Trains the trials that have no
        row. UserError if there are some and that is not `allowed`."""
        trials = grids.trials(self.grid)
        wanted = self._require_valid(trials)
        lacking = rows.missing(trials, self.rows)
        if lacking and not allowed:
            raise UserError(
                f"{len(lacking)} of {len(trials)} trials have no row in {self.place.results}: add"
                " --tune to run them first"
            )
        self._train(lacking, wanted)
        return choose(self.grid, trials, self.rows)

    def run(self, tuned: Mapping[str, Mapping[str, Any]]) -> list[Run]:
        """Train the runs that have no row; returns all runs of the grid."""
        runs = grids.runs(self.grid, tuned)
        wanted = self._require_valid(runs)
        self._train(rows.missing(runs, self.rows), wanted)
        return runs

    def wanted(self, tuned: Mapping[str, Mapping[str, Any]]) -> list[Run]:
        """All runs of the grid; trains nothing. UserError for a row of another config."""
        runs = grids.runs(self.grid, tuned)
        self._require_valid(runs)
        return runs

    def _require_valid(self, runs: Sequence[Run]) -> dict[str, str]:
        """{name of a run: fingerprint of its config}; UserError for a row of another one."""
        wanted = {
            run.name: fingerprint.fingerprint(fingerprint.config_of(self.grid, run)) for run in runs
        }
        for run in runs:
            self.rows.of(run, wanted[run.name])
        return wanted

    def _train(self, runs: Sequence[Run], wanted: Mapping[str, str]) -> None:
        if not runs:
            return
        split = self.split
        self._speakers = self._speakers or self._read_speakers(split)
        waiting = []
        for run in runs:
            # a changed config has a folder of its own
            workdir = self.place.runs / f"{run.name}-{wanted[run.name]}"
            job = Job(run, grids.flags(self.grid, run, workdir), workdir)
            if not self._collect(job, wanted, split):  # of a comparison killed before its row
                waiting.append(job)

        def finish(job: Job) -> str:
            if not self._collect(job, wanted, split):
                raise UserError(f"{job.run.name} ended without its final metrics (log: {job.log})")
            return describe(self.rows.by_name[job.run.name])

        def status(active: Sequence[Job], more: int) -> str:
            return processes.describe(active, more, len(waiting), self._seconds_per_tflop())

        processes.train(waiting, finish, self._where, status, self._starting)

    def _collect(self, job: Job, wanted: Mapping[str, str], split: str) -> bool:
        """Append the row of a run if it is finished; returns whether it is."""
        own = "dev" if job.run.kind == "trial" else split
        about = job.run, wanted[job.run.name], job.workdir, self._speakers, own
        row = rows.make(*about)
        if row is not None:
            self.rows.add(row)
        return row is not None

    def _read_speakers(self, split: str) -> dict[str, str]:
        """{utterance id: speaker} of the reported split."""
        config = fingerprint.config_of(self.grid, grids.runs(self.grid, {})[0])
        found = open_source(config.data[split], config.data.root)
        return {u.id: u.speaker for u in found}

    def _seconds_per_tflop(self) -> float:
        """Wall seconds per TFLOP of all slots together; 0 without a row."""
        timed = [row for row in self.rows.by_name.values() if "wall_s" in row]
        spent = sum(row["tflop"] for row in timed)
        return sum(row["wall_s"] for row in timed) / spent / len(self._where) if spent else 0.0


def choose(grid: Grid, trials: Sequence[Run], found: Rows) -> dict[str, dict[str, Any]]:
    """{method: fields of its trial with the least WER, then CER, then number} of the trials with
    rows."""
    best: dict[str, tuple[tuple[float, float, int], dict[str, Any]]] = {}
    for method in grid.methods:
        own = [run for run in trials if run.method == method]
        for n, run in enumerate(own):
            row = found.by_name.get(run.name)
            if row is not None:
                rank = (row["wer"], row["cer"], n)
                if method not in best or rank < best[method][0]:
                    best[method] = rank, grids.points(grid.tune, method)[n]
    return {method: point for method, (_, point) in best.items()}


def describe(row: Mapping[str, Any]) -> str:
    """bljust-...: WER 31.20 %, CER 12.10 %, 3.98 TFLOP in 2:21."""
    if row.get("diverged"):
        return f"{row['name']}: diverged, counted as WER 100 %"
    spent = f"{row['tflop']:.3g} TFLOP in {in_minutes(row['wall_s'])}"
    return f"{row['name']}: WER {row['wer']:.2%}, CER {row['cer']:.2%}, {spent}"


def tuned_lines(tuned: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines on the chosen fields per method."""
    return [
        f"tuned {method}: " + ", ".join(f"{k}={v}" for k, v in point.items())
        for method, point in tuned.items()
    ]
