"""python -m bljust_jax.report RUN [RUN ...] [--out DIR] [--json]

One RUN (the --workdir of a training run): writes its report.md and plots/ from its files. Several:
prints one table; the table and a plot of WER over compute are written to DIR (default: comparison/
in the parent folder of the runs). Exit 2: a mistake, in one line.
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence

from bljust_jax.common import cli
from bljust_jax.common.errors import UserError
from bljust_jax.reporting import comparison, page
from bljust_jax.reporting.run_files import RunFiles, as_json, read_run_files


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=pathlib.Path)
    parser.add_argument("--out", metavar="DIR", type=pathlib.Path, help="folder of the comparison")
    parser.add_argument("--json", action="store_true", help="print a list, one object per run")
    return cli.run(parser, body, argv)


def body(args: argparse.Namespace) -> None:
    runs = [read_run_files(folder) for folder in args.runs]
    lines, written = _one(runs[0], args.out) if len(runs) == 1 else _several(runs, args.out)
    print(json.dumps([as_json(run) for run in runs]) if args.json else "\n".join(lines))
    print(f"written: {written}", file=sys.stderr)


def _one(run: RunFiles, out: pathlib.Path | None) -> tuple[list[str], pathlib.Path]:
    if out is not None:
        raise UserError("--out is for the comparison of several runs; name two or more")
    return page.summary(run), page.write(run.folder)


def _several(runs: list[RunFiles], out: pathlib.Path | None) -> tuple[list[str], pathlib.Path]:
    common = pathlib.Path(os.path.commonpath([run.folder.resolve().parent for run in runs]))
    return comparison.write(runs, out or common / "comparison")


if __name__ == "__main__":
    sys.exit(main())
