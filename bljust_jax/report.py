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

from bljust_jax.common import cli
from bljust_jax.common.errors import UserError
from bljust_jax.reporting import comparison, page
from bljust_jax.reporting.run_files import RunFiles, as_json, read_run_files


def parser() -> cli.Parser:
    p = cli.Parser(__doc__)
    p.add_argument("runs", nargs="*", metavar="RUN", type=cli.expanded_path)
    p.model("the same as RUN", required=False)
    p.option("--out", pathlib.Path, "folder of the comparison", metavar="DIR")
    p.option("--json", False, "print a list, one object per run")
    return p


def body(args: argparse.Namespace) -> None:
    folders = [*args.runs, *([args.model] if args.model else [])]
    if not folders:
        raise UserError("required: RUN, or several to compare")
    runs = [read_run_files(folder) for folder in folders]
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


main = cli.command(parser, body)

if __name__ == "__main__":
    sys.exit(main())
