"""bljust COMMAND [ARGUMENTS ...]: the commands of bljust_jax as one console script.

Also `python -m bljust_jax COMMAND ...`. Each command is a module of the package; `bljust COMMAND
--help` prints its options.
"""

import importlib
import sys

from bljust_jax.common import shipped_configs
from bljust_jax.common.cli import run_to_exit_code
from bljust_jax.common.errors import UserError, nearest

COMMANDS = {
    "train": ("main", "train, evaluate and write a run; --config=quickstart, or a file of yours"),
    "compile": ("main", "compile the programs of a run into its compile cache, without training"),
    "prepare": ("prepare", "write a corpus as ArrayRecord shards"),
    "doctor": ("doctor", "check recordings and texts before training on them"),
    "evaluate": ("evaluate", "score a run: beam search, language model, WER, BLEU"),
    "transcribe": ("transcribe", "audio files to text with word times"),
    "report": ("report", "write report.md and plots of a run"),
    "export": ("export_checkpoint", "write a run for transformers or PyTorch"),
    "compare": ("compare", "methods by a grid of runs of equal compute; or runs side by side"),
    "bench": ("bench", "measure speed against public peers"),
    "compile-ahead": ("aot", "compile training steps for devices that are not here"),
    "ngram": ("ngram", "estimate an n-gram language model"),
}


def usage() -> str:
    """The text of --help."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{text}" for name, (_, text) in COMMANDS.items()]
    options = [f"  {'--help':<{width}}print this", f"  {'--version':<{width}}print the version"]
    return "\n".join(["bljust COMMAND [ARGUMENTS ...]", "", *lines, "", *options])


def run(argv: list[str]) -> int:
    """Call a command; returns its exit code."""
    if not argv or argv[0] in ("--help", "-h"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(importlib.import_module("bljust_jax").__version__)
        return 0
    command, *rest = argv
    if command not in COMMANDS:
        raise UserError(f"no command {command!r}{nearest(command, COMMANDS)}")
    if command in ("bench", "compile-ahead"):  # these import configs
        shipped_configs.bind()
    module = importlib.import_module(f"bljust_jax.{COMMANDS[command][0]}")
    if command in ("train", "compile"):  # absl reads sys.argv
        only = ["--compile_only"] if command == "compile" else []
        sys.argv = [f"{sys.argv[0]} {command}", *rest, *only]
        return module.main()
    return module.main(rest)


def main(argv: list[str] | None = None) -> int:
    return run_to_exit_code(lambda: run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
