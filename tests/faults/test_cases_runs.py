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

from bljust_jax.common import config_schema
from bljust_jax.common.errors import UserError
from bljust_jax.monitoring import metrics, trackers
from bljust_jax.parallel import preemption
from bljust_jax.train import run_lock, workdir
from configs import quickstart

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


@pytest.fixture
def hang_up():
    """Set what a SIGHUP does until the test ends; the tests may run under nohup."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_end_of_a_terminal_stops_a_run_as_sigterm_does(number, hang_up):
    hang_up(signal.SIG_DFL)
    before = signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        stop_requested = preemption.watch_for_sigterm(stack)
        assert not stop_requested(1)
        signal.raise_signal(number)
        assert stop_requested(2)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before


def test_nohup_is_respected(hang_up):
    hang_up(signal.SIG_IGN)
    with contextlib.ExitStack() as stack:
        stop_requested = preemption.watch_for_sigterm(stack)
        signal.raise_signal(signal.SIGHUP)
        assert not stop_requested(1)


@pytest.mark.parametrize("seed", [1 << 31, 1 << 32, 1 << 64, -1])
def test_a_seed_beyond_the_keys_of_jax_is_refused(seed):
    """jax's key of 2 ** 32 is that of 0."""
    config = quickstart.get_config("smoke")
    config.seed = seed
    with pytest.raises(UserError, match=r"config\.seed=.* from 0 to 2147483647"):
        config_schema.check(config)
