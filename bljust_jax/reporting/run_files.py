"""Read the files of a run's folder: config, run.json and metrics; its scores and costs."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bljust_jax.common import files
from bljust_jax.common.errors import UserError
from bljust_jax.monitoring import metrics
from bljust_jax.reporting.plots import MEASURES

RAW = "raw/"  # prefix of the scores of parameters that are not averaged


class RunFiles(NamedTuple):
    """Config, content of `run.json` and rows of `metrics.jsonl`."""

    folder: pathlib.Path
    config: dict[str, Any]
    facts: dict[str, Any]
    rows: list[dict[str, Any]]  # without the final one
    final: dict[str, Any]  # empty while the run is unfinished

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def state(self) -> str:
        return "done" if self.final else f"unfinished, {self.step} steps so far"

    @property
    def step(self) -> int:
        return max((row["step"] for row in self.rows), default=0)

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """{task: its part of the config}, sorted; empty for a run with one unnamed task."""
        return dict(sorted(self.config.get("data", {}).get("streams", {}).items()))

    @property
    def measure(self) -> str:
        """The measure that chose the best parameters: of the only task, or of the first."""
        return next(iter(self.facts.get("measures", {}).values()), "wer")

    @property
    def losses(self) -> list[str]:
        """The names of the logged training losses, sorted."""
        keys = {key for row in self.rows for key in row}
        found = (k.removeprefix("train/").removesuffix("/loss") for k in keys if k[:6] == "train/")
        return sorted({name for name in found if f"train/{name}/loss" in keys})

    @property
    def scores(self) -> dict[str, float]:
        """{split/.../measure: value} of the best weights, or the last ones logged if unfinished."""
        logged = self.final or {k: v for row in self.rows for k, v in row.items()}
        keys = [k for k in logged if k.split("/")[-1] in MEASURES and not k.startswith(RAW)]
        return {key: logged[key] for key in sorted(keys, key=score_order)}

    @property
    def raw_scores(self) -> dict[str, float]:
        """Scores of a finished run's last parameters, without an average: {split/.../measure}."""
        found = {k.removeprefix(RAW): v for k, v in self.final.items() if k.startswith(RAW)}
        return {k: found[k] for k in self.scores if k in found}

    def last(self, key: str) -> Any:
        """The value logged last; None if never logged."""
        return next((row[key] for row in reversed(self.rows) if key in row), None)


def read_run_files(folder: pathlib.Path) -> RunFiles:
    """Read a run's folder; UserError if it is not one or a file of it is damaged."""
    for name in ("config.json", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is no run: it has no {name}; name the --workdir of a run")
    rows = _parse(folder / "metrics.jsonl", metrics.read)
    return RunFiles(
        folder,
        _parse(folder / "config.json", _read_json),
        _parse(folder / "run.json", _read_json) if (folder / "run.json").is_file() else {},
        [row for row in rows if "final" not in row],
        next((row for row in reversed(rows) if "final" in row), {}),
    )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    return files.read_json(path)


def _parse(path: pathlib.Path, read: Callable[[pathlib.Path], Any]) -> Any:
    try:
        return read(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); run the training again") from error


def costs(run: RunFiles) -> dict[str, float]:
    """{label: value}: TFLOP of all and of the encoder, updates of each loss, hours of audio and of
    training."""
    found = {"TFLOP": run.last("compute/tflop")}
    found["encoder TFLOP"] = run.last("compute/encoder_tflop")
    keys = sorted({k for row in run.rows for k in row if k.startswith("compute/updates/")})
    found |= {f"{key.removeprefix('compute/updates/')} updates": run.last(key) for key in keys}
    found |= {
        "audio hours": run.last("compute/audio_hours"),
        "training hours": training_hours(run.rows),
    }
    return {label: value for label, value in found.items() if value is not None}


def training_hours(rows: Sequence[Mapping[str, Any]]) -> float:
    """Hours of training steps and waits for their input: steps / `perf/steps_per_s`, summed over
    log windows."""
    seconds, before = 0.0, 0
    for row in rows:
        if "perf/steps_per_s" in row:
            seconds += (row["step"] - before) / row["perf/steps_per_s"]
            before = row["step"]
    return seconds / 3600


def input_wait(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of the training time spent waiting for batches; None if it was not logged."""
    waited, seconds, before = 0.0, 0.0, 0
    for row in (row for row in rows if "perf/input_wait" in row):
        span = (row["step"] - before) / row["perf/steps_per_s"]
        waited, seconds = waited + row["perf/input_wait"] * span, seconds + span
        before = row["step"]
    return waited / seconds if seconds else None


def as_json(run: RunFiles) -> dict[str, Any]:
    """Figures of a run: {"run", "recipe", "method", "seed", "finished", "step", scores, costs}."""
    config = {key: run.config[key] for key in ("recipe", "method", "seed")}
    state = {"finished": bool(run.final), "step": run.step}
    return {"run": str(run.folder), **config, **state, "scores": run.scores, "costs": costs(run)}


def score_order(key: str) -> tuple[str, int, str]:
    """Sort key: dev before test, a split before its parts, WER before CER."""
    split, *_, measure = key.split("/")
    return split, key.count("/"), f"{list(MEASURES).index(measure)}{key}"
