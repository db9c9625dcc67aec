"""A process that has imported the command line but not jax, and forks for each command: a fork
takes 20 ms where an interpreter and these imports take 300."""

import atexit
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import traceback
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMPORTED = ("bljust_jax.main", "configs.m2asr", "configs.quickstart")


class Done(NamedTuple):
    """What a command left; seconds: of processor time."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float


@functools.cache
def _server() -> subprocess.Popen:
    """The server of this process, which ends with it."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.fork_server"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)
    return server


def run(code: str, flags: tuple[str, ...], cwd: str) -> Done:
    """`python -c code flags` in the folder `cwd`, with the environment of this process."""
    server = _server()
    request = {"code": code, "flags": flags, "cwd": cwd, "environment": dict(os.environ)}
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return Done(*json.loads(server.stdout.readline()))


def _serve(code: str, flags: list[str], cwd: str, environment: dict[str, str]) -> Done:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            for file, number in ((out, 1), (err, 2)):
                os.dup2(file.fileno(), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(environment)
            os._exit(_run(code, flags))
        _, status, used = os.wait4(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return Done(os.waitstatus_to_exitcode(status), *texts, used.ru_utime + used.ru_stime)


def _run(code: str, flags: list[str]) -> int:
    """Exit code of `python -c code flags`."""
    sys.argv = ["-c", *flags]
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        result = 0
    except SystemExit as end:
        result = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        result = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return result


if __name__ == "__main__":
    for name in IMPORTED:
        __import__(name)
    for line in sys.stdin:
        print(json.dumps(_serve(**json.loads(line))), flush=True)
