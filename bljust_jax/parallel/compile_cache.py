"""Persistent cache of compiled programs (`config.compile_cache`)."""

import logging
import os

import jax

from bljust_jax.common.errors import UserError
from bljust_jax.common.files import expand_user


def enable_compile_cache(folder: str) -> None:
    """Keep compiled programs in `folder` for later processes; "" disables the cache, as does an
    unknown home folder. JAX_COMPILATION_CACHE_DIR takes precedence."""
    if folder and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        try:
            folder = expand_user(folder)
        except UserError as error:
            logging.warning("no cache of compiled programs: %s", error)
            return
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
