"""Console output on stderr: log lines, and a status line that stays in place on a terminal."""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Iterator


def log(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def log_if_slow(text: str, *, active: bool = True, after: float = 2.0) -> Iterator[None]:
    """Print a line, what is being done, once the context has lasted `after` seconds."""
    timer = threading.Timer(after, log, [text])
    timer.daemon = True
    if active:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


class StatusLine:
    """Log lines, and below them one status line.

    On a terminal the status line is redrawn in place, at most every `redraw` seconds. Elsewhere a
    status is printed as a line of its own at most every `interval` seconds, by default never.
    An inactive one prints nothing.
    """

    def __init__(self, *, active: bool = True, redraw: float = 0.0, interval: float = math.inf):
        self._active, self._terminal = active, sys.stderr.isatty()
        self._period = redraw if self._terminal else interval
        self._shown_at = time.monotonic()
        self._width = 0  # of the status on the terminal

    def log(self, text: str) -> None:
        """Print a line; the status line is cleared first."""
        if self._active:
            self.clear()
            log(text)

    def update(self, text: str) -> None:
        """Show a status, unless the last one is too recent."""
        now = time.monotonic()
        if not self._active or now - self._shown_at < self._period:
            return
        self._shown_at = now
        if self._terminal:
            print(text.ljust(self._width), end="\r", file=sys.stderr, flush=True)
            self._width = len(text)
        else:
            log(text)

    def clear(self) -> None:
        """Erase the status line, to make room for other output on the same terminal."""
        if self._width:
            print(" " * self._width, end="\r", file=sys.stderr, flush=True)
            self._width = 0
