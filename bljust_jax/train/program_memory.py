"""Device memory that compiled programs need, and errors for those that do not fit."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax

from bljust_jax.common.errors import UserError


@contextlib.contextmanager
def report_out_of_memory(name: str, cure: str) -> Iterator[None]:
    """Turn an out-of-memory error of the device into a UserError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"a batch does not fit the device ({name}): {cure}") from error


def check_memory(program: Any, name: str, cure: str) -> None:
    """UserError for a program that needs more memory than the device has."""
    need, have = memory_needed(program), device_memory()
    if need > have:
        raise UserError(
            f"a batch needs {size(need)} of {size(have)} device memory ({name}): {cure}"
        )


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
