"""No shipped config collapses, starves or freezes: each, as a miniature, trains for 600 steps at
its own rates, phases and penalties, with the alarms as failures."""

import contextlib
import time
from typing import Any, NamedTuple

import numpy as np
import pytest
from optax import tree_utils

from bljust_jax.checkpoint.manager import Checkpoints
from bljust_jax.common.config_schema.training import METHODS
from bljust_jax.common.trees import named_leaves
from bljust_jax.inference.scoring import Scored
from bljust_jax.monitoring import metrics
from bljust_jax.train import loop
from bljust_jax.train.run_programs import RunPrograms
from bljust_jax.train.setup import RunOptions, TrainingRun
from tests.helpers import miniature


class Saved(NamedTuple):
    """Parameters, and second moments of AdamW, by path on the host."""

    params: dict[str, np.ndarray]
    moments: dict[str, np.ndarray]


@pytest.fixture
def saved(monkeypatch):
    """{step: Saved} of the checkpoints of a run: the first step, and the end of each phase."""
    found, save = {}, Checkpoints.save

    def record(self, step, state, *rest):
        moments = {}
        for _, tree in tree_utils.tree_get_all_with_path(state.opt_state, "nu"):
            moments |= on_host(tree)
        found[step] = Saved(on_host(state.params), moments)
        save(self, step, state, *rest)

    monkeypatch.setattr(Checkpoints, "save", record)
    return found


class Unscored(Scored):
    """The results of no task."""

    rank = property(lambda self: [1.0, 1.0])

    def __new__(cls, split: str) -> Scored:
        return super().__new__(cls, split, (), {})


@pytest.fixture(autouse=True)
def unscored(monkeypatch):
    """Nothing is decoded: the program of decoding takes as long to compile as 100 steps take."""
    monkeypatch.setattr(RunPrograms, "_submit_decoders", lambda self, split: None)
    monkeypatch.setattr(TrainingRun, "evaluate", lambda self, split, weights: Unscored(split))
    monkeypatch.setattr(loop, "finish", lambda *args: {})


def on_host(tree: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in named_leaves(tree)}


def frozen_parts(before: Saved, after: Saved, paths: list[str], decay: float) -> list[str]:
    """Of `paths`, those that did not change, or whose gradient was 0 in all steps between the two:
    then each second moment is `decay` times what it was, up to rounding. decay: 0 after a reset."""
    still = []
    for path in paths:
        moved = np.any(before.params[path] != after.params[path])
        left = 1.001 * decay * before.moments[path]
        if not moved or not np.any(after.moments[path] > left):
            still.append(path)
    return still


def without_gradient(config: Any) -> set[str]:
    """Parameters without a gradient in some phases, with one in others: the embedding of masked
    frames; a bias before batch normalisation, which subtracts it except in the causal CPC, on
    stored statistics; the recurrence of the last backward layer, as CPC on windows predicts from
    their last frame."""
    found = {"encoder/masked_embedding"}
    if config.model.get("norm") == "batch":
        found.add("encoder/blocks/conv/depthwise/bias")
    if config.encoder == "cnn_rnn":
        found.add("encoder/rnn1/backward/recurrent/kernel")
    return found


def train(config: Any, folder: Any) -> tuple[TrainingRun, list[dict]]:
    with contextlib.ExitStack() as stack:
        run = TrainingRun(config, folder, RunOptions(), stack)
        loop.train(run)
    return run, metrics.read(folder / "metrics.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("name", miniature.unique())
def test_it_neither_collapses_nor_starves_nor_freezes(name, saved, tmp_path):
    config = miniature.make(*miniature.unique()[name])
    if config.method == "relabel":  # a teacher of the same encoder
        teacher = miniature.make(*miniature.unique()["birq"])
        teacher.phases.update(pretrain=2.0, finetune=2.0)
        train(teacher, tmp_path / "teacher")
        saved.clear()
        config.teacher_from = str(tmp_path / "teacher")
    started = time.process_time()
    run, rows = train(config, tmp_path / "run")
    groups = dict(named_leaves(run.system.groups))
    ends = {0: "", **run.timeline.ends}
    assert list(saved) == list(ends)
    trained: set[str] = set()
    for start, end in zip(ends, list(ends)[1:], strict=False):
        phase = run.timeline.phase_at(end - 1)
        paths = [p for p, group in groups.items() if group.owners & phase.losses]
        fresh = phase.moments == "reset" or phase.anew
        decay = 0.0 if fresh else config.optim.b2 ** (end - start)
        still = frozen_parts(saved[start], saved[end], paths, decay)
        assert set(still) <= without_gradient(config), f"phase {phase.name}"
        trained |= set(paths) - set(still)
    assert trained == {p for p, group in groups.items() if group.owners & all_losses(run)}
    for loss in sorted(all_losses(run)):
        values = [row[f"train/{loss}/loss"] for row in rows if f"train/{loss}/loss" in row]
        assert np.isfinite(values).all()
        print(f"{name}: {loss} {values[0]:.3g} to {values[-1]:.3g}")
    for metric in sorted({key for row in rows for key in row}):
        if metric.startswith(("moo/weight/", "codebook/")) and metric.split("/")[-1] != "unused":
            values = [row[metric] for row in rows if metric in row]
            print(f"{name}: {metric} least {min(values):.3g}, last {values[-1]:.3g}")
    print(f"{name}: {run.timeline.total} steps, {time.process_time() - started:.0f} s of CPU")


def all_losses(run: TrainingRun) -> frozenset[str]:
    return frozenset().union(*(phase.losses for phase in run.recipe.phases))


def test_every_method_of_every_recipe_is_among_them():
    cases = [miniature.make(*case) for case in miniature.unique().values()]
    found = {(config.recipe, config.method) for config in cases}
    assert found == {(recipe, m) for recipe, listed in METHODS.items() for m in listed}


def test_a_part_that_does_not_train_is_found():
    one, other = np.ones(2), np.zeros(2)
    before = Saved({"a": one, "b": one, "c": one}, {"a": one, "b": one, "c": one})
    moved = {"a": one, "b": other, "c": other}
    after = Saved(moved, {"a": 2 * one, "b": 0.5 * one, "c": np.array([0.5, 0.51])})
    assert frozen_parts(before, after, ["a", "b", "c"], 0.5) == ["a", "b"]
