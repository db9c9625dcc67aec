"""The platform that a program is traced for: of this machine, or of a compilation ahead of time."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_AHEAD: ContextVar[str] = ContextVar("ahead", default="")


def platform() -> str:
    """ "cpu", "gpu" or "tpu": that of `compile_for`, else `jax.default_backend()`."""
    return _AHEAD.get() or jax.default_backend()


def is_ahead() -> bool:
    """Whether the device that the program is for is absent."""
    return bool(_AHEAD.get())


@contextlib.contextmanager
def compile_for(name: str) -> Iterator[None]:
    """Programs traced inside are for devices of this platform, which may be absent."""
    token = _AHEAD.set(name)
    try:
        yield
    finally:
        _AHEAD.reset(token)
