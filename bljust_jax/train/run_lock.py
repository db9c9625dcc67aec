"""Lock of a workdir: one run at a time, and what a dead run left is taken over."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import logging
import os
import pathlib
import socket
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from bljust_jax.common.errors import UserError

NAME = "lock.json"
BEAT = 20.0  # seconds between two signs of life
DEAD = 120.0  # seconds without one after which a run that cannot be looked up is dead


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Context in which WORKDIR/lock.json names this process. UserError if it names another that is
    alive.

    A process of the same machine is looked up. One of another machine or container is alive if it
    has touched the file within DEAD seconds, by the clock of the file system.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path, own = workdir / NAME, _identity()
    with _alone(workdir):
        holder = _read(path)
        check(workdir)
        if path.exists():
            path.unlink()
            who = (
                f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
            )
            logging.warning("%s: a run that is dead held the lock (%s); taken over", workdir, who)
        with path.open("x", encoding="utf-8") as file:
            json.dump(own, file)
    stopped = threading.Event()
    beats = threading.Thread(target=_beat, args=(path, stopped), name="run_lock", daemon=True)
    beats.start()
    try:
        yield
    finally:
        stopped.set()
        beats.join()
        with contextlib.suppress(OSError):
            if _read(path) == own:
                path.unlink()


def check(workdir: pathlib.Path) -> None:
    """UserError if the lock of the workdir names a process that is alive; writes no file that
    stays."""
    path = workdir / NAME
    if not path.exists():
        return
    holder = _read(path)
    if _is_alive(holder, path):
        since, where = holder.get("since", "?"), holder.get("host", "another host")
        raise UserError(
            f"{workdir} is in use by process {holder.get('pid', '?')} on {where} since {since};"
            f" wait for its end, name another --workdir, or remove {path} if it is dead"
        )


def _identity() -> dict[str, Any]:
    """Who this process is: its number means the same only where host, boot and pid space do."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.datetime.now().isoformat(sep=" ", timespec="seconds"),
        "space": _pid_space(),
        "started": _started(os.getpid()),
    }


def _pid_space() -> str:
    """The boot and the namespace of process numbers; "" where the system does not say."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in ticks since the boot; "" if there is none, or it has ended."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """Context that one process at a time enters, where the file system has such locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(path: pathlib.Path) -> dict[str, Any]:
    """The content of the lock; {} if it is gone or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_alive(holder: dict[str, Any], path: pathlib.Path) -> bool:
    if holder.get("space") and holder["space"] == _pid_space():
        started = _started(holder.get("pid", 0))
        return started != "" and started == holder.get("started")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{NAME}.") as now:
            age = os.stat(now.name).st_mtime - path.stat().st_mtime
    except FileNotFoundError:  # released meanwhile
        return False
    return age < DEAD


def _beat(path: pathlib.Path, stopped: threading.Event) -> None:
    while not stopped.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)
