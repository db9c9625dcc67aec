"""The persistent cache of compiled programs."""

from __future__ import annotations

import os
from typing import Any

import jax

Tree = Any


def keep_compiled(folder: str) -> None:
    """Compiled programs outlive the process, in `folder` ("": they do not)."""
    if folder and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
