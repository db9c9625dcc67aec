"""Measure items of `device_items` in a process of their own: a name per line of stdin.

Prints a line of JSON for each; the first line describes the machine. An item that aborts ends this
process alone, and XLA flags can differ.
"""

import json
import os
import sys
import time
import traceback
from typing import Any, TextIO

from bljust_jax.common.errors import UserError


def serve(names: TextIO, answers: TextIO) -> None:
    """Answer each name with {"seconds", "value"}, or instead of the value "absent", the reason why
    this machine cannot measure it, or "error"."""
    from bljust_jax.benchmarks import device_items
    from bljust_jax.benchmarks.machine import machine

    def answer(found: dict[str, Any]) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    answer(machine())
    for line in names:
        began, found = time.perf_counter(), {}
        try:
            found["value"] = device_items.measure(line.strip())
        except UserError as error:
            found["absent"] = str(error)
        except Exception as error:  # recorded and printed; the command fails in the end
            traceback.print_exc()
            found["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        answer(found | {"seconds": round(time.perf_counter() - began, 2)})


if __name__ == "__main__":
    protocol = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not enter the protocol
    serve(sys.stdin, protocol)
