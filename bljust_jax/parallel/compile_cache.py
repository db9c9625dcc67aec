"""Persistent cache of compiled programs (`config.compile_cache`)."""

import os

import jax


def enable_compile_cache(folder: str) -> None:
    """Keep compiled programs in `folder` for later processes; "" disables the cache.
    JAX_COMPILATION_CACHE_DIR takes precedence."""
    if folder and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
