"""Compile programs in background threads, in a given order, while training runs.

XLA compiles without the interpreter's lock; tracing shares it with the training loop. Nothing is
executed in the threads, so that the processes of several hosts need not agree on their progress.
The threads are daemons: a run that ends does not wait for them, see `is_compiling`.
"""

import collections
import functools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import jax
from jax.sharding import Mesh

from bljust_jax.common import compile_alarm
from bljust_jax.monitoring.goodput import Clock
from bljust_jax.train.program_memory import (
    check_memory,
    device_memory,
    memory_needed,
    report_out_of_memory,
    size,
)

POLL = 0.1  # seconds between looks at a program that is awaited
MOST = 8  # threads by default: each compilation takes up to some GiB of host memory
EVALUATION_CURE = "lower config.data.eval_batch_seconds"
_threads: set[threading.Thread] = set()


def is_compiling() -> bool:
    """Whether a thread of a pool is still compiling."""
    return any(thread.is_alive() for thread in _threads)


class Job:
    """One program to compile.

    name: what it is, for messages; cure: the advice if it does not fit the device
    lower() -> the lowered program; called under the mesh of the pool, in any thread
    """

    def __init__(self, name: str, cure: str, lower: Callable[[], Any]):
        self.name, self.cure, self._lower = name, cure, lower
        self.seconds = 0.0
        self.future: Future = Future()

    def run(self, mesh: Mesh, tracing: threading.Lock) -> None:
        """Lower and compile, and check the memory; the program or the error goes to `future`.

        Jobs are lowered one at a time: that takes the interpreter's lock anyway, and the first in
        the order is ready first."""
        try:
            with jax.set_mesh(mesh), report_out_of_memory(self.name, self.cure):
                with tracing:
                    began = time.monotonic()
                    lowered = self._lower()
                with compile_alarm.hidden():
                    program = lowered.compile()
            self.seconds = time.monotonic() - began
            check_memory(program, self.name, self.cure)
        except BaseException as error:  # raised in the main thread, by `CompilePool.report`
            self.future.set_exception(error)
        else:
            self.future.set_result(program)


class CompilePool:
    """Threads that compile jobs in the order of `submit`; for one calling thread."""

    def __init__(
        self,
        mesh: Mesh,
        threads: int,
        log: Callable[[str], None],
        clock: Clock,
        check: Callable[[], None] = lambda: None,
    ):
        """threads: 0 = one per core of this process, at most `MOST`; check() is called every `POLL`
        seconds while the caller waits, and may raise."""
        self._mesh, self.log, self._clock, self.check = mesh, log, clock, check
        self._limit = threads or min(len(os.sched_getaffinity(0)), MOST)
        self.jobs: list[Job] = []
        self._queue: collections.deque[Job] = collections.deque()
        self._finished: collections.deque[Job] = collections.deque()
        self._lock, self._tracing, self._busy = threading.Lock(), threading.Lock(), 0
        self._own: list[threading.Thread] = []

    def submit(self, job: Job) -> None:
        """Compile a job after those before it."""
        self.jobs.append(job)
        with self._lock:
            self._queue.append(job)
            if self._busy == self._limit:
                return
            self._busy += 1
        self._start(self._work)

    def _start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            work()
            _threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name="compile", daemon=True)
        self._own.append(thread)
        _threads.add(thread)
        thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._busy -= 1
                    return
                job = self._queue.popleft()
            self._compile(job)

    def _compile(self, job: Job) -> None:
        job.run(self._mesh, self._tracing)
        self._finished.append(job)

    def wait(self, job: Job) -> Any:
        """The program of a job; raises the error of its compilation. The time counts as "compile".

        A job that no thread has begun gets a thread of its own, so that the caller gets signals.
        """
        with self._clock.on("compile"):
            with self._lock:
                waiting = job in self._queue
                if waiting:
                    self._queue.remove(job)
            if waiting:
                self._start(functools.partial(self._compile, job))
            while not job.future.done():
                try:
                    job.future.exception(POLL)
                except TimeoutError:
                    self.report()
                    self.check()
            self.report()
        return job.future.result()

    def report(self) -> None:
        """Log the programs compiled since the last call; raises the error of one, as the run will
        fail where it is needed."""
        while self._finished:
            job = self._finished.popleft()
            program = job.future.result()
            need, have = size(memory_needed(program)), size(device_memory())
            self.log(f"{self.position(job)}: {job.seconds:.0f} s; {need} of {have} memory")

    def expected(self) -> str:
        """Mean seconds of the programs compiled so far, in words; "" before the first."""
        took = [job.seconds for job in self.jobs if job.seconds]
        return f"; those before it took {sum(took) / len(took):.0f} s on average" if took else ""

    def position(self, job: Job) -> str:
        """program 2 of 7 (training, explore, joint: labelled 8 x 64000 samples)."""
        return f"program {self.jobs.index(job) + 1} of {len(self.jobs)} ({job.name})"

    def close(self, seconds: float | int = 1) -> None:
        """Drop the jobs that no thread has begun, and wait up to `seconds` for the others."""
        with self._lock:
            dropped, self._queue = list(self._queue), collections.deque()
        for job in dropped:
            job.future.cancel()
        until = time.monotonic() + seconds
        for thread in self._own:
            thread.join(max(until - time.monotonic(), 0.0))
