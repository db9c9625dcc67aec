"""Preemption: stop before the same step on all hosts after a SIGTERM or SIGHUP on any of them."""

import contextlib
import signal
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils


def watch_for_sigterm(stack: contextlib.ExitStack) -> Callable[[int], bool]:
    """`stop_requested(step)`, to be called before each step: True once SIGTERM has arrived, or
    SIGHUP, the end of a terminal, unless it is ignored (nohup).

    With several processes it is True on all of them before the same step, whichever received the
    signal; jax's own handler is used then, as a second one would replace it. The old handlers are
    restored when `stack` closes.
    """
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        old = signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
        stack.callback(signal.signal, signal.SIGHUP, old)
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point
    arrived: list[bool] = []
    old = signal.signal(signal.SIGTERM, lambda *_: arrived.append(True))
    stack.callback(signal.signal, signal.SIGTERM, old)
    return lambda step: bool(arrived)
