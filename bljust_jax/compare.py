"""python -m bljust_jax.compare GRID.py [--tune] [--jobs N] | RUN RUN ... [--out DIR] [--json]

GRID.py (configs/compare/pilot.py): trains a grid of method x labelled amount x draw of labels x
seed, all at the same compute, and writes RESULTS/NAME.md with a table, paired intervals of the
differences and pictures. Each run is a normal workdir in RUNS/NAME; each finished one appends a row
to RESULTS/NAME.jsonl, and the same command resumes from these rows, on any machine. --tune first
runs the trials of the grid that have no row, and takes the best per method. RUN RUN ...: a table
and a plot of runs that exist, as `report`.

--smoke without GRID.py trains configs/compare/smoke.py into an empty folder of RUNS, in a minute.
Exit 0: done; 75: stopped, saved, run the same command again; 2: a mistake, in one line.
"""

import argparse
import json
import pathlib
import shutil
import sys
from typing import Any

from bljust_jax.common import cli, console, shipped_configs
from bljust_jax.common.config_schema.ranges import AT_LEAST_1
from bljust_jax.common.errors import UserError
from bljust_jax.reporting import comparison

SMOKE = "smoke"


def parser() -> cli.Parser:
    p = cli.Parser(__doc__)
    p.add_argument("what", nargs="*", metavar="GRID.py | RUN", type=cli.expanded_path)
    p.option("--tune", False, "run the trials that have no row, before the runs")
    p.option("--jobs", 1, "runs at once, each on a GPU or on cores of its own", allowed=AT_LEAST_1)
    p.option("--collect", False, "write the page from the rows there are; train nothing")
    p.option("--root", "", "config.data.root of all runs, on this machine", metavar="DIR")
    p.option("--runs", pathlib.Path, "folder of the workdirs (runs/compare)", metavar="DIR")
    p.option("--results", pathlib.Path, "folder of the rows (results/compare)", metavar="DIR")
    p.option("--smoke", False, "a grid of synthetic speech, in a minute")
    p.option("--out", pathlib.Path, "folder of the comparison of RUN RUN ...", metavar="DIR")
    p.option("--json", False, "print JSON: a list of runs, or the summaries of a grid")
    return p


def body(args: argparse.Namespace) -> None:
    if args.smoke:
        if args.what:
            raise UserError("--smoke trains a grid of its own; leave GRID.py out")
        args.what = [shipped_configs.FOLDER / "compare" / "smoke.py"]
    grids = [path for path in args.what if path.suffix == ".py"]
    if not grids:
        if args.tune or args.collect:
            raise UserError("--tune and --collect are for a grid: name GRID.py")
        print("\n".join(comparison.present(args.what, args.out, as_list=args.json)))
        return
    if len(args.what) > 1:
        raise UserError(f"{grids[0]} is a grid: name it alone")
    found = compare(grids[0], args)
    print(json.dumps(found) if args.json else "\n".join(found["page"]))


def compare(path: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train what is missing of a grid, and write its page; returns what --json prints."""
    from bljust_jax.comparison import grid as grids
    from bljust_jax.comparison import page, processes, study, table

    grid = grids.load(path)
    if args.root:
        grid = grid._replace(fields={**grid.fields, "data.root": args.root})
    workdirs = (args.runs or pathlib.Path("runs/compare")) / grid.name
    results = (args.results or pathlib.Path("results/compare")) / f"{grid.name}.jsonl"
    if args.smoke:
        shutil.rmtree(workdirs, ignore_errors=True)
        results = workdirs / results.name
    own = study.Study(grid, study.Place(workdirs, results), processes.slots(args.jobs))
    tuned = own.tune(allowed=args.tune and not args.collect)
    for line in study.tuned_lines(tuned):
        console.log(line)
    runs = own.wanted(tuned) if args.collect else own.run(tuned)
    lines = page.write(grid, runs, own.rows.by_name, results)
    lines = [*lines[:2], *study.tuned_lines(tuned), *lines[2:]] if tuned else lines
    console.log(f"written: {results.with_suffix('.md')}")
    summaries = table.as_json(table.summarise(grid, runs, own.rows.by_name))
    return {"grid": grid.name, "page": lines, "summaries": summaries, "tuned": tuned}


main = cli.command(parser, body)

if __name__ == "__main__":
    sys.exit(main())
