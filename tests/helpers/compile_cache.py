"""The folder of compiled programs that test workers, runs and CI jobs share."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform

VARIABLE = "BLJUST_TEST_CACHE"
MAX_BYTES = 2 << 30
MIN_COMPILE_SECONDS = "0"  # programs of one operation too: compiled in 9 ms, read in 1


def folder() -> pathlib.Path | None:
    """`$BLJUST_TEST_CACHE`, None for "off"; by default a folder of the user's cache, one for each
    version of jax and Python, XLA flags and kind of CPU."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen == "off":
        return None
    if chosen:
        return pathlib.Path(chosen).absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    versions = f"jax{importlib.metadata.version('jax')}-python{platform.python_version()}"
    machine = f"{os.environ.get('XLA_FLAGS', '')}\n{platform.machine()}\n{cpu_features()}"
    key = hashlib.sha256(machine.encode()).hexdigest()[:8]
    return pathlib.Path(cache, "bljust_jax", "tests", f"{versions}-{key}")


def cpu_features() -> str:
    """The instruction sets of this CPU, which XLA compiles for; "" on systems other than Linux."""
    listing = pathlib.Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def enable() -> None:
    """Set the cache for this process and its children, before jax is imported."""
    chosen = folder()
    if chosen is None:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return
    if "PYTEST_XDIST_WORKER" not in os.environ:
        delete_oldest(chosen, MAX_BYTES)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(chosen)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = MIN_COMPILE_SECONDS


def delete_oldest(cache: pathlib.Path, max_bytes: int) -> None:
    """Delete the programs written first until the rest fit. `jax_compilation_cache_max_size` would
    need another package and read the whole folder, under a lock, for every program written."""
    files = {path: path.stat() for path in cache.glob("*") if path.exists()}
    excess = sum(stat.st_size for stat in files.values()) - max_bytes
    for path, stat in sorted(files.items(), key=lambda item: item[1].st_mtime):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= stat.st_size
