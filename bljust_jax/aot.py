"""python -m bljust_jax.aot [--rows TEXT[,TEXT...]] [--nightly] [--level O0] [--out DIR] [--jobs N]
    [--count ROW [--set FIELD=VALUE ...] [--text FILE]]

Compile the training step of shipped configs on their largest batch for TPUs and GPUs that this
machine lacks, and print the memory that each needs per device. Nothing is executed. Rows whose name
contains one of the texts are compiled, all by default, N at a time; DIR/aot.json keeps their
figures beside those of other rows, DIR/aot.md shows all of them. Exit 2 if a step does not fit its
device. --nightly: other methods and phases of these configs too.

--level O0 optimises less and takes a third to a half of the time: the peak is within a quarter of
the true one, collectives are not split. Without it steps are compiled as for training.

--count ROW compiles the row of this name, with --set changing fields of its config, and prints the
bytes that its kernels read and write, and their number, per group of layers. Rows of the steps of
`bench`: "CTC step on 1 x H200", "joint step on 1 x H200"; "blocks on 1 x H200" has the blocks of
the encoder alone and takes 15 s of CPU. --text keeps the text of the compiled program.

Needs libtpu and jax's CUDA plugin: `make aot` makes an environment that has them.
"""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from importlib import metadata
from typing import Any

from bljust_jax.benchmarks import step_ahead, traffic
from bljust_jax.benchmarks.chips import CHIPS
from bljust_jax.benchmarks.compile_ahead import (
    LEVELS,
    NIGHTLY,
    ROWS,
    Figures,
    Row,
    compile_row,
    compile_text,
)
from bljust_jax.benchmarks.interleave import MIB
from bljust_jax.benchmarks.step_ahead import STEP_ROWS, StepRow
from bljust_jax.common import cli
from bljust_jax.common.console import log
from bljust_jax.common.errors import UserError
from bljust_jax.common.files import write_text
from bljust_jax.monitoring import peak_flops
from bljust_jax.monitoring.peak_flops import GIB

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
ALL = ROWS + STEP_ROWS + NIGHTLY
WRITE_LOCK = threading.Lock()


def parser() -> cli.Parser:
    p = cli.Parser(__doc__)
    p.option("--rows", "")
    p.option("--nightly", False)
    p.option("--level", "", choices=LEVELS)
    p.option("--out", "")
    p.option("--jobs", 1)
    p.option("--count", "", metavar="ROW")
    p.option("--set", str, "a field of the row's config", action="append", metavar="FIELD=VALUE")
    p.option("--text", pathlib.Path, metavar="FILE")
    p.option("--one", "")  # compile this row in this process and print its JSON
    return p


def compile_rows(args: Any) -> None:
    """Compile the rows that the arguments choose; UserError if one fails."""
    if args.one:
        print(json.dumps(compile_row(row_named(args.one), args.level)._asdict()))
        return
    if args.count:
        print("\n".join(count_row(row_named(args.count), args)))
        return
    if args.set or args.text:
        raise UserError("--set and --text belong to --count ROW")
    wanted = [text for text in args.rows.split(",") if text] or [""]
    known = ALL if args.nightly else ROWS + STEP_ROWS
    rows = [row for row in known if any(text in row.name for text in wanted)]
    if not rows:
        raise UserError(
            f"--rows={args.rows}: no row of that name; see bljust_jax/benchmarks/compile_ahead.py"
        )
    with concurrent.futures.ThreadPoolExecutor(max(args.jobs, 1)) as pool:
        jobs = [pool.submit(compile_in_subprocess, row, args.level, args.out) for row in rows]
        errors = [error for job in jobs if (error := job.result())]
    if errors:
        raise UserError("; ".join(errors))


def row_named(name: str) -> Row | StepRow:
    """The row of a name; UserError if there is none."""
    for row in ALL:
        if row.name == name:
            return row
    names = "; ".join(row.name for row in STEP_ROWS)
    raise UserError(f"no row {name!r}: those of steps are {names}; results/aot.md has others")


def count_row(row: Row | StepRow, args: Any) -> list[str]:
    """Lines: bytes and kernels per group of a row's program, then memory and CPU seconds."""
    figures, text = compile_text(row, args.level, step_ahead.parse_fields(args.set or []))
    if args.text:
        write_text(args.text, text)
    kind = CHIPS[row.chips].kind
    return [
        f"{row.name} {' '.join(args.set or [])}".strip(),
        *traffic.describe(traffic.count(text), peak_flops.BANDWIDTH.get(kind, 0.0)),
        f"temporaries {figures.temporaries / GIB:.1f} GiB, peak {figures.peak / GIB:.1f} of "
        f"{figures.memory / GIB:.0f} GiB; {1000 * least_seconds(figures._asdict()):.1f} ms of "
        f"products; {figures.seconds:.0f} s of CPU to compile",
    ]


def compile_in_subprocess(row: Row | StepRow, level: str, out: str) -> str:
    """Compile a row in its own process, as libtpu serves one program at a time, and write its
    figures to the folder `out`. Returns the last line of stderr if it fails, else ""."""
    log(f"compiling {row.name}")
    done = subprocess.run(
        [sys.executable, "-m", "bljust_jax.aot", "--one", row.name, "--level", level],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"{row.name}: exit {done.returncode}"])[-1]
        log(f"  {last}")
        return last.removeprefix("error: ")
    figures = Figures(**json.loads(done.stdout.splitlines()[-1]))
    with WRITE_LOCK:
        if out:
            write(pathlib.Path(out), figures)
        need, have = figures.peak / GIB, figures.memory / GIB
        log(f"  {row.name}: {need:.1f} of {have:.0f} GiB; {figures.seconds:.0f} s of CPU")
    return ""


def write(folder: pathlib.Path, figures: Figures) -> None:
    """Write aot.json, with these figures beside those of other rows, and aot.md."""
    path = folder / "aot.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    stamp = {"date": time.strftime("%Y-%m-%d"), "jax": metadata.version("jax")}
    kept[f"{figures.name} {figures.level}".strip()] = figures._asdict() | stamp
    names = [f"{row.name} {level}".strip() for row in ALL for level in LEVELS]
    kept = {name: kept[name] for name in names if name in kept}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(kept, indent=1) + "\n")
    write_text(folder / "aot.md", HEAD + "".join(table_line(row) for row in kept.values()))


HEAD = """# Memory and collectives per training step, compiled ahead of time

    make aot

Training steps of shipped configs on their largest batch, compiled on a machine without a TPU or GPU
and never executed. All figures are per device and step, except the batch, which is that of all
devices. Peak: the most bytes live at once, state included, against those that a program may use of
the device. Encoder: FLOPs of its forward and backward passes, and the least time that they take at
the chip's peak. Collectives: their number in the program, and the bytes of their results; the body
of a loop over blocks counts once. Bytes: read and written by the kernels of a step, loops counted
as often as they run: an upper bound on memory traffic. Level: XLA's optimisation level, "full" is that of training. For
GPUs the compiler cannot time its choices without one, and peaks are some tenths too low
(results/README.md, "On one H200").

| step | level | mesh | parameters | batch | audio | peak / chip | state, batch | temporaries | encoder | at least | bytes | kernels | collectives | CPU s to compile | date, jax |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501


def table_line(row: dict[str, Any]) -> str:
    """A row of aot.md."""
    counted = "bytes" in row  # rows of earlier versions lack them
    moved = "; ".join(
        f"{n} {kind}, {size / MIB:.1f} MiB" for kind, (n, size) in row["collectives"].items()
    )
    cells = (
        row["name"],
        row["level"] or "full",
        row["mesh"] or "1 device",
        f"{row['parameters'] / 1e6:.1f} M",
        ", ".join(f"{stream} {rows}" for stream, rows in row["rows"].items()),
        f"{row['audio']:.0f} s",
        f"{row['peak'] / GIB:.2f} / {row['memory'] / GIB:.0f} GiB",
        f"{row['arguments'] / GIB:.2f} GiB",
        f"{row['temporaries'] / GIB:.2f} GiB",
        f"{row['flops'] / 1e12:.2f} TFLOP",
        f"{1000 * least_seconds(row):.0f} ms",
        f"{row['bytes'] / 1e9:.1f} GB" if counted else "-",
        f"{row['kernels']:,}" if counted else "-",
        moved or "none",
        f"{row['seconds']:.0f}",
        f"{row['date']}, {row['jax']}",
    )
    return f"| {' | '.join(cells)} |\n"


def least_seconds(row: dict[str, Any]) -> float:
    """Seconds that the encoder's FLOPs of a row take at the peak of its chip."""
    kind = CHIPS[row["name"].rpartition(" on ")[2]].kind
    return row["flops"] / peak_flops.FLOPS[kind]["bfloat16"]


main = cli.command(parser, compile_rows)

if __name__ == "__main__":
    sys.exit(main())
