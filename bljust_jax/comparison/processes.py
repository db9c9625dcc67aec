"""Train runs as child processes, one after another or one per device."""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from bljust_jax.common import cli
from bljust_jax.common.console import StatusLine
from bljust_jax.common.durations import in_hours
from bljust_jax.common.errors import Preempted, UserError
from bljust_jax.comparison.grid import Run
from bljust_jax.monitoring import metrics
from bljust_jax.train import run_lock

POLL = 0.2  # seconds between two looks at the children
INTERVAL = 30.0  # seconds between two status lines of a log
END = 120.0  # seconds that a child may take to save after SIGTERM
ORPHAN = 60.0  # seconds to wait for the child of a killed comparison


class Slot(NamedTuple):
    """Where one child runs: cores ("0,1", "" for all) and environment."""

    cores: str
    environment: dict[str, str]


class Job(NamedTuple):
    """A run to train: its command's arguments and its folder."""

    run: Run
    flags: list[str]
    workdir: pathlib.Path

    @property
    def log(self) -> pathlib.Path:
        """What the child prints."""
        return self.workdir.with_name(f"{self.workdir.name}.log")


Start = Callable[[Job, Slot], Any]  # returns what has poll(), send_signal(), wait(), kill()


def slots(jobs: int) -> list[Slot]:
    """`jobs` slots: one GPU each where nvidia-smi lists some and JAX_PLATFORMS does not exclude
    them, else an equal part of the cores. UserError for more jobs than devices."""
    gpus = _gpus()
    if gpus:
        if jobs > len(gpus):
            raise UserError(f"--jobs {jobs}: there are {len(gpus)} GPUs, one per run")
        return [Slot("", {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in gpus[:jobs]]
    if jobs == 1:
        return [Slot("", {})]
    if not hasattr(os, "sched_getaffinity"):
        raise UserError(f"--jobs {jobs}: this system cannot give a process cores of its own")
    cores = sorted(os.sched_getaffinity(0))
    if jobs > len(cores):
        raise UserError(f"--jobs {jobs}: there are {len(cores)} cores, one or more per run")
    each = len(cores) // jobs
    parts = [cores[n * each : (n + 1) * each] for n in range(jobs)]
    return [Slot(",".join(map(str, part)), {}) for part in parts]


def _gpus() -> list[str]:
    """The GPUs by index, or those of CUDA_VISIBLE_DEVICES; [] where runs use none."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if (platforms and "cuda" not in platforms) or not shutil.which("nvidia-smi"):
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(n) for n in range(len(listed.stdout.splitlines()))]


def start(job: Job, slot: Slot) -> subprocess.Popen:
    """Start a run in a session of its own, so that Ctrl-C reaches the comparison first; it ends by
    itself once the comparison is gone."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "bljust_jax.comparison.child", str(os.getpid()), slot.cores]
    with job.log.open("ab") as log:
        return subprocess.Popen(
            [*command, *job.flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **slot.environment},
            start_new_session=True,
        )


def train(
    jobs: Sequence[Job],
    finish: Callable[[Job], str],
    where: Sequence[Slot],
    status: Callable[[Sequence[Job], int], str],
    starting: Start = start,
) -> None:
    """Train the runs in order, one per slot at a time.

    finish: called with a job whose child has ended with code 0, or whose training diverged in a
        trial; returns a line for the log. status: (active jobs, jobs that wait) -> status line.

    Raises Preempted or KeyboardInterrupt for a signal, after all children have saved and ended, and
    UserError with the last line of a child that failed.
    """
    waiting, free = collections.deque(jobs), list(reversed(where))
    active: list[tuple[Job, Slot, Any]] = []
    line = StatusLine(redraw=1.0, interval=INTERVAL)
    with _signals(), _children(active):
        while waiting or active:
            while waiting and free:
                job, slot = waiting.popleft(), free.pop()
                _wait_for_orphan(job, line)
                line.log(f"{job.run.name}: {job.workdir}")
                active.append((job, slot, starting(job, slot)))
            for entry in list(active):
                job, slot, child = entry
                code = child.poll()
                if code is None:
                    continue
                active.remove(entry)
                free.append(slot)
                _check(job, code)
                line.log(finish(job))
            line.update(status([job for job, _, _ in active], len(waiting)))
            time.sleep(POLL)
    line.clear()


def _check(job: Job, code: int) -> None:
    """Raise for the exit code of a child, but for a trial that diverged."""
    diverged = job.run.kind == "trial" and (job.workdir / "not_finite.json").is_file()
    if code == cli.DONE or (code == cli.USER_ERROR and diverged):
        return
    if code == cli.PREEMPTED:
        raise Preempted("a signal that its run received")
    text = job.log.read_text(errors="replace").splitlines() if job.log.is_file() else []
    last = next((one for one in reversed(text) if one.strip()), "").removeprefix("error: ")
    raise UserError(f"{job.run.name} ended with code {code}: {last} (log: {job.log})")


def _wait_for_orphan(job: Job, line: StatusLine) -> None:
    """Wait for the child of a comparison that was killed: it saves and ends."""
    until = time.monotonic() + ORPHAN
    while True:
        try:
            run_lock.check(job.workdir)
            return
        except UserError:
            if time.monotonic() > until:
                raise
        line.update(f"{job.run.name}: waiting for a process that still trains it")
        time.sleep(POLL)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Context in which SIGTERM and SIGHUP raise Preempted."""

    def handle(number: int, frame: Any) -> None:
        raise Preempted(signal.Signals(number).name)

    with contextlib.ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                stack.callback(signal.signal, number, signal.signal(number, handle))
        yield


@contextlib.contextmanager
def _children(active: list[tuple[Job, Slot, Any]]) -> Iterator[None]:
    """Context that ends with all children ended, saved."""
    try:
        yield
    finally:
        for _, _, child in active:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for _, _, child in active:
            try:
                child.wait(timeout=END)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def progress(job: Job) -> float:
    """Share of the compute of a run that is done, by its last logged row."""
    path = job.workdir / "metrics.jsonl"
    try:
        rows = metrics.read(path) if path.is_file() else []
    except ValueError:  # the first line is being written
        rows = []
    done = next((r["compute/tflop"] for r in reversed(rows) if "compute/tflop" in r), 0.0)
    return min(done / job.run.tflop, 1.0)


def describe(active: Sequence[Job], waiting: int, total: int, seconds_per_tflop: float) -> str:
    """ "7 of 21 runs done; bljust-2-draw0-seed0 45 %; 34.0 min left"; the time once a run is done.

    seconds_per_tflop: of all slots together, 0 if unknown; the waiting runs count as the first
    active one.
    """
    shares = [progress(job) for job in active]
    parts = [f"{total - waiting - len(active)} of {total} runs done"]
    parts += [f"{j.run.name} {s:.0%}" for j, s in zip(active, shares, strict=True)]
    if seconds_per_tflop and active:
        left = sum(j.run.tflop * (1 - s) for j, s in zip(active, shares, strict=True))
        left += waiting * active[0].run.tflop
        parts.append(f"{in_hours(left * seconds_per_tflop)} left")
    return "; ".join(parts)
