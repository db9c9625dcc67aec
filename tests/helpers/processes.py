"""Start the package's commands as processes, alone or as several hosts on loopback."""

import contextlib
import fcntl
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

from bljust_jax.monitoring import metrics
from tests.helpers import fork_server

ROOT = pathlib.Path(__file__).resolve().parents[2]


QUICK = "--config=configs/quickstart.py"
M2ASR = "--config=configs/m2asr.py:digits"
MAIN = """
import sys
from bljust_jax import main
code = main.main()
assert "jax" not in sys.modules and "grain" not in sys.modules
sys.exit(code)
"""


def run_command(*flags, code=MAIN, cwd=ROOT):
    """`python -c code flags` in a forked process: its exit code, stdout, stderr, CPU seconds."""
    return fork_server.run(code, flags, str(cwd))


_PORTS = []  # locks of the ports of this process, held until it ends


def free_port():
    """A port that nothing takes before it is used: below those that the system gives to
    connections, and locked against other test processes."""
    given = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range")
    first_given = int(given.read_text().split()[0]) if given.exists() else 32768
    for port in range(first_given - 1, 1024, -1):
        name = pathlib.Path(tempfile.gettempdir(), f"bljust_jax-port-{port}")
        lock = name.open("w")
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            socket.create_server(("127.0.0.1", port)).close()
            _PORTS.append(lock)
            return port
        lock.close()
    raise OSError("no free port")


def start(code, *flags, devices=2):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        [sys.executable, *code, *flags],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


TRAIN = ["-m", "bljust_jax.main", "--config=configs/quickstart.py:smoke"]
TRAIN += ["--config.phases.explore=4", "--config.phases.joint=6", "--config.phases.finetune=6"]
TRAIN += ["--config.eval_every=8", "--config.save_every=8", "--config.log_every=2"]
TRAIN += ["--config.save_minutes=1e-6"]  # at each log_every, if all agree on it


HEARTBEAT = 10  # seconds


def train_on(count, workdir, devices, code=TRAIN[:2], flags=()):
    """`count` processes that train as one."""
    flags = [*TRAIN[2:], f"--workdir={workdir}", f"--heartbeat_timeout={HEARTBEAT}", *flags]
    if count > 1:
        flags += [f"--coordinator_address=127.0.0.1:{free_port()}", f"--num_processes={count}"]
    numbered = [[f"--process_id={i}"] if count > 1 else [] for i in range(count)]
    return [start([*code], *flags, *number, devices=devices) for number in numbered]


def finish_all(processes):
    """What each of them said on stdout."""
    said = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return [out for out, _ in said]


SHORT = {"explore": 4, "joint": 6, "finetune": 6}


def launch_quickstart(workdir, *changes, **popen):
    """The quickstart, shrunk, in a process of its own; `changes` are flags that win."""
    flags = [f"--config.phases.{k}={v}" for k, v in SHORT.items()]
    flags += ["--config.eval_every=4", "--config.save_every=4", "--config.log_every=3"]
    flags += ["--config.compile_cache="]
    command = [sys.executable, "-m", "bljust_jax.main", "--config=configs/quickstart.py:smoke"]
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *flags, *changes],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **popen,
    )


def finish(process):
    """Wait for a process: (exit code, stdout, stderr)."""
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


def wait_for_step(process, workdir, step):
    """Until metrics.jsonl shows `step` or the process ends."""
    path = workdir / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and any(r["step"] >= step for r in metrics.read(path)):
            return
        time.sleep(0.02)
