"""Benchmark of opening large corpora: time and memory by the number of utterances."""

import argparse
import json
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bljust_jax.common import cli
from bljust_jax.common.console import log
from bljust_jax.common.files import replacing, write_text
from configs import defaults

USAGE = """python -m bljust_jax.benchmarks.corpus_size [--rows N ...] [--folder DIR] [--json FILE]

Generate tables of N rows that name a few audio files, and measure in fresh processes what a run
does before its first step: read the table and write its index; open the index; open the corpus,
with the plan of the first epoch; plan the second epoch; load the first batch. Prints CPU seconds
(seconds) and peak memory per table.
"""
RATE = 16000
FILES, SECONDS = 20, 16.0
SPEAKER = 100  # utterances of each
WORDS = 20_000  # distinct ones in the texts
STEPS = ("read", "open", "corpus", "epoch", "batch")


def write_table(folder: pathlib.Path, rows: int) -> str:
    """Write a table of `rows` utterances of 1 to 16 s, with texts of 2 words per second, and the
    audio files that they begin; returns its URI."""
    import soundfile

    rng = np.random.default_rng(0)
    for n in range(FILES):
        noise = rng.normal(0.0, 3000.0, round(SECONDS * RATE)).astype(np.int16)
        soundfile.write(folder / f"{n}.flac", noise, RATE)
    letters = random.Random(0)
    words = [
        "".join(letters.choices("etaoinshrdlcumwfgypbvk", k=letters.randint(2, 9)))
        for _ in range(WORDS)
    ]
    path = folder / f"{rows}.csv"
    with replacing(path) as file:
        file.write(b"id,audio,duration,speaker,text\n")
        for start in range(0, rows, 10_000):
            seconds = np.round(rng.uniform(1.0, SECONDS, min(10_000, rows - start)), 2).tolist()
            lines = (
                f"utt-{n:08d},{n % FILES}.flac,{length},s{n // SPEAKER},"
                f"{' '.join(letters.choices(words, k=round(2 * length)))}\n"
                for n, length in enumerate(seconds, start)
            )
            file.write("".join(lines).encode())
    return f"table:{path}"


def make_config(uri: str) -> Any:
    """The default config with this corpus, which is its dev set as well."""
    config = defaults.base()
    config.data.update(train=uri, dev="", buckets=(4.0, 8.0, 12.0, 16.0), labels_per_second=20.0)
    config.data.update(batch_seconds=160.0, num_threads=2)
    return config


def measure(uri: str) -> dict[str, Any]:
    """{step: [CPU seconds, seconds]} of the steps of this process, {"gigabytes": peak memory}."""
    found: dict[str, Any] = {}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        began = time.process_time(), time.monotonic()
        result = function()
        now = time.process_time(), time.monotonic()
        found[name] = [round(b - a, 2) for a, b in zip(began, now, strict=True)]
        return result

    from bljust_jax.data import sources
    from bljust_jax.data.corpus import Segment, load_corpus

    config = make_config(uri)
    found["rows"] = len(timed("open", lambda: sources.open_source(uri)))
    corpus = timed("corpus", lambda: load_corpus(config.data, seed=0, phases=config.phases))
    timed("epoch", lambda: [plan._make_epoch(1) for plan in corpus.plans.values()])
    segments = [Segment(0, 1, ("labelled", "unlabelled"))]
    batch = timed("batch", lambda: next(iter(corpus.train_batches(segments, 0))))
    if not all(part["audio_lengths"].all() for part in batch.values()):
        raise SystemExit("a row of the first batch has no audio")
    return found | {"gigabytes": peak_gigabytes()}


def peak_gigabytes() -> float:
    """Largest resident memory of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)


def read(uri: str) -> dict[str, Any]:
    """As `measure`, of reading a source that has no index, and writing it."""
    from bljust_jax.data import sources

    began = time.process_time(), time.monotonic()
    sources.open_source(uri)
    spent = [round(time.process_time() - began[0], 2), round(time.monotonic() - began[1], 2)]
    return {"read": spent, "gigabytes": peak_gigabytes()}


def in_process(task: str, uri: str) -> dict[str, Any]:
    """The figures of a task in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, "--task", task, uri]
    made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(made.stdout.splitlines()[-1])


def compare(sizes: list[int], folder: pathlib.Path) -> list[dict[str, Any]]:
    """The figures of tables of these numbers of rows."""
    rows = []
    for size in sizes:
        uri = write_table(folder, size)
        log(f"wrote a table of {size} rows")
        first = in_process("read", uri)
        found = in_process("measure", uri) | {"read": first["read"]}
        rows.append(found | {"gigabytes to read": first["gigabytes"]})
        log(json.dumps(rows[-1]))
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a table of the figures: CPU seconds (seconds)."""
    lines = [f"{'rows':>10}" + "".join(f"{step:>16}" for step in STEPS) + f"{'peak GB':>12}"]
    for row in rows:
        times = (f"{row[step][0]:.1f} ({row[step][1]:.1f})" for step in STEPS)
        memory = f"{row['gigabytes to read']} / {row['gigabytes']}"
        lines.append(f"{row['rows']:>10}" + "".join(f"{t:>16}" for t in times) + f"{memory:>12}")
    return lines


def parser() -> cli.Parser:
    p = cli.Parser(USAGE)
    p.add_argument("--rows", type=int, nargs="+", default=[50_000, 500_000, 5_000_000])
    p.option("--folder", "", "where to write the tables; default: a temporary folder")
    p.option("--json", pathlib.Path, metavar="FILE")
    p.add_argument("--task", nargs=2, metavar=("TASK", "URI"), help=argparse.SUPPRESS)
    return p


def main(args: argparse.Namespace) -> None:
    if args.task:
        name, uri = args.task
        print(json.dumps({"read": read, "measure": measure}[name](uri)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder or None) as folder:
        rows = compare(args.rows, pathlib.Path(folder))
    print("\n".join(table(rows)))
    if args.json:
        write_text(args.json, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main(parser().parse_args())
