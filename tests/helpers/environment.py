"""Environment variables of the tests, to be set before jax is imported."""

import os

from tests.helpers import compile_cache, xla_flags


def set_up() -> None:
    """Eight CPU devices, quick compilation, the shared compile cache; what is set stays."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
    if os.environ["JAX_PLATFORMS"] == "cpu":
        # `make quickstart` and the commands keep XLA's default
        os.environ.setdefault("XLA_FLAGS", xla_flags.quick_to_compile())
    compile_cache.enable()
