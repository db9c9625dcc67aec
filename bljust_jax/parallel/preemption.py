"""Signals that end a run: SIGTERM, SIGHUP and SIGINT (Ctrl-C), received by any of its hosts."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

from bljust_jax.common.cli import INTERRUPTED, PREEMPTED, STOPPED
from bljust_jax.common.errors import Preempted

SIGNALS = ("SIGTERM", "SIGHUP", "SIGINT")
AGAIN = "SIGINT: the run saves before its next step; a second one ends it at once\n"
AT_ONCE = "second SIGINT: ended at once; run the same command again to resume\n"


class Abandoned(Exception):
    """An evaluation, or waiting for a program, ended before its time: the run saves and ends."""


class StopSignals:
    """Handlers of the signals that end a run, until `stack` closes; for the main thread.

    A signal ends the run at once, by `Preempted`, or `KeyboardInterrupt` for SIGINT, except between
    `save_first()` and `end_at_once()`, when it is recorded for `requested`. A second SIGINT exits
    the process. SIGHUP stays ignored where it is (nohup). `abandon_if_requested` leaves
    what may take long in between.

    With several processes SIGTERM is left to jax's own handler, as a second one would replace it;
    the others are forwarded to it, so that all processes stop before the same step.
    """

    def __init__(self, stack: contextlib.ExitStack):
        import jax

        self._hosts = jax.process_count()
        self._saves_first = False
        self.received: list[str] = []
        for name in SIGNALS[self._hosts > 1 :]:
            number = getattr(signal, name)
            if signal.getsignal(number) is not signal.SIG_IGN:
                stack.callback(signal.signal, number, signal.signal(number, self._handle))

    @property
    def cause(self) -> str:
        """The first signal received; with several processes it may have reached another one."""
        return (self.received or ["SIGTERM"])[0]

    def requested(self, step: int) -> bool:
        """Whether to save and stop before this step; the same on all processes."""
        if self._hosts == 1:
            return bool(self.received)
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    @property
    def received_alone(self) -> bool:
        """Whether a signal was received that no other process must agree to."""
        return bool(self.received) and self._hosts == 1

    def abandon_if_requested(self) -> None:
        """Raise `Abandoned` once a signal was received that the run saves for. Never with several
        processes, which agree before a step only."""
        if self._saves_first and self.received_alone:
            raise Abandoned

    def save_first(self) -> None:
        """From now on the run polls `requested`."""
        self._saves_first = True

    def end_at_once(self) -> None:
        """From now on there is nothing to save; raises for a signal received before."""
        self._saves_first = False
        if self.received_alone:
            self.end()

    @property
    def interrupted(self) -> bool:
        """Whether to exit as Ctrl-C does; with several processes all exit as after SIGTERM."""
        return self._hosts == 1 and self.cause == "SIGINT"

    def end(self) -> None:
        """Raise the exception of the first signal received."""
        raise KeyboardInterrupt if self.cause == "SIGINT" else Preempted(self.cause)

    def _handle(self, number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT" and name in self.received:
            _write(AT_ONCE)
            os._exit(INTERRUPTED)
        self.received.append(name)
        if name == "SIGINT" and self._saves_first:
            _write(AGAIN)
        if self._hosts > 1 and (self._saves_first or name == "SIGHUP"):
            signal.raise_signal(signal.SIGTERM)
        elif not self._saves_first:
            self.end()


@contextlib.contextmanager
def exit_at_once() -> Iterator[None]:
    """Context in which SIGTERM and Ctrl-C exit the process: before a run has its own handlers there
    is nothing to save, and an exception raised while jax is imported can crash the interpreter."""
    codes = {"SIGTERM": PREEMPTED, "SIGINT": INTERRUPTED}

    def handle(number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        _write(f"{STOPPED.format(name)}\n")
        os._exit(codes[name])

    with contextlib.ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)
            if before in (signal.SIG_DFL, signal.default_int_handler):
                stack.callback(signal.signal, number, signal.signal(number, handle))
        yield


def _write(text: str) -> None:
    """Write to stderr from a signal handler, which may have interrupted another write."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
