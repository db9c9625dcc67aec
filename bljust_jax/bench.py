"""python -m bljust_jax.bench {ctc,step,birq,moo,input} ... [--json FILE] [--rounds N]
    [--shapes A,B,C,D ...]

Measures ours against public peers, interleaved in one process, and prints tables; ratios are those
of the minima. Progress goes to stderr.

ctc    value and gradient against optax.ctc_loss and torch: time, memory, errors against float64
step   a whole training step against transformers' Parakeet with torch; the joint step against two
       single ones; one forward pass for both losses against two steps
birq   a BiRQ step against a BEST-RQ step, with and without the gradient of its labels
moo    a step that weighs several losses by MoDo or MGDA against a step of each
input  hours of FLAC audio decoded a second, and the share of a step that waits for it

--json FILE writes all figures; of a folder it makes FILE/<device>.json. Shapes are UTTERANCES,
FRAMES,LABELS,CLASSES of ctc, or ROWS,SECONDS,DIM,LAYERS of step, birq and moo. A peer that is not
installed is named. Exit 2: a mistake, in one line.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import platform
import re
import sys
from importlib import metadata
from typing import Any

import jax

from bljust_jax.benchmarks import torch_peer
from bljust_jax.common import cli
from bljust_jax.common.errors import UserError

# Modules with run and describe, imported when asked for: ctc needs no models, step no data.
SUBJECTS = {"ctc": "ctc", "step": "step", "birq": "birq", "moo": "moo", "input": "input"}
PACKAGES = ("jax", "jaxlib", "optax", "torch", "transformers")


def shape(text: str) -> tuple[int, ...]:
    numbers = text.split(",")
    if len(numbers) != 4 or not all(re.fullmatch("[1-9][0-9]*", n) for n in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not four numbers parted by commas")
    return tuple(int(n) for n in numbers)


def parser() -> argparse.ArgumentParser:
    p = cli.Parser(__doc__)
    p.add_argument("subjects", nargs="+", choices=SUBJECTS, metavar="SUBJECT")
    p.add_argument("--json", type=pathlib.Path, metavar="FILE")
    p.add_argument("--rounds", type=int, default=7, help="timings of each (%(default)s)")
    p.add_argument("--shapes", type=shape, nargs="+", help="default: the device's usual ones")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="not of ctc")
    p.add_argument("--data", default="", metavar="URI", help="of input, as config.data.train")
    return p


def measure(subject: str, args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """(figures, their tables) of one subject."""
    module = importlib.import_module(f"bljust_jax.benchmarks.{SUBJECTS[subject]}")
    options = {
        "ctc": {"shapes": args.shapes},
        "step": {"shapes": args.shapes, "dtype": args.dtype},
        "birq": {"shapes": args.shapes, "dtype": args.dtype},
        "moo": {"shapes": args.shapes, "dtype": args.dtype},
        "input": {"uri": args.data},
    }
    result = module.run(**options[subject], rounds=args.rounds, say=say)
    return result, module.describe(result)


def machine() -> dict[str, Any]:
    """What the figures are of."""
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "threads": torch_peer.threads(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write(path: pathlib.Path, results: dict[str, Any]) -> None:
    if path.is_dir():
        path = path / (re.sub(r"\W+", "-", results["machine"]["device"]).strip("-") + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    say(f"wrote {path}")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def body(args: argparse.Namespace) -> None:
    if args.rounds < 1:
        raise UserError(f"--rounds {args.rounds}: at least 1")
    if args.shapes and len(args.subjects) > 1:
        raise UserError("--shapes means other things to ctc and step: name one of them")
    results = {"machine": machine(), "rounds": args.rounds}
    print(" ".join(f"{k}: {v};" for k, v in results["machine"].items() if k != "packages"))
    for subject in args.subjects:
        results[subject], lines = measure(subject, args)
        print("\n".join(lines), flush=True)
        if args.json:
            write(args.json, results)


def main(argv: list[str] | None = None) -> int:
    return cli.run(parser(), body, argv)


if __name__ == "__main__":
    sys.exit(main())
