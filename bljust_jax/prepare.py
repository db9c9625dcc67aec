"""python -m bljust_jax.prepare URI --out DIR [--split NAME] [--verify] ...

Writes a source as ArrayRecord shards, by all cores. A killed run leaves no shards that count as
complete; the same command goes on after its last finished file. URI is a value of
`config.data.train`: a *.jsonl manifest, folder:DIR, kaldi:DIR, librispeech:ROOT/SPLIT and so on.
Train on DIR/SPLIT with `--config.data.train=tfds:DIR/SPLIT`: same bits as URI. Exit 0: done; 2: a
mistake in the flags or the data, in one line.

python -m bljust_jax.prepare URI --labels log_mel|RUN --out FILE.km [--layer N] [--classes K]
labels the frames of URI by k-means instead, for --config.data.frame_labels=FILE.km and the loss
hubert: of log-mel features, or of block N of a finished run. FILE.km.npz has the centroids; with
--centroids it labels a dev set with the classes of training.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from bljust_jax.common import cli
from bljust_jax.common.config_schema.field import Range
from bljust_jax.common.config_schema.ranges import AT_LEAST_1, FROM_0_TO_1
from bljust_jax.common.console import StatusLine
from bljust_jax.common.durations import in_hours
from bljust_jax.common.errors import UserError
from bljust_jax.common.files import expand_user
from bljust_jax.common.timeout import exit_with_pending_calls
from bljust_jax.data import shard_writing, shards, sources, uri_names

FLAC_RATES = Range("a number of Hz, such as 16000", lambda x: 1 <= x <= 655350)


def parser() -> cli.Parser:
    p = cli.Parser(__doc__)
    p.add_argument("uri", metavar="URI", help="source to read; with --verify alone, tfds:DIR/SPLIT")
    p.option("--out", str, "the shards become DIR/SPLIT, a TFDS folder", metavar="DIR")
    p.option("--split", str, "default: the last name of URI, without extension")
    p.option("--sample_rate", 16000, "Hz", allowed=FLAC_RATES)
    p.option("--root", "", "as config.data.root: audio outside it is refused")
    p.add_argument("--shards", type=shard_count, default="auto", help="number of files (auto)")
    runners = "runner of an Apache Beam pipeline (extra [beam]); default: this process"
    p.add_argument("--runner", choices=("direct", "flink", "spark", "dataflow"), help=runners)
    p.option("--beam_options", "", "Beam's own, as in '--flink_master=HOST:8081'", metavar="TEXT")
    bad = "stop if a larger share of the audio cannot be decoded"
    p.option("--max_bad_fraction", 0.01, bad, allowed=FROM_0_TO_1)
    p.option("--verify", False, "read all back and compare checksums")
    p.option("--labels", str, "write frame labels: of log_mel, or of a finished RUN", metavar="RUN")
    p.option("--layer", 0, "block of the RUN that is clustered; 0: half of them")
    p.option("--classes", 100, "number of classes", allowed=AT_LEAST_1)
    p.option("--centroids", pathlib.Path, "FILE.km.npz of earlier labels", metavar="FILE")
    p.option("--seed", 0, "of the frames that k-means learns from, and of its start")
    p.option("--json", False, "print the summary as a JSON object")
    return p


def shard_count(value: str) -> int | None:
    if value == "auto":
        return None
    if not re.fullmatch("[1-9][0-9]*", value):
        raise argparse.ArgumentTypeError(f"{value!r} is neither auto nor a number above 0")
    return int(value)


def body(args: argparse.Namespace) -> None:
    if args.labels:
        labelled = write_labels(args)
        print(json.dumps(dataclasses.asdict(labelled)) if args.json else labelled.describe())
        return
    summary = run(args)
    length = in_hours(summary.seconds)
    size = f"{summary.utterances} utterances, {length}, {summary.bytes / 1e6:.1f} MB"
    bad = f"; {summary.bad} skipped, see quarantine-*.jsonl beside it" if summary.bad else ""
    line = f"{summary.folder}: {size}{bad}"
    print(json.dumps(dataclasses.asdict(summary)) if args.json else line)


def write_labels(args: argparse.Namespace) -> Any:
    """Label frames by k-means: `cluster_frames.Labelled`."""
    from bljust_jax.inference import cluster_frames

    if args.out is None:
        raise UserError("--out FILE.km is required with --labels")
    return cluster_frames.write_labels(
        args.uri,
        pathlib.Path(expand_user(args.out)),
        features=expand_user(args.labels),
        progress=Progress("labelled"),
        **{name: getattr(args, name) for name in ("layer", "classes", "centroids", "root", "seed")},
    )


def run(args: argparse.Namespace) -> shards.Summary:
    """Write shards, verify them, or both."""
    if args.out is None:
        scheme, _, rest = args.uri.partition(":")
        folder = pathlib.Path(expand_user(args.root), expand_user(rest)).absolute()
        if not args.verify or scheme != "tfds":
            raise UserError("--out is required, or --verify with URI tfds:DIR/SPLIT; see --help")
        if not shards.index_path(folder, folder.name).is_file():
            raise UserError(f"{args.uri}: {folder} was not written by bljust_jax.prepare")
        return shards.verify(str(folder), folder.name, Progress("verified"))
    split = args.split or default_split(args.uri)
    executor = None
    if args.runner:
        from bljust_jax.data import beam_shards

        source = args.uri, args.root, args.sample_rate
        executor = beam_shards.executor(*source, args.runner, args.beam_options)
    elif args.beam_options:
        raise UserError("--beam_options is given without --runner")
    summary = shard_writing.write(
        sources.open_source(args.uri, args.root),
        expand_user(args.out),
        split,
        sample_rate=args.sample_rate,
        shards=args.shards,
        max_bad_fraction=args.max_bad_fraction,
        progress=Progress("prepared"),
        executor=executor,
    )
    if args.verify:
        shards.verify(summary.folder, split, Progress("verified"))
    return summary


def default_split(uri: str) -> str:
    """`librispeech:ROOT/dev-clean` gives dev-clean, `data/train.jsonl` train."""
    if "+" in uri:
        raise UserError(f"{uri!r} joins several sources; name the result by --split")
    return uri_names.name_of(uri)


class Progress:
    """Number of utterances done and the time left, on stderr: in place on a terminal, elsewhere
    twice per minute."""

    def __init__(self, verb: str):
        self._verb, self._status = verb, StatusLine(redraw=0.2, interval=30.0)
        self._began = time.monotonic()

    def __call__(self, done: int, total: int, seconds: float) -> None:
        """`seconds`: of audio so far."""
        elapsed = time.monotonic() - self._began
        text = f"{self._verb} {done}/{total} utterances, {in_hours(seconds)} of audio, "
        if done < total:
            left = elapsed / done * (total - done)
            self._status.update(f"{text}{in_hours(left)} left")
        else:
            self._status.log(f"{text}in {in_hours(elapsed)}")


_command = cli.command(parser, body)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of the command. The process ends at once if it would wait for a lost worker."""
    code = _command(argv)
    if code:
        exit_with_pending_calls(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
