"""python -m bljust_jax.doctor URI [--dev URI] [--test URI] [--workdir RUN | --config X] ...

Checks recordings and texts before training: decodes all audio once and prints what is wrong, where,
and what to do about it. URI is a value of `config.data.train`. With a run, or a config as in
`bljust train --config`, the checks use its labels, encoder and sample rate; without one texts are
checked as they are written. Measurements are kept: a repeated or interrupted command decodes only
what is new. Exit 0: fit to train on; 1: findings; 2: it cannot be read, in one line.
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from bljust_jax.common import cli, shipped_configs
from bljust_jax.common.config_schema.ranges import AT_LEAST_1
from bljust_jax.common.errors import UserError
from bljust_jax.common.files import require_writable
from bljust_jax.data import bucket_lengths, normalise, sources, streams, tokenizer_files
from bljust_jax.data.doctor import checks, proposals
from bljust_jax.data.doctor.survey import TRAIN, Survey, cache_of, survey
from bljust_jax.data.tokenizer import make_tokenizer
from bljust_jax.reporting.doctor import page, summary

RATE = 16000
ASSUMPTION = "assumed: labels are characters, the encoder has a frame per 40 ms"
FINDINGS = 1


def parser() -> cli.Parser:
    p = cli.Parser(__doc__)
    p.add_argument("uri", metavar="URI", help="training data: a *.jsonl manifest, SCHEME:REST, ...")
    p.option("--dev", "", "URI whose overlap with the training data is checked", metavar="URI")
    p.option("--test", "", "as --dev", metavar="URI")
    p.option("--root", "", "as config.data.root: audio outside it is refused")
    p.model("run whose labels and encoder are taken", required=False)
    p.option("--config", "", "config whose labels and encoder are taken, such as manifest:digits")
    p.option("--task", "", "the task of a run or config of several", metavar="NAME")
    p.option("--html", pathlib.Path, "write a page with histograms and audio", metavar="FILE")
    p.option("--cache", pathlib.Path, "measurements; default: beside --html, or the user's cache")
    p.option("--threads", os.cpu_count() or 1, "decoding threads", allowed=AT_LEAST_1)
    p.option("--json", False, "print the report as a JSON object")
    return p


def body(args: argparse.Namespace) -> int:
    if args.model and args.config:
        raise UserError("--workdir and --config: name one, the run or the config")
    if args.html:
        require_writable(args.html)
    found = examine(args)
    report = summary.Report(
        args.uri,
        found,
        checks.run(found),
        proposals.bucket_tables(found),
        proposals.normalisation(found),
    )
    print(json.dumps(summary.as_json(report)) if args.json else "\n".join(summary.lines(report)))
    if args.html:
        page.write(args.html, report)
        print(f"written: {args.html}", file=sys.stderr)
    return FINDINGS if report.findings else cli.DONE


def examine(args: argparse.Namespace) -> Survey:
    """Read the sources, and measure their audio."""
    uris = {TRAIN: args.uri, "dev": args.dev, "test": args.test}
    found = {split: sources.read_source(uri, args.root) for split, uri in uris.items() if uri}
    spell: Callable[[str], str] = normalise.make(())
    facts: dict[str, Any] = {"sample_rate": RATE, "assumption": ASSUMPTION}
    if args.model or args.config:
        config = load_config(args)
        described = streams.labelled_streams(config.data)
        names = ["" if name == streams.LABELLED else name for name in described]
        where = args.model or pathlib.Path(args.config)
        stream = described[tokenizer_files.choose(where, args.task, names) or streams.LABELLED]
        found = {split: streams.with_labels(own, stream.field) for split, own in found.items()}
        if args.model:
            tokenizer = tokenizer_files.load_one(args.model, args.task)
        else:
            texts = (u.text or "" for u in found[TRAIN])
            tokenizer = make_tokenizer(stream.text, texts, joined=True, where=stream.where)
        spell = tokenizer.normalise
        facts = {"sample_rate": config.data.sample_rate, "tokenizer": tokenizer}
        facts["frames"] = frames_of(config)
    cache = args.cache or (args.html and args.html.with_suffix(".measurements.jsonl"))
    return survey(
        found,
        spell,
        cache or cache_of([uri for uri in uris.values() if uri]),
        args.threads,
        **facts,
    )


def load_config(args: argparse.Namespace) -> Any:
    """The config of --workdir or --config."""
    if args.config:
        config = shipped_configs.load(args.config)
        bucket_lengths.resolve_auto(config)
        return config
    from ml_collections import ConfigDict

    from bljust_jax.checkpoint.saved_config import read_config

    path = args.model / "config.json"
    if not path.is_file():
        raise UserError(f"{args.model} holds no config.json: give the --workdir of a training run")
    return ConfigDict(read_config(path))


def frames_of(config: Any) -> Callable[[float], int]:
    """Seconds of audio -> frames of the encoder's output."""
    from bljust_jax.models import encoders  # imports jax

    encoder, rate = encoders.load(config.encoder)(config), config.data.sample_rate
    return lambda seconds: int(encoder.frames(round(seconds * rate)))


main = cli.command(parser, body)

if __name__ == "__main__":
    sys.exit(main())
