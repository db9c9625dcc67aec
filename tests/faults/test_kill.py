"""F1, F2: kill -9 at any step or during a save; the resumed run equals an uninterrupted one."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from bljust_jax.monitoring import metrics
from tests.helpers.checkpoints import assert_whole, restore
from tests.helpers.processes import finish, launch_quickstart, wait_for_step
from tests.helpers.workdirs import arrays, rows_without_perf

ROOT = pathlib.Path(__file__).resolve().parents[2]
EVERY = 4  # steps between checkpoints
WRITING = ".orbax-checkpoint-tmp"


def flags(steps):
    phases = {"explore": 0, "joint": steps, "finetune": 0}  # one compiled program
    return [
        *(f"--config.phases.{name}={length}" for name, length in phases.items()),
        *(f"--config.eval_every={steps}", f"--config.save_every={EVERY}", "--config.log_every=1"),
        *("--config.data.test=", "--config.penalty.slope=0.05"),
    ]


def train(workdir, steps):
    """Run to the end: (output, rows of metrics, last step, digest of all arrays)."""
    code, out, err = finish(launch_quickstart(workdir, *flags(steps)))
    assert code == 0, err
    rows = rows_without_perf(workdir)
    return json.loads(out.splitlines()[-1]), rows, arrays(workdir), err


def committed(workdir):
    """The newest committed step, -1 without one."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=-1)


def writing(workdir):
    """The steps whose save is in progress."""
    names = [path.name for path in (workdir / "checkpoints").glob(f"*{WRITING}*")]
    return {int(name.partition(".")[0]) for name in names}


def last_row(workdir):
    return max((row["step"] for row in metrics.read(workdir / "metrics.jsonl")), default=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Orbax warns if it restores without a target
def test_killed_at_ten_steps_each_ends_as_the_unbroken_run(tmp_path):
    """F1: parameters, optimizer state and metrics."""
    steps, lost, draw = 14, [], random.Random(0)
    *whole, _ = train(tmp_path / "whole", steps)
    for trial in range(10):
        workdir, at = tmp_path / str(trial), draw.randint(1, steps - 2)
        process = launch_quickstart(workdir, *flags(steps))
        wait_for_step(process, workdir, at)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL, "it was gone before it could be killed"
        reached, newest = last_row(workdir), committed(workdir)
        *broken, err = train(workdir, steps)
        assert broken == whole, f"killed at step {at}"
        assert f"resumed from step {newest}" in err
        lost.append(reached - newest)
    print(f"F1: 10 of 10 bit-equal; steps that were run again: {lost}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_killed_in_ten_writes_each_goes_on_from_the_newest_whole_one(tmp_path):
    """F2: a run killed during ten saves ends with the result of an uninterrupted one."""
    steps, lost, tries, draw = EVERY * 14, [], 0, random.Random(1)
    *whole, _ = train(tmp_path / "whole", steps)
    workdir, newest = tmp_path / "broken", -1
    while len(lost) < 10:
        tries += 1
        assert tries < 40, "the writes are too short to be met"
        target = max(newest, 0) + EVERY * (1 if newest < 0 else 2)
        process = launch_quickstart(workdir, *flags(steps))
        while process.poll() is None and target not in writing(workdir):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        code, _, err = finish(process)
        assert code == -signal.SIGKILL, err
        assert (f"resumed from step {newest}" in err) == (newest >= 0)
        newest = committed(workdir)
        assert newest in (target - EVERY, target)
        if target in writing(workdir):  # else it was committed just before the kill the kill
            assert newest == target - EVERY
            lost.append(last_row(workdir) - newest)
    *broken, err = train(workdir, steps)
    assert f"resumed from step {newest}" in err
    assert broken == whole
    print(f"F2: 10 of 10 in {tries} kills; steps that were run again: {lost}, saved each {EVERY}")


# Saves step after step until it is killed.
SAVE = """
import itertools, pathlib, sys
from tests.helpers.checkpoints import make_state, opened
with opened(pathlib.Path(sys.argv[1]), keep=2) as checkpoints:
    for step in itertools.count(checkpoints.latest() or 0):
        state = make_state(step + 1)
        checkpoints.save(step + 1, state, state.weights, {"heard": [step + 1]})
"""


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_while_it_saves_restores_the_newest(kills, tmp_path):
    """F2 for `Checkpoints` alone, without training."""
    draw = random.Random(2)
    for _ in range(kills):
        before = committed(tmp_path)
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE, str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
            stderr=subprocess.PIPE,
        )
        while process.poll() is None and committed(tmp_path) < max(before, 0) + 2:
            time.sleep(0.01)
        while process.poll() is None and not writing(tmp_path):
            pass
        time.sleep(draw.uniform(0, 0.03))
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.stderr.read()
        process.stderr.close()
        newest = committed(tmp_path)
        assert newest >= before + 2
        assert_whole(restore(tmp_path), newest)
