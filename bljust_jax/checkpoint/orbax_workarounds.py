"""Orbax workarounds: checksums before a step gets its name, error codes, silent failed writes.

Importing this module filters what Orbax and asyncio log besides the error that is raised.
"""

import contextlib
import logging
import pathlib
import re
import shutil
import sys
import threading
import time
from typing import Any

import jax
from orbax.checkpoint.path import atomicity

from bljust_jax.checkpoint import integrity

TEMPORARY = atomicity.TMP_DIR_SUFFIX  # in the names of steps that are not committed


class ChecksummedPath(atomicity.AtomicRenameTemporaryPath):
    """A temporary step folder whose checksums are written after all its files and before it gets
    its final name, so that no kill leaves a step without them. The items of a step (state, best,
    meta) are renamed as usual."""

    async def finalize(self) -> None:
        step = self._final_path
        if TEMPORARY in step.parent.name:
            return await super().finalize()
        self._final_path = step.with_name(f"{self.get().name}-whole")
        await super().finalize()
        whole, self._final_path = self._final_path, step
        integrity.write_sums(pathlib.Path(whole))
        whole.rename(step)


def error_code(error: Exception) -> int | None:
    """The errno of a failed write; None for other errors. TensorStore puts it into a message."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else None


def abandon(manager: Any, folder: pathlib.Path) -> None:
    """Give up a manager after a failed write and remove its temporary folders.

    It repeats its error for good, may still be writing, and of several processes would wait for
    the others."""
    if jax.process_count() == 1:
        with contextlib.suppress(ValueError, OSError):
            manager.close()
        for thread in threading.enumerate():
            if type(thread).__module__.startswith("orbax."):
                threading.Thread.join(thread, timeout=10)
    for _ in range(4):  # threads that cannot be joined may still be making folders
        for left in folder.glob(f"*{TEMPORARY}*"):
            shutil.rmtree(left, ignore_errors=True)
        time.sleep(0.1)


def _is_repeated(record: logging.LogRecord) -> bool:
    """Orbax logs the traceback of each of its threads and then raises the same error; and it warns
    three times that what was opened read-only is read-only."""
    repeated = record.exc_info is not None or re.search("read.only=", str(record.msg))
    return "orbax" in record.pathname and bool(repeated)


def _is_failed_write(record: logging.LogRecord) -> bool:
    """asyncio logs each failed write besides the one that Orbax raises."""
    error = record.exc_info and record.exc_info[1]
    return isinstance(error, Exception) and error_code(error) is not None


logging.getLogger("absl").addFilter(lambda record: not _is_repeated(record))
logging.getLogger("asyncio").addFilter(lambda record: not _is_failed_write(record))


def _report_unraisable(unraisable: Any, report: Any = sys.unraisablehook) -> None:
    """Skip what Python reports of the other writes after a failed write of Orbax: that they were
    never awaited and that their event loop is closed."""
    code = getattr(unraisable.object, "cr_code", None)
    ours = code is not None and "orbax" in code.co_filename
    if not ours and str(unraisable.exc_value) != "Event loop is closed":
        report(unraisable)


sys.unraisablehook = _report_unraisable
