"""Trials of a budget in minutes or hours, and the schedules that are made from them."""

import types

import pytest

from bljust_jax import recipes
from bljust_jax.checkpoint.manager import Checkpoints
from bljust_jax.common.errors import UserError
from bljust_jax.data.utterances import hours
from bljust_jax.inference import scoring
from bljust_jax.monitoring import metrics
from bljust_jax.parallel.mesh import make_mesh
from bljust_jax.train import budget, budget_trial, loop, setup
from bljust_jax.train.compiled_steps import CompiledSteps
from bljust_jax.train.system import build_recipe
from configs import quickstart
from tests.helpers.idle_runs import Killed, idle_config, idle_runner
from tests.helpers.workdirs import rows_without_perf


@pytest.fixture
def run(monkeypatch):
    return idle_runner(monkeypatch)


TIME = {"budget": 1.0, "budget_unit": "minute"}
PHASES = ("explore", "joint", "finetune")


@pytest.mark.usefixtures("run")
def test_a_budget_in_minutes_measures_each_phase_and_the_evaluation(tmp_path, monkeypatch):
    """By a clock of which a step of the phases takes 1, 2 and 4 s and decoding dev 3 s. Seconds
    are per mean step: of the two batch shapes the commoner one is timed. Of the training data as
    much is scored beside dev as dev has."""
    now, seen = [0.0], []
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(budget_trial, "time", clock)
    costs = dict(zip(PHASES, (1.0, 2.0, 4.0), strict=True))
    take_step, scores = CompiledSteps.run, scoring.score_tasks

    def step_of(self, at, phase, state, batch):
        now[0] += costs[phase]
        seen.append((phase, at, {s: x["audio"].shape for s, x in batch.items()}))
        return take_step(self, at, phase, state, batch)

    def score(*args):
        now[0] += 3.0
        return scores(*args)

    monkeypatch.setattr(CompiledSteps, "run", step_of)
    monkeypatch.setattr(budget_trial.scoring, "score_tasks", score)
    measured = []

    class Found(Exception):
        pass

    def keep(*args):
        measured.append(args[2])
        raise Found

    monkeypatch.setattr(setup.budget, "scale", keep)
    with pytest.raises(Found):
        loop.run(idle_config(TIME), tmp_path)
    assert [next(at for name, at, _ in seen if name == phase) for phase in PHASES] == [0, 8, 16]
    assert len({str(shape) for name, _, shape in seen if name == "joint"}) == 1
    corpus_config = idle_config(TIME)
    corpus = setup.load_data(corpus_config, make_mesh(data=1))
    facts = setup.corpus_facts(corpus)
    recipe = build_recipe(corpus_config, facts)
    for phase in recipe.phases:
        mix = facts.mix(tuple(sorted({s for o in recipe.active(phase) for s in o.streams})))
        assert len(mix) == 2
        flops = []
        for share, shape in mix:
            alone = facts._replace(mix=lambda _, shape=shape: [(1.0, shape)])
            spent = recipes.step_flops(corpus_config, alone, recipe.objectives)
            flops.append((share, spent(phase.losses)))
        mean, (_, common) = sum(share * n for share, n in flops), max(flops)
        assert measured[0].steps[phase.name] == pytest.approx(costs[phase.name] * mean / common)
    dev, heard = (hours(corpus.utterances(split)) for split in ("dev", "train_sample"))
    assert 0.5 < heard / dev < 2
    both = 3 * (1 + heard / dev)
    assert measured[0].evaluation == pytest.approx(both)
    assert measured[0].last == pytest.approx(both + 3)


@pytest.mark.slow
def test_a_resumed_run_keeps_the_schedule_that_was_measured(run, tmp_path, monkeypatch, capsys):
    """Bit for bit, whatever a trial would find now; a run without a checkpoint measures again."""
    figures = []

    def measure(*_):
        return budget.Measured("assumed", dict(zip(PHASES, figures.pop(0), strict=True)), 0.1, 0.2)

    def die(*_):
        raise Killed

    monkeypatch.setattr(budget_trial, "measure", measure)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    figures[:] = [(1.1, 3.3, 1.7)]
    final = run(whole, changes=TIME)
    assert final["step"] == 30, "59.5 s of 6.1 s per step of each phase"
    figures[:] = [(0.9, 2.3, 2.2), (1.1, 3.3, 1.7)]
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", die)
        with pytest.raises(Killed):
            run(broken, changes=TIME)
    with pytest.raises(Killed):
        run(broken, kill=8, changes=TIME)
    assert run(broken, changes=TIME) == final
    assert not figures, "not measured again"
    assert rows_without_perf(broken) == rows_without_perf(whole)
    assert "resumed from step " in capsys.readouterr().err
    with pytest.raises(UserError, match="holds a run of another config"):
        run(broken, changes={**TIME, "budget": 2.0})
    (broken / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json holds the seconds per step .*: restore"):
        run(broken, changes=TIME)


@pytest.mark.slow
def test_a_run_takes_its_budget(tmp_path):
    """Steps, waits for input and evaluations of a run of half a minute; within a factor of two, as
    other processes share the machine."""
    config = quickstart.get_config("smoke")
    config.update(budget=0.5, budget_unit="minute", compile_cache="")
    config.mesh.data = 1
    loop.run(config, tmp_path)
    last = metrics.read(tmp_path / "metrics.jsonl")[-1]
    shares = last["perf/goodput"], last["perf/share/input"], last["perf/share/evaluate"]
    assert 15 < sum(shares) * last["perf/wall_s"] < 60
