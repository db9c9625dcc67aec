"""python -m bljust_jax.report RUN [RUN ...] [--out DIR] [--json]

One RUN (the --workdir of a training run): writes its report.md and plots/ from its files. Several:
prints one table; the table and a plot of WER over compute are written to DIR (default: comparison/
in the parent folder of the runs). Exit 2: a mistake, in one line.
"""

import argparse
import pathlib
import sys

from bljust_jax.common import cli
from bljust_jax.reporting import comparison


def parser() -> cli.Parser:
    p = cli.Parser(__doc__)
    p.add_argument("runs", nargs="*", metavar="RUN", type=cli.expanded_path)
    p.model("the same as RUN", required=False)
    p.option("--out", pathlib.Path, "folder of the comparison", metavar="DIR")
    p.option("--json", False, "print a list, one object per run")
    return p


def body(args: argparse.Namespace) -> None:
    folders = [*args.runs, *([args.model] if args.model else [])]
    print("\n".join(comparison.present(folders, args.out, as_list=args.json)))


main = cli.command(parser, body)

if __name__ == "__main__":
    sys.exit(main())
