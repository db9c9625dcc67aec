"""python -m bljust_jax.bench {ctc,step,birq,moo,input,compile} ... [--json FILE] [--rounds N]
    [--shapes A,B,C,D ...]
python -m bljust_jax.bench device [--items TEXT[,TEXT...]] [--list] [--again] [--json FILE]

Measure this code against public peers, interleaved in one process, and print tables; ratios are
those of the minima. Progress goes to stderr.

ctc    value and gradient against optax.ctc_loss and torch: time, memory, errors against float64
step   a training step against transformers' Parakeet with torch; the joint step against two single
       ones; one forward pass for both losses against two steps
birq   a BiRQ step against a BEST-RQ step, with and without the gradient of its labels
moo    a step that weights several losses by MoDo or MGDA against one step per loss
input  hours of FLAC audio decoded per second, and the share of a step that waits for it
compile  CPU seconds to trace, lower and compile each part of the joint step
device  ten minutes on a GPU, item by item: rates of copies and products, forms of attention against
        float32, single layers, blocks, whole steps, XLA flags, peers, a trace. Each item is printed
        and written as it ends; after an interruption the missing items follow. --items
        chooses by name, --list prints the names, --again measures all anew.

--json FILE writes all figures; of a folder it makes FILE/<device>.json. Shapes are UTTERANCES,
FRAMES,LABELS,CLASSES of ctc, or ROWS,SECONDS,DIM,LAYERS of the others. Peers that are not
installed are listed. Exit 2: a mistake, in one line.
"""

import argparse
import importlib
import json
import pathlib
import re
import sys
from typing import Any

import jax

from bljust_jax.benchmarks import device
from bljust_jax.benchmarks.machine import machine
from bljust_jax.common import cli
from bljust_jax.common.config_schema.ranges import AT_LEAST_1
from bljust_jax.common.console import log
from bljust_jax.common.errors import UserError
from bljust_jax.common.files import write_text

# Modules of `benchmarks`, imported on use: ctc needs no models, step no data.
SUBJECTS = ("ctc", "step", "birq", "moo", "input", "compile", "device")


def parser() -> cli.Parser:
    p = cli.Parser(__doc__)
    p.add_argument("subjects", nargs="+", choices=SUBJECTS, metavar="SUBJECT")
    p.option("--json", pathlib.Path, metavar="FILE")
    p.option("--rounds", 7, "timings of each", allowed=AT_LEAST_1)
    p.add_argument("--shapes", type=shape, nargs="+", help="default: by kind of device")
    p.option("--dtype", "float32", "not for ctc", choices=("float32", "bfloat16"))
    p.option("--items", "", "of device, by parts of their names", metavar="TEXT[,TEXT...]")
    p.option("--list", False, "print the items of device")
    p.option("--again", False, "measure items of device that the file has, too")
    p.option("--data", "", "for input: config.data.train", metavar="URI")
    return p


def shape(text: str) -> tuple[int, ...]:
    """Parse four positive whole numbers separated by commas."""
    numbers = text.split(",")
    if len(numbers) != 4 or not all(re.fullmatch("[1-9][0-9]*", n) for n in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not four numbers separated by commas")
    return tuple(int(n) for n in numbers)


def measure(args: argparse.Namespace) -> int:
    """Measure the subjects in order; print and write the figures after each."""
    if "device" in args.subjects:
        return measure_device(args)
    if args.items or args.list or args.again:
        raise UserError("--items, --list and --again belong to device")
    if args.shapes and len(args.subjects) > 1:
        raise UserError("--shapes differ between ctc and step: name one of them")
    results = {"machine": machine(), "rounds": args.rounds}
    print(" ".join(f"{k}: {v};" for k, v in results["machine"].items() if k != "packages"))
    for subject in args.subjects:
        results[subject], lines = measure_subject(subject, args)
        print("\n".join(lines), flush=True)
        if args.json:
            write(args.json, results)
    return cli.DONE


def measure_device(args: argparse.Namespace) -> int:
    """Measure items of the device in processes of their own; exit code 1 if one fails."""
    if len(args.subjects) > 1:
        raise UserError("device measures in processes of its own: name it alone")
    items = device.choose(args.items)
    if args.list:
        print("\n".join(item.name for item in items))
        return cli.DONE
    return 1 if device.measure(items, args.json, again=args.again) else cli.DONE


def measure_subject(subject: str, args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """(figures, tables in lines) of a subject: of each shape, or of one corpus."""
    module = importlib.import_module(f"bljust_jax.benchmarks.{subject}")
    if subject == "input":
        found = module.measure(args.data, rounds=args.rounds, log=log)
        return found, [*module.describe(found), ""]
    options = {} if subject == "ctc" else {"dtype": args.dtype}
    shapes, lines = [], []
    for sizes in args.shapes or module.SHAPES[jax.default_backend()]:
        log(f"{subject} {module.Shape(*sizes)}")
        found = module.measure(module.Shape(*sizes), **options, rounds=args.rounds, log=log)
        shapes.append(found)
        lines += [*module.describe(found), ""]
    return {"shapes": shapes}, lines


def write(path: pathlib.Path, results: dict[str, Any]) -> None:
    """Write the figures as JSON; in a folder, to <device>.json."""
    if path.is_dir():
        path = path / (re.sub(r"\W+", "-", results["machine"]["device"]).strip("-") + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(results, indent=1) + "\n")
    log(f"wrote {path}")


main = cli.command(parser, measure)

if __name__ == "__main__":
    sys.exit(main())
