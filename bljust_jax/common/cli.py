"""Command-line base of all commands: parser, one-line errors, exit codes, standard streams."""

import argparse
import codecs
import contextlib
import errno
import io
import logging
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from bljust_jax.common.config_schema.field import Range
from bljust_jax.common.errors import Preempted, UserError
from bljust_jax.common.files import expand_user
from bljust_jax.common.timeout import Unreachable

DONE, USER_ERROR, UNREACHABLE, PREEMPTED, INTERRUPTED = 0, 2, 69, 75, 130
STOPPED = "stopped by {}; run the same command again to resume"
READER_GONE = 141  # as a shell reports a program that SIGPIPE ended


def expanded_path(text: str) -> pathlib.Path:
    """The path with the home folder for `~`; UserError if that is unknown."""
    return pathlib.Path(expand_user(text))


class Parser(argparse.ArgumentParser):
    """Parser of one command. `doc`: the module's docstring, its first paragraph the usage, the rest
    printed as written. A wrong argument raises `UserError`."""

    def __init__(self, doc: str):
        usage, _, description = doc.partition("\n\n")
        as_written = argparse.RawDescriptionHelpFormatter
        super().__init__(usage=usage, description=description, formatter_class=as_written)
        self._ranges: dict[str, tuple[str, Range]] = {}
        self._model_required = False

    def model(self, help: str, *, required: bool = True, positional: bool = False) -> None:
        """Add `--model`, a run or the folder of one, as `args.model`; `--workdir` is another name
        of it, and so is, if `positional`, the argument without a name."""
        path = {"type": expanded_path, "metavar": "RUN"}
        self.add_argument("--model", "--workdir", help=help, **path)
        if positional:
            self.add_argument("named", nargs="?", help="the same as --model", **path)
        self._model_required = required

    def option(
        self, name: str, value: Any, help: str = "", *, allowed: Range | None = None, **more: Any
    ) -> None:
        """Add an option.

        value: its default, which gives its type and ends its help; False for a flag; or the type of
        an option without a default. allowed: the range of parsed values.
        """
        if value is False:
            more["action"] = "store_true"
        elif value is pathlib.Path:
            more["type"] = expanded_path
        elif isinstance(value, type):
            more["type"] = value
        else:
            more |= {"type": type(value), "default": value}
            shown = " (%(default)g)" if isinstance(value, float) else " (%(default)s)"
            help += shown if value != "" else ""
        dest = self.add_argument(name, help=help, **more).dest
        if allowed is not None:
            self._ranges[dest] = name, allowed

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found = super().parse_args(args, namespace)
        if "named" in found:
            if found.model and found.named:
                raise UserError(f"two models: {found.named} and --model {found.model}; name one")
            found.model = found.model or found.named
            del found.named
        if self._model_required and not found.model:
            self.error("the following arguments are required: --model")
        for dest, (name, allowed) in self._ranges.items():
            value = getattr(found, dest)
            if value is not None and not allowed.holds(value):
                raise UserError(f"{name} {value:g} must be {allowed.words}")
        return found

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def command(
    parser: Callable[[], Parser], body: Callable[[argparse.Namespace], int | None]
) -> Callable[..., int]:
    """The function `main(argv=None)` of a command: calls `body` with the parsed arguments and
    returns the exit code: that of `body`, 0 for None."""

    def main(argv: Sequence[str] | None = None) -> int:
        return run_to_exit_code(lambda: body(parser().parse_args(argv)))

    return main


def run_to_exit_code(body: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Exit code of `body()`: its own, 0 for None, or that of an error or interrupt, which is
    printed in one line."""
    with standard_streams():
        logging.basicConfig()
        for handler in logging.getLogger().handlers:  # libraries may have added some
            handler.setFormatter(logging.Formatter("warning: %(message)s"))
        try:
            code = body() or DONE
            sys.stdout.flush()
            return code
        except (RuntimeError, AssertionError) as error:
            if not _lacks_backend(error):
                raise
            print(f"error: {_no_backend(error)}", file=sys.stderr)
            return USER_ERROR
        except (UserError, OSError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return USER_ERROR
        except Unreachable as error:
            print(f"error: {error}", file=sys.stderr)
            return UNREACHABLE
        except Preempted as stop:
            print(STOPPED.format(stop), file=sys.stderr)
            return PREEMPTED
        except KeyboardInterrupt:
            sys.stdout.needed = False  # its reader has had the same signal
            print(interrupted, file=sys.stderr)
            return INTERRUPTED


def _lacks_backend(error: Exception) -> bool:
    """Whether jax has none of the platforms of JAX_PLATFORMS: it raises a RuntimeError, or fails an
    assertion without a message where the platform is known and its package is not installed."""
    frames = traceback.extract_tb(error.__traceback__)
    silent = isinstance(error, AssertionError) and frames[-1].filename.endswith("xla_bridge.py")
    return silent or str(error).startswith("Unable to initialize backend")


def _no_backend(error: Exception) -> str:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    reason = " ".join(str(error).split())[:200] or "its package is not installed"
    return (
        f"JAX_PLATFORMS={platforms}: jax cannot use it ({reason}); install it (`make ACCEL=cuda"
        " setup` or ACCEL=tpu), correct the name, or unset JAX_PLATFORMS to use what there is"
    )


# Standard streams that are closed, or whose reader is gone


class Stream:
    """stdout or stderr. Once its reader is gone, output goes to the null device: log lines are
    lost, the program goes on. With `needed`, the program ends with code `READER_GONE`."""

    def __init__(self, stream: Any, *, needed: bool):
        self._stream, self.needed = stream, needed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._attempt(self._stream.write, text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, function: Callable, *args: str) -> Any:
        try:
            return function(*args)
        except OSError as error:  # EIO: the terminal is closed
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())  # what is buffered cannot fail again
            os.close(null)
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            if self.needed:
                raise SystemExit(READER_GONE) from error
            return function(*args)


def _set_encoding(stream: Any) -> None:
    """Write UTF-8 to files and pipes, as to all text files; to a terminal its own encoding. What
    that lacks is escaped, and bytes of file names that are no text are written as they are."""
    if isinstance(stream, io.TextIOWrapper):
        encoding = stream.encoding if stream.isatty() else "utf-8"
        stream.reconfigure(encoding=encoding, errors=ESCAPE)


def _escape(error: UnicodeEncodeError) -> tuple[str | bytes, int]:
    """Error handler of codecs: per character surrogateescape, or else backslashreplace."""
    first = UnicodeEncodeError(
        error.encoding, error.object, error.start, error.start + 1, error.reason
    )
    try:
        return codecs.lookup_error("surrogateescape")(first)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(first)


ESCAPE = "bljust_jax.escape"
codecs.register_error(ESCAPE, _escape)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Context in which closed standard streams (None in `sys`) are the null device, and stdout and
    stderr are `Stream`s; what is buffered is written at its end."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w":
            _set_encoding(getattr(sys, name))
    with (
        contextlib.redirect_stdout(Stream(sys.stdout, needed=True)),
        contextlib.redirect_stderr(Stream(sys.stderr, needed=False)),
    ):
        try:
            yield
        finally:
            sys.stdout.flush()
