"""Preemption: stop before the same step on all hosts after a SIGTERM on any of them."""

import contextlib
import signal
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils


def watch_for_sigterm(stack: contextlib.ExitStack) -> Callable[[int], bool]:
    """`stop_requested(step)`, to be called before each step: True once SIGTERM has arrived.

    With several processes it is True on all of them before the same step, whichever received the
    signal; jax's own handler is used then, as a second one would replace it. The old handler is
    restored when `stack` closes.
    """
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point
    arrived: list[bool] = []
    old = signal.signal(signal.SIGTERM, lambda *_: arrived.append(True))
    stack.callback(signal.signal, signal.SIGTERM, old)
    return lambda step: bool(arrived)
