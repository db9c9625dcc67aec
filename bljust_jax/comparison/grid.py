"""Grid of a comparison: method x labelled amount x compute x draw of labels x seed, as data.

A file of configs/compare has a function `get_grid()` that returns a dict with the fields of `Grid`.
"""

from __future__ import annotations

import collections
import importlib.util
import itertools
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bljust_jax.common import shipped_configs
from bljust_jax.common.errors import UserError, nearest, one_line

NEVER = 10**9  # steps: dev is scored at the end alone
# Fields that the comparison sets itself, so that all runs have equal compute and score dev once.
OWN = {
    "budget_unit": "tflop",
    "eval_every": NEVER,
    "stop.patience": 0,
    "stop.perfect": 0,
    "data.train_sample": 0,
}
KEPT = {*OWN, "seed", "budget", "method", "data.labelled_draw", "data.held_back_speakers"}
KEPT |= {"data.held_back_draw", "variant"}


class Tune(NamedTuple):
    """Tuning: the same number of trials per method, scored on speakers held back from training.

    trials: number per method
    dev: URI of the same recordings as config.data.train, in the form of the reported dev set
    held_back: number of speakers of config.data.train that are scored and train nothing
    held_back_draw, draw, seed: seeds of the speakers held back, of the labels and of the run
    amount, tflop: labelled amount and compute per trial
    space: {method: {"FIELD[,FIELD...]": values}}; a value of several fields is a tuple of theirs.
        The trials are `trials` points of the product (`points`); first values come first.
    """

    trials: int
    dev: str
    held_back: int
    amount: Any
    tflop: float
    space: Mapping[str, Mapping[str, tuple]]
    held_back_draw: int = 0
    draw: int = 0
    seed: int = 0


class Grid(NamedTuple):
    """A comparison.

    name: of the file; names the results
    config: value of --config for all runs, without the method
    fields: {config field: value} of all runs
    methods: {label: {config field: value}}; the label, up to a "+", is the variant of the config
    amount: the config field that sets the labelled amount; amounts: its values
    draws: seeds of the draw of labelled speakers and utterances; seeds: of the runs
    tflops: compute per run, 1e12 FLOPs of encoder, heads and passes for labels
    references: methods that the others are compared with
    """

    name: str
    config: str
    fields: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]
    amount: str
    amounts: tuple
    draws: tuple[int, ...]
    seeds: tuple[int, ...]
    tflops: tuple[float, ...]
    references: tuple[str, ...] = ("ptft", "supervised")
    tune: Tune | None = None


class Run(NamedTuple):
    """One run of a grid. name: of its folder and row; kind: "run" or "trial"; fields: all that
    differ from `Grid.config` with the method's variant."""

    name: str
    kind: str
    method: str
    amount: Any
    tflop: float
    draw: int
    seed: int
    fields: Mapping[str, Any]


def load(path: pathlib.Path) -> Grid:
    """The grid of a file. UserError, in one line, for a file that fails or a wrong grid."""
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else shipped_configs.FOLDER / "compare"
        near = nearest(path.name, sorted(p.name for p in folder.glob("*.py")))
        raise UserError(f"{path}: no such file{near}")
    shipped_configs.bind(path.parent.parent / "x.py")
    spec = importlib.util.spec_from_file_location("bljust_jax.loaded_grid", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        given = dict(module.get_grid())
        tune = given.pop("tune", None)
        grid = Grid(name=path.stem, tune=Tune(**tune) if tune else None, **given)
    except Exception as error:  # code of the user's
        raise UserError(f"{path}: no grid: {one_line(error) or type(error).__name__}") from error
    try:
        check(grid)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return grid


def check(grid: Grid) -> None:
    """UserError for a grid whose methods would differ in compute, in the number of trials or in
    what dev decides."""
    for where, fields in (("fields", grid.fields), *grid.methods.items()):
        if wrong := sorted({*fields} & {*KEPT, grid.amount}):
            raise UserError(f"{where}: {wrong[0]} is set by the comparison; remove it")
    for name in ("methods", "amounts", "draws", "seeds", "tflops"):
        values = list(getattr(grid, name))
        if not values or len({*map(str, values)}) < len(values):
            raise UserError(f"{name} must have one value or more, each once")
    if unknown := [m for m in grid.references if m not in grid.methods]:
        raise UserError(f"references: {unknown[0]!r} is none of methods")
    if grid.tune:
        _check_tuning(grid, grid.tune)


def _check_tuning(grid: Grid, tune: Tune) -> None:
    if tune.held_back < 1:
        raise UserError("tune.held_back must be 1 or more: trials are not scored on dev")
    reported = [grid.fields.get(f"data.{split}", "") for split in ("dev", "test")]
    if tune.dev in reported:
        raise UserError(
            f"tune.dev={tune.dev} is the reported set: name recordings of config.data.train, of"
            " which tune.held_back speakers are held back"
        )
    if tune.space.keys() != grid.methods.keys():
        odd = sorted(tune.space.keys() ^ grid.methods.keys())
        raise UserError(f"tune.space and methods must have the same methods; one has {odd[0]!r}")
    for method, axes in tune.space.items():
        size = math.prod(len(values) for values in axes.values())
        if size < tune.trials:
            raise UserError(
                f"tune.space: {method} has {size} points for {tune.trials} trials, and each method"
                " has the same number: give it more values"
            )
        names = [field for axis in axes for field in axis.split(",")]
        if wrong := sorted({*names} & {*KEPT, grid.amount}):
            raise UserError(f"tune.space: {method}: {wrong[0]} is set by the comparison")
        if wrong := [n for n in names if n.startswith(("data.dev", "data.test", "data.train"))]:
            raise UserError(f"tune.space: {method}: {wrong[0]} names data, which are not tuned")


def points(tune: Tune, method: str) -> list[dict[str, Any]]:
    """The trials of a method, {field: value}: distinct points of the product of its values.

    The first is that of the first values; each later one has the values used least so far, in the
    order of a permutation by seed 0, so that each value is tried as often as possible.
    """
    axes = tune.space[method]
    sizes = [range(len(values)) for values in axes.values()]
    first, *others = itertools.product(*sizes)
    order = np.random.default_rng(0).permutation(len(others))
    chosen, left = [first], [others[n] for n in order]
    while len(chosen) < tune.trials:
        used = [collections.Counter(point[axis] for point in chosen) for axis in range(len(sizes))]
        best = min(left, key=lambda point: sum(u[k] for u, k in zip(used, point, strict=True)))
        chosen.append(best)
        left.remove(best)
    tables = list(axes.values())
    return [_point(axes, tuple(t[k] for t, k in zip(tables, p, strict=True))) for p in chosen]


def _point(axes: Mapping[str, tuple], values: tuple) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for axis, value in zip(axes, values, strict=True):
        names = axis.split(",")
        given = value if len(names) > 1 else (value,)
        if len(given) != len(names):
            raise UserError(f"tune.space: {axis} has {len(names)} fields and the value {value!r}")
        made |= dict(zip(names, given, strict=True))
    return made


def trials(grid: Grid) -> list[Run]:
    """The trials of all methods; [] without tuning."""
    tune = grid.tune
    if tune is None:
        return []
    made = []
    for method in grid.methods:
        for n, point in enumerate(points(tune, method)):
            apart = {"data.held_back_speakers": tune.held_back, "data.dev": tune.dev}
            apart |= {"data.held_back_draw": tune.held_back_draw, "data.test": ""}
            where = (method, tune.amount, tune.tflop, tune.draw, tune.seed)
            fields = _fields(grid, *where) | point | apart
            made.append(Run(f"tune-{method}-{n}", "trial", *where, fields))
    return made


def runs(grid: Grid, tuned: Mapping[str, Mapping[str, Any]]) -> list[Run]:
    """The runs of the grid; tuned: {method: its fields}. All methods of a draw come together, so
    that an unfinished grid has whole comparisons."""
    axes = grid.amounts, grid.tflops, grid.draws, grid.seeds, grid.methods
    made = []
    for amount, tflop, draw, seed, method in itertools.product(*axes):
        where = (method, amount, tflop, draw, seed)
        name = f"{method}-{amount}-{tflop:g}tflop-draw{draw}-seed{seed}"
        fields = _fields(grid, *where) | dict(tuned.get(method, {}))
        made.append(Run(name.replace("/", "_"), "run", *where, fields))
    return made


def _fields(
    grid: Grid, method: str, amount: Any, tflop: float, draw: int, seed: int
) -> dict[str, Any]:
    own = {"seed": seed, "budget": tflop, "data.labelled_draw": draw, grid.amount: amount}
    return {**grid.fields, **grid.methods[method], **OWN, **own}


def config_flag(grid: Grid, run: Run) -> str:
    """The value of --config: the grid's, with the method as a variant."""
    path, _, variants = grid.config.partition(":")
    method = run.method.partition("+")[0]
    return f"{path}:{','.join(filter(None, (variants, method)))}"


def flags(grid: Grid, run: Run, workdir: os.PathLike) -> list[str]:
    """The arguments of `bljust train` for a run."""
    fields = (f"--config.{name}={_text(value)}" for name, value in run.fields.items())
    return [f"--config={config_flag(grid, run)}", f"--workdir={os.fspath(workdir)}", *fields]


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, tuple | bool) else str(value)
