"""Compiled training steps: one per phase and batch shape; compile time and memory are logged."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from bljust_jax.bilevel.types import Means, TrainState, Tree
from bljust_jax.common.errors import UserError
from bljust_jax.monitoring.goodput import Clock

CURE = "lower config.data.batch_seconds or set config.model.remat=full, config.accumulate=2"


class CompiledSteps:
    """The compiled step of each phase and batch shape.

    jitted: {phase: its jitted step}
    total: number of programs that the whole run is expected to compile, for the log

    Compiling ahead of the first call gives the memory of a batch shape before anything is trained:
    UserError if it exceeds that of the device.
    """

    def __init__(
        self, jitted: dict[str, Any], total: int, log: Callable[[str], None], clock: Clock
    ):
        self._jitted, self._total, self._log, self._clock = jitted, total, log, clock
        self._compiled: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._compiled)

    def run(self, phase: str, state: TrainState, batch: Tree) -> tuple[TrainState, Means]:
        """One step; the state is donated."""
        program = self.compile(phase, state, batch)
        with _report_out_of_memory(_describe(phase, batch)):
            return program(state, batch)

    def compile(self, phase: str, state: TrainState, batch: Tree) -> Any:
        """The program for batches of this shape, compiled on first use."""
        name = _describe(phase, batch)
        if name not in self._compiled:
            self._log(f"compiling program {len(self) + 1} of {self._total}: {name}")
            began = time.monotonic()
            with self._clock.on("compile"), _report_out_of_memory(name):
                program = self._jitted[phase].lower(state, batch).compile()
            need, have = memory_needed(program), device_memory()
            self._log(f"  {time.monotonic() - began:.0f} s; {size(need)} of {size(have)} memory")
            if need > have:
                raise UserError(
                    f"a batch needs {size(need)} of {size(have)} device memory ({name}): {CURE}"
                )
            self._compiled[name] = program
        return self._compiled[name]


def _describe(phase: str, batch: Tree) -> str:
    """joint, labelled 8 x 64000, unlabelled 8 x 64000 samples."""
    shapes = {stream: arrays["audio"].shape for stream, arrays in sorted(batch.items())}
    sizes = (f"{stream} {rows} x {samples}" for stream, (rows, samples) in shapes.items())
    return f"{phase}, {', '.join(sizes)} samples"


@contextlib.contextmanager
def _report_out_of_memory(name: str) -> Iterator[None]:
    """Turn an out-of-memory error of the device into a UserError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"a batch does not fit the device ({name}): {CURE}") from error


def memory_needed(program: Any) -> int:
    """Bytes per device that a program needs: arguments, results and temporaries."""
    m = program.memory_analysis()
    kept = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return kept + m.temp_size_in_bytes


def device_memory() -> int:
    """Bytes that a device may use; for a CPU device its share of the machine's memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return stats.get("bytes_limit", machine // jax.local_device_count())


def size(count: int) -> str:
    """310 MiB, 12.5 GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
