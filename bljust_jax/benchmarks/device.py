"""Measure the items of `device_items` on this machine's device, and resume with missing ones.

Each item is printed and written to a JSON file as it ends.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bljust_jax.benchmarks.device_names import ITEMS, Item
from bljust_jax.common.console import log
from bljust_jax.common.errors import UserError
from bljust_jax.common.files import write_text

Answer = dict[str, Any]


class Worker:
    """A `device_worker` under the given XLA flags."""

    def __init__(self, flags: str):
        self.flags = flags
        env = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
        command = [sys.executable, "-m", "bljust_jax.benchmarks.device_worker"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True)
        self.machine = self._read()
        if "error" in self.machine:
            raise UserError(f"the device cannot be measured: {self.machine['error']}")

    def measure(self, name: str) -> Answer:
        """The answer for an item; {"error"} if its process ends."""
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> Answer:
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        return {"error": f"the process ended with exit code {self.process.wait()}"}

    @property
    def ended(self) -> bool:
        """Whether its process has ended."""
        return self.process.poll() is not None

    def close(self) -> None:
        """End its process, which frees the device."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def choose(text: str) -> list[Item]:
    """The items whose name contains one of the texts, in the order of `ITEMS`; all for "".
    UserError if there is none."""
    wanted = [part for part in text.split(",") if part] or [""]
    found = [item for item in ITEMS if any(part in item.name for part in wanted)]
    if not found:
        raise UserError(f"--items={text}: no item of that name; --list prints them")
    return found


def measure(
    items: Sequence[Item],
    target: pathlib.Path | None,
    *,
    again: bool = False,
    start: Callable[[str], Any] = Worker,
) -> int:
    """Measure the items that the file lacks, or all if `again`; returns the number of failures.

    target: a JSON file, or a folder for <device>-items.json in it; None writes nothing. An item
    that failed is measured again by the next call, one that the machine cannot measure is not.
    """
    worker = start(items[0].flags)
    try:
        path = file_of(target, worker.machine)
        kept = read(path)
        results = {"machine": worker.machine, "items": kept}
        missing = [i for i in items if again or not is_done(kept.get(i.name))]
        log(f"{len(missing)} of {len(items)} items to measure")
        for item in missing:
            if worker.ended or worker.flags != item.flags:
                worker.close()
                worker = start(item.flags)
            answer = worker.measure(item.name)
            kept[item.name] = answer | {"date": time.strftime("%Y-%m-%d"), "flags": item.flags}
            print(f"{item.name}: {describe(answer)}", flush=True)
            if path:
                write_text(path, json.dumps(results, indent=1) + "\n")
        failed = [i.name for i in missing if "error" in kept[i.name]]
    finally:
        worker.close()
    if failed:
        log(f"failed: {', '.join(failed)}; the same command tries them again")
    return len(failed)


def is_done(answer: Answer | None) -> bool:
    """Whether an item needs no further measurement."""
    return answer is not None and "error" not in answer


def file_of(target: pathlib.Path | None, machine: dict[str, Any]) -> pathlib.Path | None:
    """The JSON file."""
    if target is None or target.suffix == ".json":
        return target
    device = re.sub(r"\W+", "-", machine["device"]).strip("-")
    return target / f"{device}-items.json"


def read(path: pathlib.Path | None) -> dict[str, Answer]:
    """Items of the file, {} without one; UserError if it is damaged."""
    if path is None or not path.exists():
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))["items"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a file of measured items: move it away") from error


def describe(answer: Answer) -> str:
    """One line."""
    for name in ("error", "absent"):
        if name in answer:
            return f"{name}: {answer[name]}"
    return f"{', '.join(parts(answer['value']))} ({answer['seconds']:.1f} s)"


def parts(value: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """ "name value" of each number or text; lists are left to the file."""
    for name, x in value.items():
        if isinstance(x, dict):
            yield from parts(x, f"{prefix}{name} ")
        elif isinstance(x, float):
            yield f"{prefix}{name} {x:.4g}"
        elif not isinstance(x, list):
            yield f"{prefix}{name} {x}"
