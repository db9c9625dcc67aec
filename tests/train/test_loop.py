"""The training loop with a trivial step: files wherever it is stopped, and compiled programs."""

import json
import os
import pathlib
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.bilevel import step
from bljust_jax.checkpoint.manager import Checkpoints
from bljust_jax.common.errors import UserError
from bljust_jax.data import train_sample
from bljust_jax.inference import decode_split, scoring, trained_run
from bljust_jax.monitoring import goodput, metrics, trackers
from bljust_jax.monitoring.progress import Progress
from bljust_jax.train import compile_only, compile_pool, loop
from bljust_jax.train.compile_pool import Job
from tests.helpers.idle_runs import Killed, idle_config, idle_runner
from tests.helpers.own_warnings import own_messages
from tests.helpers.workdirs import rows_without_perf


@pytest.fixture
def run(monkeypatch):
    return idle_runner(monkeypatch)


def signalled(score):
    """`scoring.score_tasks` that receives SIGTERM before it decodes."""

    def signal_first(*args):
        signal.raise_signal(signal.SIGTERM)
        return score(*args)

    return signal_first


@pytest.fixture
def check_sync(monkeypatch):
    """check_sync(run, workdir): a run of 24 steps, where no checkpoint outlives the rows before it:
    where the machine dies, a bucket has what was synced alone."""

    def check(run, workdir):
        synced, at_saves = [], []
        save, fsync = Checkpoints.save, os.fsync

        def noted(file):
            if pathlib.Path(f"/proc/self/fd/{file}").readlink() == workdir / "metrics.jsonl":
                synced.append(os.fstat(file).st_size)
            fsync(file)

        def noting(self, step, *args):
            at_saves.append((synced[-1], (workdir / "metrics.jsonl").stat().st_size))
            save(self, step, *args)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", noted)
            patch.setattr(Checkpoints, "save", noting)
            final = run(workdir)
        assert len(at_saves) == 11, "every third step, and the ends of phases at 8 and 16"
        assert all(on_disk == written for on_disk, written in at_saves)
        return final

    return check


@pytest.mark.daily("few")
@pytest.mark.parametrize(
    ("kills", "stops", "terminal"),
    [
        # with a row not written; one lost; where a checkpoint is due too
        # at the end of a window; where a checkpoint is due
        pytest.param((4, 11, 12), (14, 15), True, id="many"),
        pytest.param((11,), (), False, id="few"),
    ],
)
def test_rows_are_those_of_an_unbroken_run_wherever_it_ends(
    run, tmp_path, monkeypatch, default_signals, capsys, check_sync, kills, stops, terminal
):
    """Around the ends of log windows, which are written a step late, and saves that meet them; in
    an evaluation, as often as elsewhere."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    final = check_sync(run, whole)
    ages = {r["step"]: r["age"] for r in rows_without_perf(whole) if "age" in r}
    assert list(ages) == [*range(2, 25, 2)]
    scores = [r for r in rows_without_perf(whole) if "dev/wer" in r]
    assert all(r[f"{split}/ctc/loss"] > 0 for r in scores for split in ("dev", "train_sample"))
    assert (ages[8], ages[10], ages[18]) == (6.5, 0.5, 8.5), "the joint phase starts afresh"
    for kill in kills:
        with pytest.raises(Killed):
            run(broken, kill=kill)
    for stop in stops:
        assert run(broken, stop=stop) is None
        assert all(r["step"] <= stop for r in rows_without_perf(broken))
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "score_tasks", signalled(scoring.score_tasks))
        for _ in stops or (16,):
            assert run(broken, kill=16) is None
            assert max(saved_steps(broken)) == 16
            assert not any("dev/wer" in r for r in rows_without_perf(broken) if r["step"] == 16)
            assert "step 16: the evaluation is put off" in capsys.readouterr().err
    if terminal:
        with pytest.raises(KeyboardInterrupt):  # where nothing is saved otherwise
            run(broken, stop=17, by=signal.SIGINT)
        said = "stopped by SIGINT; the same command goes on from step 17"
        assert said in capsys.readouterr().err
        assert run(broken, stop=24, by=signal.SIGHUP) is None  # saved, not scored
        assert "resumed from step 17" in capsys.readouterr().err
    assert run(broken) == final
    assert terminal or "resumed from step 16" in capsys.readouterr().err
    assert rows_without_perf(broken) == rows_without_perf(whole)
    shares = {k: v for k, v in metrics.read(broken / "metrics.jsonl")[-1].items() if "perf/" in k}
    assert shares.pop(goodput.WALL) > 0
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["perf/share/lost"] > 0, "from the row of step 10 back to the save of step 9"


def test_a_signal_ends_the_wait_for_a_program(run, tmp_path, monkeypatch, default_signals, capsys):
    """The second program is compiled once the run has ended."""
    compile_job, log, begun, ended = Job.run, Progress.log, [], threading.Event()
    outlived = []

    def slow(self, *args):
        if self.name.startswith("explore"):
            begun.append(self)
            if len(begun) == 2:
                outlived.append(ended.wait(60))
        compile_job(self, *args)

    def signalled(self, text):
        log(self, text)
        if " waits for " in text:
            signal.raise_signal(signal.SIGTERM)
        if "stopped by " in text:
            ended.set()

    with monkeypatch.context() as patch:
        patch.setattr(Job, "run", slow)
        patch.setattr(Progress, "log", signalled)
        assert run(tmp_path) is None
    assert outlived == [True], "it ended while the program was compiled"
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "stopped by SIGTERM" in x]
    assert saved_steps(tmp_path) == {0, int(line.split()[-1])}
    assert run(tmp_path, stop=8) is None
    assert f"resumed from step {line.split()[-1]}" in capsys.readouterr().err


@pytest.mark.daily("20")
@pytest.mark.parametrize("kill", [None, 20])
def test_the_best_weights_are_those_of_the_best_score_and_not_the_latest(
    run, tmp_path, monkeypatch, kill
):
    """Averaged weights are as old as the step that left them, raw ones 100 steps older, and 16 is
    the age with the least errors: dev and test are scored with those at the end, then with the raw
    ones of the last step, and the last checkpoint holds the best, killed or not."""
    errors = {8: 0.5, 16: 0.25, 24: 0.75, 124: 0.6}
    idle, scored = step.make_train_step, []

    def aging(*args):
        def train_step(state, batch):
            after, means = take(state, batch)
            ema = jax.tree.map(lambda x: jnp.full_like(x, after.step), state.ema)
            params = jax.tree.map(lambda x: x + 100, ema)
            return after._replace(ema=ema, params=params), means

        take = idle(*args)
        return train_step

    def tell(split, tasks, corpus, say):
        if split == train_sample.NAME:
            return scoring.Scored(split, (), {})
        age = int(say(tasks[0], {"nothing": np.zeros(1, np.int32)}))
        scored.append((split, age))
        found = {"wer": errors[age], "cer": errors[age], "utterances": 1, "blank_share": 0.5}
        found |= dict.fromkeys(("substitutions", "deletions", "insertions", "words"), 1)
        result = scoring.Result({f"{split}/{k}": v for k, v in found.items()}, [])
        return scoring.Scored(split, tasks, {"": result})

    monkeypatch.setattr(step, "make_train_step", aging)

    def largest(w, batch):
        return jnp.max(jax.tree.leaves(w.params)[0])

    monkeypatch.setattr(decode_split, "greedy_decoder", lambda _: largest)
    monkeypatch.setattr(scoring, "score_tasks", tell)
    rare = {"save_every": 18}  # and the ends of phases
    if kill:
        with pytest.raises(Killed):
            run(tmp_path, kill=kill, changes=rare)
    final = run(tmp_path, changes=rare)
    assert (final["best_step"], final["dev/wer"], final["test/wer"]) == (16, 0.25, 0.25)
    assert [row["dev/wer"] for row in rows_without_perf(tmp_path) if "dev/wer" in row] == [
        0.5,
        0.25,
        0.75,
        0.25,
    ]
    assert scored[:5] == [("dev", 8), ("dev", 16), ("dev", 24), ("dev", 16), ("test", 16)]
    assert scored[5:] == [("dev", 124), ("test", 124)]
    assert (final["raw/dev/wer"], final["raw/test/wer"]) == (0.6, 0.6)
    best = trained_run.load_trained_run(tmp_path).weights.params
    assert all((np.asarray(x) == 16).all() for x in jax.tree.leaves(best))


@pytest.mark.daily("perfect")
@pytest.mark.parametrize(
    ("stop", "errors", "last"),
    [
        ({"stop.patience": 2}, [0.9, 0.5] + [0.5] * 10, 20),  # 18 and 20 are of the last phase
        ({"stop.perfect": 3}, [0.9, 0.0, 0.1, 0.0, 0.0, 0.0], 12),
        ({"stop.perfect": 3}, [0.0, 0.0] + [0.1] * 10, 24),
    ],
    ids=["patience", "perfect", "not reached"],
)
def test_training_ends_early_and_stays_ended(run, tmp_path, monkeypatch, stop, errors, last):
    """With an evaluation every two of 24 steps, the last eight in the last phase."""
    left = iter(errors)

    def tell(split, tasks, corpus, say):
        if split == train_sample.NAME:
            return scoring.Scored(split, (), {})
        error = 0.7 if scoring_final else next(left)
        found = {"wer": error, "cer": error, "utterances": 1, "blank_share": 0.5}
        found |= dict.fromkeys(("substitutions", "deletions", "insertions", "words"), 1)
        result = scoring.Result({f"{split}/{k}": v for k, v in found.items()}, [])
        return scoring.Scored(split, tasks, {"": result})

    scoring_final, finish = [], loop.finish

    def finish_with(*args):
        scoring_final.append(True)
        return finish(*args)

    monkeypatch.setattr(scoring, "score_tasks", tell)
    monkeypatch.setattr(loop, "finish", finish_with)
    changes = {"eval_every": 2, "save_every": 18, **stop}
    final = run(tmp_path, kill=last, changes=changes)
    assert final["step"] == last
    assert next(left, None) is None or last < 24
    assert max(row["step"] for row in rows_without_perf(tmp_path)) == last
    scoring_final.clear()
    assert run(tmp_path, kill=last, changes=changes) == final, (
        "no step is added to a run at its end"
    )


@pytest.mark.slow
def test_a_checkpoint_of_the_end_of_each_phase_is_kept(run, tmp_path, capsys):
    """Of the last turn of each loss for `alternating`, of each name once."""
    rare = {"keep": 1, "save_every": 100, "eval_every": 100}
    run(tmp_path / "bljust", changes=rare)
    assert saved_steps(tmp_path / "bljust") == {8, 16, 24}
    logged = capsys.readouterr().err
    for end, phase in ((8, "explore"), (16, "joint")):
        assert f"phase {phase} ends, checkpoint kept: --config.init_from=" in logged
        assert f"@{end} starts here" in logged
    assert "@24" not in logged, "the run itself is its end"
    changes = {**rare, "method": "alternating", "phases.turn": 2}
    run(tmp_path / "turns", stop=23, changes=changes)
    assert saved_steps(tmp_path / "turns") == {8, 22, 23}, "16 steps in turns: 14 to 16 of CTC"
    run(tmp_path / "turns", changes=changes)
    assert saved_steps(tmp_path / "turns") == {8, 22, 24, 32}


@pytest.mark.slow
def test_a_run_starts_from_a_checkpoint_of_another_which_may_then_go(run, tmp_path, capsys):
    """The trivial step changes no parameter, so both ends have the parameters of the first run."""
    first, second = tmp_path / "first", tmp_path / "second"
    rare = {"keep": 1, "save_every": 100, "eval_every": 100}
    final = run(first, changes=rare)
    changes = {**rare, "seed": 1, "init_from": f"{first}@8", "init_parts": ("all",)}
    assert run(second, stop=3, changes=changes) is None
    logged = capsys.readouterr().err
    assert f"init_from {first}, step 8: parameters: encoder " in logged
    first.rename(tmp_path / "gone")
    again = run(second, changes=changes)
    assert again["params_digest"] == final["params_digest"]
    assert "resumed from step 3" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"config\.init_from: .*/first does not exist: give"):
        run(tmp_path / "third", changes=changes)


def saved_steps(workdir):
    return {int(path.name) for path in (workdir / "checkpoints").iterdir()}


@pytest.mark.slow
def test_a_run_saves_by_the_clock_and_goes_on_with_another_config_where_that_is_allowed(
    run, tmp_path, caplog
):
    """Time is up before each step, and looked at before every second one (log_every)."""
    assert (
        run(tmp_path, stop=9, changes={"save_every": 24, "save_minutes": 1e-9, "keep": 9}) is None
    )
    assert saved_steps(tmp_path) == {0, 2, 4, 6, 8, 9}
    facts = json.loads((tmp_path / "run.json").read_text())
    with pytest.raises(UserError, match=r"another config \(save_every 24 -> 3, seed 0 -> 1\)"):
        run(tmp_path, changes={"seed": 1})
    final = run(tmp_path, changes={"seed": 1}, allow_config_change=True)
    assert final["step"] == 24
    first, second = own_messages(caplog)
    assert "(save_every 24 -> 3, seed 0 -> 1); training resumes with the new one" in first
    assert "trained on other data or devices; training resumes with the new ones" in second
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1
    assert json.loads((tmp_path / "run.json").read_text())["config"] != facts["config"]
    caplog.clear()
    assert run(tmp_path, changes={"seed": 1}) == final
    assert not own_messages(caplog)


@pytest.mark.slow
def test_compiles_are_one_per_bucket_and_all_come_early(run, tmp_path, monkeypatch, compiled):
    write = trackers.MetricWriter.write
    before = {}  # programs compiled when the row of a step was written

    def counted(self, now, row):
        before.setdefault(now, len(compiled))
        write(self, now, row)

    monkeypatch.setattr(trackers.MetricWriter, "write", counted)
    run(tmp_path, changes={"save_every": 100})
    programs = sum("train_step" in name for name in compiled)
    buckets = 2
    assert programs == buckets, "one for all phases"
    assert max(r.get("perf/compiles", 0) for r in metrics.read(tmp_path / "metrics.jsonl")) == 2
    assert sum("best_paths" in name for name in compiled) <= buckets
    others = [n for n in compiled[before[2] : before[24]] if "train_step" not in n]
    assert {n for n in others if "best_paths" not in n} <= {"jit(init_fn)"}, "reset of moments"
    assert len(others) <= buckets + 1


@pytest.mark.slow
def test_the_bits_of_a_run_do_not_depend_on_the_number_of_compile_threads(run, tmp_path):
    rare = {"save_every": 100}
    finals = {n: run(tmp_path / str(n), changes={**rare, "compile_threads": n}) for n in (1, 4)}
    assert finals[1] == finals[4]
    assert rows_without_perf(tmp_path / "1") == rows_without_perf(tmp_path / "4")
    rows = metrics.read(tmp_path / "4" / "metrics.jsonl")
    assert all(row["perf/compile_stall"] >= 0 for row in rows if "perf/compiles" in row)


def test_steps_that_are_not_finite_end_the_run(run, tmp_path, monkeypatch):
    idle = step.make_train_step

    def failing(*args):
        def train_step(state, batch):
            after, means = take(state, batch)
            return after, {**means, "train/skipped": (1.0, 1.0)}

        take = idle(*args)
        return train_step

    monkeypatch.setattr(step, "make_train_step", failing)
    said = r"^4 steps in a row were not finite, 0 to 3; the last one read train-"
    with pytest.raises(UserError, match=said):  # at the end of a window of two steps
        run(tmp_path, changes={"max_skipped": 3})
    assert list(json.loads((tmp_path / "not_finite.json").read_text())) == ["0", "1", "2", "3"]


def test_an_error_of_a_compile_thread_ends_the_run(run, tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("a batch needs 2 of 1 GiB device memory")

    monkeypatch.setattr(compile_pool, "check_memory", fail)
    with pytest.raises(UserError, match="2 of 1 GiB"):
        run(tmp_path)


def test_compiling_alone_gives_the_figures_of_all_programs(run, monkeypatch, compiled):
    """Of training and evaluation, with no step taken."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    with pytest.raises(UserError, match="compile_cache is empty"):
        compile_only.compile_config(idle_config())
    folders = []
    monkeypatch.setattr(compile_only, "enable_compile_cache", folders.append)
    found = compile_only.compile_config(idle_config({"compile_cache": "cache"}))["programs"]
    assert folders == ["cache"]
    assert [one["name"].partition(":")[0] for one in found][:2] == [
        "initial state",
        "explore, joint, finetune",
    ]
    assert sum(one["name"].startswith("explore") for one in found) == 2
    decoders = [one for one in found if one["name"].startswith("decoding")]
    assert 1 <= len(decoders) <= 2
    assert len(found) == 3 + len(decoders)
    assert all(one["bytes"] > 0 and one["seconds"] >= 0 for one in found)
    assert sum("train_step" in name for name in compiled) == 2
