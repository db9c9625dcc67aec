"""Options, their ranges, exit codes, and standard streams that are closed or have lost their
reader."""

import os
import pathlib
import subprocess
import sys

import pytest

from bljust_jax.common import cli
from bljust_jax.common.config_schema.ranges import AT_LEAST_1
from bljust_jax.common.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def make_parser():
    parser = cli.Parser("usage\n\nTwo\n  lines.")
    parser.option("--rate", 0.5, "of sampling", allowed=AT_LEAST_1)
    parser.option("--beam", int, "width", allowed=AT_LEAST_1)
    parser.option("--name", "", "of a task")
    parser.option("--json", False, "as JSON")
    return parser


def test_an_option_has_the_type_of_its_default():
    found = make_parser().parse_args(["--rate=2", "--name=3"])
    assert vars(found) == {"rate": 2.0, "beam": None, "name": "3", "json": False}
    assert isinstance(found.rate, float)
    assert make_parser().parse_args(["--rate=1", "--beam=4", "--json"]).beam == 4
    text = make_parser().format_help()
    for line in ("of sampling (0.5)\n", "width\n", "of a task\n", "Two\n  lines."):
        assert line in text


@pytest.mark.parametrize("flags", [["runs/a"], ["--model=runs/a"], ["--workdir", "runs/a"]])
def test_a_run_is_named_alike_by_all_commands(flags):
    parser = cli.Parser("usage")
    parser.model("a run", positional=True)
    assert vars(parser.parse_args(flags)) == {"model": pathlib.Path("runs/a")}
    with pytest.raises(UserError, match="two models: runs/a and --model b; name one"):
        parser.parse_args(["runs/a", "--model=b"])
    with pytest.raises(UserError, match="required: --model; see --help"):
        parser.parse_args([])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rate=0"], "--rate 0 must be 1 or above"),
        (["--rate=nan"], "--rate nan must be 1 or above"),
        (["--rate=1", "--beam=-1"], "--beam -1 must be 1 or above"),
        (["--rate=x"], "argument --rate: invalid float value: 'x'; see --help"),
    ],
)
def test_a_wrong_value_is_named_with_its_range(flags, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        make_parser().parse_args(flags)


# Standard streams


def run(command, closed="", reader_of="stdout"):
    """(exit code, what the other stream got) of a command: `closed` is its redirection in a shell,
    such as "2>&-"; `reader_of` is the stream whose pipe has no reader, if any."""
    read, write = os.pipe()
    os.close(read)
    kept = "stderr" if reader_of == "stdout" else "stdout"
    done = subprocess.run(
        ["bash", "-c", f'"$@" {closed}', "bash", sys.executable, *command],
        cwd=ROOT,
        check=False,
        **{reader_of: write, kept: subprocess.PIPE} if reader_of else {"stdout": subprocess.PIPE},
    )
    os.close(write)
    return done.returncode, (getattr(done, kept) or b"").decode()


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"], ["prepare", "--help"]])
def test_help_ends_quietly_if_its_reader_has_gone(command):
    assert run(["-m", "bljust_jax", *command]) == (cli.READER_GONE, "")


# Logs, prints, and ends with code 7 unless stdout has no reader
BODY = """
import sys, warnings
from bljust_jax.common import cli, console

def body():
    status = console.StatusLine(interval=0.0)
    for n in range(3):
        status.log("a line")
        status.update("a status")
        warnings.warn("a warning", stacklevel=1)
        print("result", flush=True)
    return 7

sys.exit(cli.run_to_exit_code(body))
"""


def test_a_program_ends_when_nothing_reads_its_output():
    code, logged = run(["-c", BODY])
    assert code == cli.READER_GONE
    assert logged.count("a line") == 1
    assert "Traceback" not in logged
    assert "Exception" not in logged


@pytest.mark.parametrize(("closed", "reader_of"), [("", "stderr"), ("2>&-", ""), ("0<&- 2>&-", "")])
def test_a_program_goes_on_without_its_log(closed, reader_of):
    assert run(["-c", BODY], closed, reader_of) == (7, "result\n" * 3)


def test_output_on_a_full_disk_is_an_error():
    code, logged = run(["-m", "bljust_jax", "--version"], "2>&1 >/dev/full", "")
    assert (code, logged) == (cli.USER_ERROR, "error: [Errno 28] No space left on device\n")


def test_the_log_goes_on_without_output():
    code, logged = run(["-c", BODY], "2>&1 >&-", "")
    assert code == 7
    assert logged.count("a line") == 3
    assert "result" not in logged


def test_a_mistake_is_an_exit_code_without_stderr():
    assert run(["-m", "bljust_jax", "train", "--nothing"], "2>&-", "") == (cli.USER_ERROR, "")


def test_another_broken_pipe_is_an_error_of_its_own(capsys):
    """As of a program that the command has started; stdout has its reader."""

    def body():
        raise BrokenPipeError(32, "Broken pipe")

    assert cli.run_to_exit_code(body) == cli.USER_ERROR
    assert capsys.readouterr().err == "error: [Errno 32] Broken pipe\n"
