"""Keep XLA's alarm about slow compilation, which asks for a bug report, from stderr.

XLA has no option for it. While programs are compiled stderr is a pipe, whose lines a thread writes
to the former stderr, but those of the alarm.
"""

import contextlib
import os
import re
import select
import sys
import threading
from collections.abc import Iterator

STDERR = 2
WAIT = 0.05  # seconds after which a line without an end, such as a status line, is written
END = b"\0end of the pipe\0\n"  # written by `_Filter.close`
ALARM = re.compile(rb".*slow_operation_alarm\.cc:\d+\]|\*{32}\n|.*Very slow compile\?")

_lock = threading.Lock()
_users = 0
_filter: "_Filter | None" = None


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Context, for any number of threads at once, in which the alarm is not shown."""
    global _users, _filter
    with _lock:
        _users += 1
        if _filter is None:
            with contextlib.suppress(OSError):  # without a stderr nothing is to be hidden
                _filter = _Filter()
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users and _filter is not None:
                _filter.close()
                _filter = None


class _Filter:
    """stderr through a pipe, until it is closed. Processes that were started meanwhile keep the
    pipe as their stderr, so its thread lives as long as they do."""

    def __init__(self):
        self._out = os.dup(STDERR)
        self._read, write = os.pipe()
        self._pipe = os.fstat(write)[1:3]  # inode and device
        self._drained, self._in_alarm = threading.Event(), False
        sys.stderr.flush()
        os.dup2(write, STDERR)
        os.close(write)
        threading.Thread(target=self._forward, name="stderr", daemon=True).start()

    def close(self) -> None:
        """Restore stderr, once all that was written is forwarded; nothing where another file has
        become stderr meanwhile."""
        sys.stderr.flush()
        if os.fstat(STDERR)[1:3] == self._pipe:
            os.write(STDERR, END)
            os.dup2(self._out, STDERR)
            self._drained.wait()

    def _forward(self) -> None:
        held = b""  # the last line while it has no end
        while True:
            if held and not select.select([self._read], [], [], WAIT)[0]:
                self._write(held)
                held = b""
            data = os.read(self._read, 1 << 16)
            if not data:
                break
            *lines, held = (held + data).splitlines(keepends=True)
            if held.endswith(b"\n"):
                lines, held = [*lines, held], b""
            for line in lines:
                text = line.removesuffix(END)
                if text and not self._is_alarm(text):
                    self._write(text)
                if text != line:
                    self._drained.set()
        self._write(held)
        os.close(self._read)
        os.close(self._out)

    def _is_alarm(self, line: bytes) -> bool:
        """Whether a line is of the alarm, as are empty lines after one that is."""
        self._in_alarm = bool(ALARM.match(line)) or (self._in_alarm and line == b"\n")
        return self._in_alarm

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # a terminal that has gone
            while data:
                data = data[os.write(self._out, data) :]
