"""The compiled train steps: one a phase and batch shape, said aloud with its time and memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import jax

from bljust_jax.errors import UserError
from bljust_jax.system import Means, TrainState, Tree

CURE = "lower config.data.batch_seconds or set config.model.remat=True"


class Programs:
    """`jitted[phase]` is the step of a phase; `total` programs are expected in the whole run.

    Compiling ahead of the first call tells what a batch shape needs before anything is trained:
    UserError where that is more than the device has.
    """

    def __init__(self, jitted: dict[str, Any], total: int, say: Callable[[str], None]):
        self._jitted, self._total, self._say = jitted, total, say
        self._compiled: dict[tuple, Any] = {}

    def __len__(self) -> int:
        return len(self._compiled)

    def run(self, phase: str, state: TrainState, batch: Tree) -> tuple[TrainState, Means]:
        """One step; the state is donated."""
        return self.compile(phase, state, batch)(state, batch)

    def compile(self, phase: str, state: TrainState, batch: Tree) -> Any:
        """The program for batches of this shape, compiled on first use."""
        shapes = {name: arrays["audio"].shape for name, arrays in sorted(batch.items())}
        key = (phase, *shapes.items())
        if key not in self._compiled:
            sizes = ", ".join(f"{name} {rows} x {n}" for name, (rows, n) in shapes.items())
            self._say(
                f"compiling program {len(self) + 1} of {self._total}: {phase}, {sizes} samples"
            )
            began = time.monotonic()
            program = _compile(self._jitted[phase], state, batch, f"phase {phase}, {sizes}")
            need, have = memory_needed(program), memory_present()
            self._say(f"  {time.monotonic() - began:.0f} s; {size(need)} of {size(have)} memory")
            _check_fits(need, have, f"phase {phase}, {sizes} samples")
            self._compiled[key] = program
        return self._compiled[key]


def _compile(step: Any, state: TrainState, batch: Tree, what: str) -> Any:
    try:
        return step.lower(state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"the largest batch does not fit the device ({what}): {CURE}") from error


def _check_fits(need: int, have: int, what: str) -> None:
    if need > have:
        raise UserError(
            f"a batch needs {size(need)} of {size(have)} device memory ({what}): {CURE}"
        )


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


def keep_compiled(folder: str) -> None:
    """Compiled programs outlive the process, in `folder` ("": they do not)."""
    if folder and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
