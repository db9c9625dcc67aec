"""Random damage to audio and texts: one line or the whole of it, no crash, hang or large memory."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENOUGH = {"audio": {"fault", "read", "error", "transcribed"}, "texts": {"read", "error"}}


def run(what, examples, folder):
    """Counts of outcomes, by a process that may use 2 GiB (tests/helpers/fuzz.py)."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.fuzz", what, str(examples), str(folder)],
        **{"cwd": ROOT, "env": {**os.environ, "MALLOC_ARENA_MAX": "2", "PYTHONPATH": str(ROOT)}},
        **{"capture_output": True, "text": True, "check": False, "errors": "replace"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    print(what, examples, counts)
    assert counts.keys() >= ENOUGH[what]


@pytest.mark.daily("texts-*")
@pytest.mark.parametrize(("what", "examples"), [("audio", 150), ("texts", 150)])
def test_some_damaged_files(tmp_path, what, examples):
    run(what, examples, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "examples"), [("audio", 2000), ("texts", 1000)])
def test_many_damaged_files(tmp_path, what, examples):
    run(what, examples, tmp_path)
