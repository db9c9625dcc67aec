"""One MLIR context for many small programs: making one takes half of what it takes to trace, lower
and read a program of one operation, and tests run thousands of them eagerly."""

import threading

from jax._src.interpreters import mlir

PROGRAMS = 64  # constants stay in a context, so it is replaced after that many


def share() -> None:
    """Let the programs of the main thread share contexts; each other thread makes its own. The
    function is private to jax: without it, tests are slower."""
    make, kept = getattr(mlir, "make_ir_context", None), []
    if make is None:
        return

    def make_ir_context():
        if threading.current_thread() is not threading.main_thread():
            return make()
        if not kept:
            kept.extend([make()] * PROGRAMS)
        return kept.pop()

    mlir.make_ir_context = make_ir_context
