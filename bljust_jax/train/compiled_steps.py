"""The compiled train steps: one a phase and batch shape, said aloud with its time and memory."""

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
    """`jitted[phase]` is the step of a phase; `total` programs are expected in the whole run.

    Compiling ahead of the first call tells what a batch shape needs before anything is trained:
    UserError where that is more than the device has.
    """

    def __init__(
        self, jitted: dict[str, Any], total: int, say: Callable[[str], None], clock: Clock
    ):
        self._jitted, self._total, self._say, self._clock = jitted, total, say, clock
        self._compiled: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._compiled)

    def run(self, phase: str, state: TrainState, batch: Tree) -> tuple[TrainState, Means]:
        """One step; the state is donated."""
        program = self.compile(phase, state, batch)
        with _saying_what_does_not_fit(_name(phase, batch)):
            return program(state, batch)

    def compile(self, phase: str, state: TrainState, batch: Tree) -> Any:
        """The program for batches of this shape, compiled on first use."""
        what = _name(phase, batch)
        if what not in self._compiled:
            self._say(f"compiling program {len(self) + 1} of {self._total}: {what}")
            began = time.monotonic()
            with self._clock.on("compile"), _saying_what_does_not_fit(what):
                program = self._jitted[phase].lower(state, batch).compile()
            need, have = memory_needed(program), memory_present()
            self._say(f"  {time.monotonic() - began:.0f} s; {size(need)} of {size(have)} memory")
            if need > have:
                raise UserError(
                    f"a batch needs {size(need)} of {size(have)} device memory ({what}): {CURE}"
                )
            self._compiled[what] = program
        return self._compiled[what]


def _name(phase: str, batch: Tree) -> str:
    """joint, labelled 8 x 64000, unlabelled 8 x 64000 samples."""
    shapes = {stream: arrays["audio"].shape for stream, arrays in sorted(batch.items())}
    sizes = (f"{stream} {rows} x {samples}" for stream, (rows, samples) in shapes.items())
    return f"{phase}, {', '.join(sizes)} samples"


@contextlib.contextmanager
def _saying_what_does_not_fit(what: str) -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"a batch does not fit the device ({what}): {CURE}") from error


def memory_needed(program: Any) -> int:
    """Bytes a device that a program holds while it runs: arguments, results and temporaries."""
    m = program.memory_analysis()
    kept = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return kept + m.temp_size_in_bytes


def memory_present() -> int:
    """Bytes that a device may use: the accelerator's, or this machine's memory a CPU device."""
    stats = jax.local_devices()[0].memory_stats() or {}
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return stats.get("bytes_limit", machine // jax.local_device_count())


def size(count: int) -> str:
    """310 MiB, 12.5 GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
