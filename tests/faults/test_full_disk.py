"""F6: a full disk while saving, by config.on_full_disk."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from bljust_jax.common.errors import UserError
from tests.helpers.checkpoints import assert_whole, opened, restore, save

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Saves steps 3 to 6 after 1 and 2; a limit on file size holds from before step 3 until step 4
# has failed.
SAVE = """
import pathlib, resource, sys, threading, time
from tests.helpers.checkpoints import make_state, opened
from bljust_jax.common.cli import run_to_exit_code

workdir, policy, size = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

_, most = resource.getrlimit(resource.RLIMIT_FSIZE)

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))

def is_writing():
    return any(t.name in ("async_save", "save_finalize") for t in threading.enumerate())

def run():
    with opened(workdir, keep=2, on_full_disk=policy) as checkpoints:
        limit(size)
        for step in (3, 4, 5, 6):
            state = make_state(step)
            checkpoints.save(step, state, state.weights, {"heard": [step]})
            while step == 4 and is_writing():
                time.sleep(0.01)
            if step == 4:
                limit(most)
    print("ended")
    return 0

sys.exit(run_to_exit_code(run))
"""


def save_on_full_disk(workdir, policy, size):
    """(exit code, stdout, lines of stderr)."""
    done = subprocess.run(
        [sys.executable, "-c", SAVE, str(workdir), policy, str(size)],
        cwd=ROOT,
        # without the compile cache, whose files would also exceed the limit
        env={
            **os.environ,
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.splitlines()


def steps(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


# What cannot be written: any file; the arrays; the checksums
SIZES = [0, pytest.param(600, marks=pytest.mark.slow), pytest.param(1500, marks=pytest.mark.slow)]


@pytest.mark.parametrize("size", SIZES)
def test_a_full_disk_is_a_warning_and_the_run_goes_on(size, tmp_path):
    save(tmp_path, 1, 2, keep=2)
    code, out, lines = save_on_full_disk(tmp_path, "warn", size)
    assert (code, out) == (0, "ended\n"), lines
    assert len(lines) == 2, lines
    for line in lines:
        assert line == (
            f"warning: {tmp_path}/checkpoints: a checkpoint could not be written: File too large; "
            "the run goes on, the checkpoints before it are whole"
        )
    assert steps(tmp_path) == ["5", "6"]
    assert_whole(restore(tmp_path), 6)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_leaves_the_checkpoints(tmp_path):
    save(tmp_path, 1, 2, keep=2)
    code, out, lines = save_on_full_disk(tmp_path, "stop", 600)
    assert (code, out) == (2, "")
    (line,) = lines
    assert line.startswith(f"error: {tmp_path}/checkpoints: a checkpoint could not be written: ")
    assert "free some space and run the same command again" in line
    assert steps(tmp_path) == ["1", "2"]
    assert_whole(restore(tmp_path), 2)


def test_several_processes_cannot_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"config\.on_full_disk='warn' is for one process"):
        opened(tmp_path, on_full_disk="warn").__enter__()
