"""XLA's alarm about slow compilation is not shown, and nothing else is lost."""

import os
import subprocess
import threading
import time

from bljust_jax.common import compile_alarm

BEFORE = (
    b"E0000 00:00:1764000000.000001    7 slow_operation_alarm.cc:73] \n" + b"*" * 32 + b"\n"
    b"[Compiling module jit_train_step] Very slow compile? If you want to file a bug, run with "
    b"envvar XLA_FLAGS=--xla_dump_to=/dumps and attach the results.\n" + b"*" * 32 + b"\n"
)
AFTER = BEFORE.replace(b"cc:73] \n", b"cc:140] The operation took 2m12.8s\n\n")


def test_the_alarm_alone_is_hidden(capfd):
    """Also in pieces, and beside an error of XLA and the lines of other threads."""
    with compile_alarm.hidden():
        os.write(2, b"first\n" + BEFORE + b"E0000 cuda_driver.cc:1] no device\n")
        for n in range(0, len(AFTER), 50):
            os.write(2, AFTER[n : n + 50])
        threads = [
            threading.Thread(target=lambda n=n: [os.write(2, b"%d\n" % n) for _ in range(500)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.write(2, b"last")
    shown = capfd.readouterr().err.splitlines()
    assert shown[:2] == ["first", "E0000 cuda_driver.cc:1] no device"]
    assert sorted(shown[2:-1]) == sorted(str(n) for n in range(4) for _ in range(500))
    assert shown[-1] == "last"


def test_a_line_without_an_end_is_shown_soon(capfd):
    with compile_alarm.hidden():
        os.write(2, b"20/24 joint\r")
        until, shown = time.monotonic() + 30, ""
        while not shown and time.monotonic() < until:
            shown = capfd.readouterr().err
        assert shown == "20/24 joint\r"


def test_contexts_overlap_and_stderr_is_restored(capfd):
    opened = len(os.listdir("/proc/self/fd"))
    first, second = compile_alarm.hidden(), compile_alarm.hidden()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    os.write(2, BEFORE + b"x\n")
    second.__exit__(None, None, None)
    os.write(2, BEFORE)
    assert capfd.readouterr().err == "x\n" + BEFORE.decode()
    until = time.monotonic() + 30
    while len(os.listdir("/proc/self/fd")) > opened and time.monotonic() < until:
        time.sleep(0.001)
    assert len(os.listdir("/proc/self/fd")) == opened


def test_a_process_started_meanwhile_keeps_its_stderr(capfd):
    with compile_alarm.hidden():
        child = subprocess.Popen(["sh", "-c", "read x; echo $x >&2"], stdin=subprocess.PIPE)
    child.communicate(b"late\n")
    until, shown = time.monotonic() + 30, ""
    while not shown and time.monotonic() < until:
        shown = capfd.readouterr().err
    assert (child.returncode, shown) == (0, "late\n")


def test_a_file_that_became_stderr_meanwhile_stays(capfd, tmp_path):
    before = os.dup(2)
    try:
        with compile_alarm.hidden(), open(tmp_path / "log", "wb") as file:
            os.dup2(file.fileno(), 2)
        os.write(2, b"x\n")
    finally:
        os.dup2(before, 2)
        os.close(before)
    assert (tmp_path / "log").read_bytes() == b"x\n"


def test_without_a_stderr_nothing_happens(monkeypatch):
    def closed(file):
        raise OSError

    monkeypatch.setattr(os, "dup", closed)
    with compile_alarm.hidden():
        assert compile_alarm._filter is None
