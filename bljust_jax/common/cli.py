"""Command-line base of all commands: parser, one-line errors, exit codes."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from bljust_jax.common.errors import UserError
from bljust_jax.common.timeout import Unreachable

DONE, USER_ERROR, UNREACHABLE, PREEMPTED, INTERRUPTED = 0, 2, 69, 75, 130


class Parser(argparse.ArgumentParser):
    """Parser of one command. `doc`: the module's docstring, its first paragraph the usage, the rest
    printed as written. A wrong argument raises `UserError`."""

    def __init__(self, doc: str):
        usage, _, description = doc.partition("\n\n")
        as_written = argparse.RawDescriptionHelpFormatter
        super().__init__(usage=usage, description=description, formatter_class=as_written)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def run(
    parser: Parser, body: Callable[[argparse.Namespace], None], argv: Sequence[str] | None
) -> int:
    """Call `body` with the parsed arguments; returns the exit code."""

    def parsed() -> int:
        body(parser.parse_args(argv))
        return DONE

    return run_to_exit_code(parsed)


def run_to_exit_code(body: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Exit code of `body()`: its own, or that of an error or interrupt, which is printed in one
    line."""
    logging.basicConfig()
    for handler in logging.getLogger().handlers:  # libraries may have added some
        handler.setFormatter(logging.Formatter("warning: %(message)s"))
    try:
        return body()
    except (UserError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    except Unreachable as error:
        print(f"error: {error}", file=sys.stderr)
        return UNREACHABLE
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
