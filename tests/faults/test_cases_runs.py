"""Two runs in one workdir, damaged files beside whole checkpoints, signals."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from bljust_jax.common import cli, config_schema
from bljust_jax.common.errors import Preempted, UserError
from bljust_jax.monitoring import metrics, trackers
from bljust_jax.parallel import preemption
from bljust_jax.train import run_lock, workdir
from configs import quickstart
from tests.helpers.processes import start

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOLD = """
import pathlib, sys
from bljust_jax.train import run_lock
with run_lock.locked(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_and_a_dead_one_is_succeeded(holder, tmp_path, caplog):
    said = rf"is in use by process {holder.pid} on \S+ since \d{{4}}-.*remove \S+lock\.json if"
    for attempt in (run_lock.check, lambda path: run_lock.locked(path).__enter__()):
        with pytest.raises(UserError, match=said):
            attempt(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock.json"]
    holder.kill()
    holder.wait()
    with run_lock.locked(tmp_path):
        assert f"held the lock (process {holder.pid} on" in caplog.text
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_ends_releases_the_lock(holder, tmp_path):
    holder.communicate("\n")
    assert list(tmp_path.iterdir()) == []
    run_lock.check(tmp_path)


def elsewhere(path, **changes):
    lock = {"host": "far", "pid": 1, "since": "2026-01-01 00:00:00", "space": "another boot"}
    path.write_text(json.dumps(lock | changes))
    return path


def test_a_run_on_another_machine_lives_as_long_as_it_touches_the_file(tmp_path, monkeypatch):
    path = elsewhere(tmp_path / "lock.json")
    with pytest.raises(UserError, match=r"in use by process 1 on far since 2026-01-01 00:00:00"):
        run_lock.check(tmp_path)
    old = time.time() - run_lock.DEAD - 60
    os.utime(path, (old, old))
    monkeypatch.setattr(run_lock, "BEAT", 0.01)
    with run_lock.locked(tmp_path):
        os.utime(path, (old, old))
        for _ in range(500):
            if path.stat().st_mtime > old + 1:
                break
            time.sleep(0.01)
        else:
            pytest.fail("the lock was not touched")


def test_a_number_that_a_new_process_has_is_no_sign_of_life(tmp_path):
    own = run_lock._identity()
    path = elsewhere(tmp_path / "lock.json", **{**own, "started": "1"})
    with run_lock.locked(tmp_path):
        assert json.loads(path.read_text())["started"] == own["started"]
    path.write_text(json.dumps(own))
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        run_lock.check(tmp_path)


def test_a_damaged_lock_is_taken_over_once_it_is_old(tmp_path):
    path = tmp_path / "lock.json"
    path.write_bytes(b"\0\0\0")
    with pytest.raises(UserError, match="in use by process \\? on another host"):
        run_lock.check(tmp_path)
    os.utime(path, (0, 0))
    with run_lock.locked(tmp_path):
        pass


def test_of_many_at_once_one_gets_the_lock(tmp_path):
    """Also where all find the lock of a dead process."""
    for stale in (False, True):
        if stale:
            os.utime(elsewhere(tmp_path / "lock.json"), (0, 0))
        inside, most, entered = [0], [0], []
        start, guard = threading.Barrier(8), threading.Lock()

        def attempt(inside=inside, most=most, entered=entered, start=start, guard=guard):
            start.wait()
            with contextlib.suppress(UserError), run_lock.locked(tmp_path):
                with guard:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    entered.append(1)
                time.sleep(0.05)
                with guard:
                    inside[0] -= 1

        threads = [threading.Thread(target=attempt) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == [1]
        assert entered


# Damaged files


ROWS = [{"step": step, "train/ctc/loss": 1.0 / step} for step in (2, 4, 6, 8)]


@pytest.mark.parametrize(
    "tail", [b"\0" * 512, b'{"step": 1', b'{"step": 3, "a": {"step": 3}\n', b"\xff\xfe\n", b"7\n"]
)
def test_a_damaged_log_is_repaired_and_the_run_goes_on(tmp_path, tail, caplog):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(row).encode() + b"\n" for row in ROWS]
    path.write_bytes(lines[0] + lines[1] + tail + (b"" if tail[-1:] == b"\n" else b"\n") + lines[2])
    assert metrics.read(path) == ROWS[:3]
    assert "metrics.jsonl: 1 damaged lines left out, line 3" in caplog.text
    writer = trackers.MetricWriter(tmp_path, resumed_at=4)
    assert writer.dropped == [ROWS[2]]
    writer.write(8, {"train/ctc/loss": 0.125})
    writer.close()
    assert path.read_bytes() == lines[0] + lines[1] + lines[3]


def test_a_log_without_a_whole_line_is_begun_anew(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_bytes(b"\0" * 999 + b"\nno row\n")
    with pytest.raises(ValueError, match="no line is a JSON object"):
        metrics.read(tmp_path / "metrics.jsonl")
    trackers.MetricWriter(tmp_path, resumed_at=4).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert "is damaged (no line is a JSON object) and is begun anew" in caplog.text


@pytest.mark.parametrize("content", [b"", b"\0" * 99, b"[]", b'{"a": 1', b"\xff"])
def test_a_damaged_config_of_a_whole_checkpoint_is_written_anew(
    tmp_path, content, monkeypatch, caplog
):
    (tmp_path / "config.json").write_bytes(content)
    monkeypatch.setattr(workdir, "has_checkpoint", lambda folder: True)
    workdir.check_config(quickstart.get_config("smoke"), tmp_path)
    assert re.search(r"config\.json is damaged, .* and is written anew", caplog.text)


# Signals and seeds


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_is_recorded_while_there_is_something_to_save(name, default_signals):
    """Before and after, it ends the run at once."""
    number = getattr(signal, name)
    before = {other: signal.getsignal(getattr(signal, other)) for other in preemption.SIGNALS}
    ended = KeyboardInterrupt if name == "SIGINT" else Preempted
    with contextlib.ExitStack() as stack:
        stop = preemption.StopSignals(stack)
        with pytest.raises(ended):
            signal.raise_signal(number)
    with contextlib.ExitStack() as stack:
        stop = preemption.StopSignals(stack)
        stop.save_first()
        assert not stop.requested(1)
        signal.raise_signal(number)
        assert stop.requested(2)
        assert (stop.cause, stop.interrupted) == (name, name == "SIGINT")
        with pytest.raises(ended):
            stop.end_at_once()
    with contextlib.ExitStack() as stack:
        stop = preemption.StopSignals(stack)
        stop.save_first()
        stop.end_at_once()
        with pytest.raises(ended):
            signal.raise_signal(number)
    for other, handler in before.items():
        assert signal.getsignal(getattr(signal, other)) is handler


def test_nohup_is_respected(default_signals):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with contextlib.ExitStack() as stack:
        stop = preemption.StopSignals(stack)
        signal.raise_signal(signal.SIGHUP)
        stop.save_first()
        signal.raise_signal(signal.SIGHUP)
        assert not stop.requested(1)


TWICE = """
import contextlib, signal, time
from bljust_jax.parallel import preemption
signal.signal(signal.SIGINT, signal.default_int_handler)
with contextlib.ExitStack() as stack:
    stop = preemption.StopSignals(stack)
    stop.save_first()
    stack.callback(time.sleep, 600)  # a save that does not come to its end
    signal.raise_signal(signal.SIGINT)
    assert stop.requested(1)
    signal.raise_signal(signal.SIGINT)
    time.sleep(600)
"""


def test_a_second_ctrl_c_leaves_at_once():
    command = [sys.executable, "-c", TWICE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == cli.INTERRUPTED
    first, second = done.stderr.splitlines()
    assert "saves before its next step; a second one ends it at once" in first
    assert second.startswith("second SIGINT: ended at once; run the same command again")


EARLY = """
import os, signal, sys, time
from bljust_jax import main
def wait(*_, **__):
    print("waiting", flush=True)
    time.sleep(600)
place, name = sys.argv.pop(1).split(":")
module = __import__(f"bljust_jax.{place}", fromlist=["_"])
setattr(module, name, wait)
sys.exit(main.main())
"""


@pytest.mark.daily("main*")
@pytest.mark.parametrize("place", ["main:print_devices", "train.setup:load_corpus"])
def test_sigterm_before_the_first_step_ends_a_run_at_once(place, tmp_path):
    flags = [place, "--config=configs/quickstart.py:smoke", f"--workdir={tmp_path}"]
    with start(["-c", EARLY], *flags) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (cli.PREEMPTED, "")
    assert err.splitlines()[-1] == "stopped by SIGTERM; run the same command again to resume"
    assert "Traceback" not in err


@pytest.mark.parametrize("seed", [1 << 31, 1 << 32, 1 << 64, -1])
def test_a_seed_beyond_the_keys_of_jax_is_refused(seed):
    """jax's key of 2 ** 32 is that of 0."""
    config = quickstart.get_config("smoke")
    config.seed = seed
    with pytest.raises(UserError, match=r"config\.seed=.* from 0 to 2147483647"):
        config_schema.check(config)
