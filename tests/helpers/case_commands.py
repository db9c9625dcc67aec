"""Call the commands in this process, as on the small inputs of ../shared/cases."""

import contextlib
import io
import json
import pathlib
import signal
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from bljust_jax import main as training
from bljust_jax.__main__ import main as console
from bljust_jax.parallel import cluster
from bljust_jax.train import compile_pool

PATIENCE = 300  # seconds after which a command hangs


class Outcome(NamedTuple):
    """Exit code of a command, and what it printed."""

    code: int
    out: str
    err: str

    def right(self) -> Any:
        """The JSON object of the last line on stdout, None without one; the command is done and
        reports no mistake."""
        assert (self.code, self._errors()) == (0, []), self.err
        last = (self.out.splitlines() or [""])[-1]
        return json.loads(last) if last.startswith(("{", "[")) else None

    def refused(self, *words: str) -> None:
        """The command ends with one line on a mistake, which has these words."""
        assert self.code == 2, self.err
        (line,) = self._errors()
        assert all(word in line for word in words), line

    def _errors(self) -> list[str]:
        assert "Traceback" not in self.err, self.err
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


SMALL = {"model.layers": 1, "model.dim": 16, "model.heads": 2, "model.scan_unroll": 1}
SMALL |= {"phases.explore": 0, "phases.joint": 2, "phases.finetune": 2, "mesh.data": 1}
SMALL |= {"eval_every": 4, "save_every": 4, "log_every": 2, "data.max_bad_fraction": 0.9}
SMALL |= {"data.buckets": "(7.0,)", "compile_cache": ""}


def train(workdir: pathlib.Path | str, uri: str) -> list[str]:
    """Command line of a training of a few steps on a source, which is its dev split as well."""
    small = [f"--config.{name}={value}" for name, value in SMALL.items()]
    data = [f"--config.data.train={uri}", f"--config.data.dev={uri}", "--config.data.test="]
    return ["train", "--config=configs/manifest.py:overfit", f"--workdir={workdir}", *small, *data]


@contextlib.contextmanager
def outliving() -> Iterator[None]:
    """Context in which a training that ends does not end the process, and a command that hangs
    raises TimeoutError; waits for the threads that compile, and forgets the flags."""

    def hang(number: int, frame: Any) -> None:
        raise TimeoutError(f"no end after {PATIENCE} s")

    before = sys.argv, training.exit_while_compiling, cluster.exit_without_waiting
    training.exit_while_compiling = cluster.exit_without_waiting = lambda code: None
    handler = signal.signal(signal.SIGALRM, hang)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        sys.argv, training.exit_while_compiling, cluster.exit_without_waiting = before
        for name in [name for name in training.FLAGS if name.startswith("config.")]:
            delattr(training.FLAGS, name)
        training.FLAGS.unparse_flags()
        for thread in list(compile_pool._threads):
            thread.join()


def call(*argv: Any) -> Outcome:
    """Run `bljust ARGV` here."""
    out, err = io.StringIO(), io.StringIO()
    with outliving(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = console([str(word) for word in argv])
    return Outcome(code, out.getvalue(), err.getvalue())


def call_without_streams(*argv: Any) -> int:
    """The exit code of `bljust ARGV` with stdin, stdout and stderr closed, as daemons start it."""
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = sys.stdout = sys.stderr = None
    try:
        with outliving():
            return console([str(word) for word in argv])
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def main() -> None:
    """Run the command lines of the JSON list in argv[1] with the standard streams of this process,
    and end with the list of their exit codes as the last line on stdout."""
    codes = []
    for argv in json.loads(sys.argv[1]):
        with outliving():
            codes.append(console(argv))
    print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main()
