"""Waiting for what may never come: other hosts, a device, a disk that has gone away."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

WAITED_FOR = "waited for"  # name of the threads of `within`


class Unreachable(Exception):
    """Something outside this process did not answer in time; another start may mend it. The message
    is one line that names the cure."""


def within(seconds: float | int, body: Callable[[], Any], why: Callable[[], str]) -> Any:
    """What `body()` returns or raises; Unreachable(why()) if it does neither in time. It cannot be
    stopped then, and goes on until the process ends."""
    outcome: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((body(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, name=WAITED_FOR, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise Unreachable(why())
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def in_vain() -> bool:
    """Whether a body of `within` still has not come back."""
    return any(thread.name == WAITED_FOR for thread in threading.enumerate())
