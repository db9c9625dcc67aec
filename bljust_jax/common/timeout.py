"""Call a function with a timeout: for hosts, devices and disks that may never answer."""

import threading
from collections.abc import Callable
from typing import Any

THREAD_NAME = "call_with_timeout"


class Unreachable(Exception):
    """A host, device or disk did not answer in time; a restart may help. The message is one line
    that names the cure."""


def call_with_timeout(
    seconds: float | int, function: Callable[[], Any], message: Callable[[], str]
) -> Any:
    """The result of `function()`, or its exception; raises Unreachable(message()) after `seconds`.

    The call cannot be cancelled: after a timeout its thread runs until the process ends.
    """
    outcome: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, name=THREAD_NAME, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise Unreachable(message())
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def has_pending_calls() -> bool:
    """Whether a call that timed out is still running."""
    return any(thread.name == THREAD_NAME for thread in threading.enumerate())
