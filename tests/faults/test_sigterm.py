"""SIGTERM in each stage of a run: exit code 75 within ten seconds, saved if there is a step."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from bljust_jax.common import cli
from bljust_jax.data import synthetic

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 10  # seconds from the signal to the exit
# What takes long in each stage
SLOW = """
import sys, time
from bljust_jax.checkpoint import manager
from bljust_jax.data import containers
from bljust_jax.train import compile_pool, compiled_steps, initial_state

def slow(owner, name, seconds, if_named="", word="HERE"):
    fast = getattr(owner, name)
    def run(*args, **options):
        if if_named in getattr(args[0], "name", ""):
            print(word, file=sys.stderr, flush=True)
            time.sleep(seconds)
        return fast(*args, **options)
    setattr(owner, name, run)

STAGES = {
    "imports": lambda: None,
    "headers": lambda: slow(containers, "length", 3),
    "statistics": lambda: slow(initial_state, "in_one_shape", 60),
    "first compile": lambda: slow(compile_pool.Job, "run", 60),
    "later compile": lambda: (
        slow(compile_pool.Job, "run", 60, "decoding", "compiling"),
        slow(compiled_steps.CompiledDecoders, "run", 0),
    ),
    "evaluation": lambda: slow(compiled_steps.CompiledDecoders, "run", 4),
    "saving": lambda: slow(manager.Checkpoints, "save", 4),
}
STAGES[sys.argv.pop(1)]()
from bljust_jax import main
sys.exit(main.main())
"""
SAVED = ("later compile", "evaluation", "saving")


def without_durations(folder):
    """The smoke corpus, whose manifest has no durations: all headers are read."""
    corpus = synthetic.make_corpus("tiny")
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("duration")
        row["audio_filepath"] = str(corpus / row["audio_filepath"])
    manifest = folder / "train.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"--config.data.train={manifest}", f"--config.data.root={corpus}"]


def wait_for(process, stage):
    """Until the process is in the stage: while it imports jax, or when it says so."""
    if stage == "imports":
        maps = pathlib.Path(f"/proc/{process.pid}/maps")
        while "jaxlib" not in maps.read_text():
            assert process.poll() is None
            time.sleep(0.01)
        return
    for line in process.stderr:
        if line.startswith("HERE"):
            return
    pytest.fail("it ended before the stage")


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    ["imports", "headers", "statistics", "first compile", "later compile", "evaluation", "saving"],
)
def test_sigterm_ends_a_run_within_ten_seconds(stage, tmp_path):
    command = ["-m", "bljust_jax.main"] if stage == "imports" else ["-c", SLOW, stage]
    command += ["--config=configs/quickstart.py:smoke", f"--workdir={tmp_path / 'run'}"]
    command += without_durations(tmp_path) if stage == "headers" else []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, **pipes) as process:
        wait_for(process, stage)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        out, err = process.communicate(timeout=120)
        seconds = time.monotonic() - began
    assert (process.returncode, out) == (cli.PREEMPTED, ""), err
    assert "Traceback" not in err
    assert seconds < LIMIT
    checkpoints = tmp_path / "run" / "checkpoints"
    saved = [path.name for path in checkpoints.glob("*")] if checkpoints.is_dir() else []
    assert any(name.isdigit() for name in saved) == (stage in SAVED)
