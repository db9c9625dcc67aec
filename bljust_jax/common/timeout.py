"""Call a function with a timeout: for hosts, devices and disks that may never answer."""

import concurrent.futures
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

POLL = 0.2  # seconds between two looks
_late: list[concurrent.futures.Future] = []  # that did not end in time


class Unreachable(Exception):
    """A host, device or disk did not answer in time; a restart may help. The message is one line
    that names the cure."""


def call_with_timeout(
    seconds: float | int, function: Callable[[], Any], message: Callable[[], str]
) -> Any:
    """The result of `function()`, or its exception; raises Unreachable(message()) after `seconds`.

    The call cannot be cancelled: after a timeout its thread runs until the process ends.
    """
    return result(_start(function), seconds, message)


def call_while(
    alive: Callable[[], bool], function: Callable[[], Any], message: Callable[[], str]
) -> Any:
    """The result of `function()`, or its exception; raises Unreachable(message()) once `alive()` is
    False. Like `call_with_timeout`, which see."""
    future = _start(function)
    while not concurrent.futures.wait([future], POLL).done:
        if not alive():
            return result(future, POLL, message)
    return future.result()


def _start(function: Callable[[], Any]) -> concurrent.futures.Future:
    """The future result of `function()`, called in a thread that no exit waits for."""
    future: concurrent.futures.Future = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def result(
    future: concurrent.futures.Future, seconds: float | int | None, message: Callable[[], str]
) -> Any:
    """The result of a future, or its exception; raises Unreachable(message()) after `seconds`, None
    for no limit. A result that is there costs no change of threads.

    The call cannot be cancelled: after a timeout its thread runs until the process ends.
    """
    done, _ = concurrent.futures.wait([future], seconds)
    if not done:
        _late.append(future)
        raise Unreachable(message())
    return future.result()


def has_pending_calls() -> bool:
    """Whether a call that timed out is still running."""
    return not all(future.done() for future in _late)


def exit_with_pending_calls(code: int) -> None:
    """Exit now if a call that timed out is still running, as an orderly exit would wait for it;
    else return."""
    if has_pending_calls():
        exit_now(code)


def exit_now(code: int) -> None:
    """Exit without waiting for threads."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
