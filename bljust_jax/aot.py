"""python -m bljust_jax.aot [--rows TEXT[,TEXT...]] [--nightly] [--level O0] [--out DIR] [--jobs N]

Compiles the real training step of shipped configs, on their largest batch, for TPUs and GPUs that
are not here, and says what each needs of a device: nothing is executed. Rows whose name holds one
of the texts are compiled, all by default, N at a time; DIR/aot.json keeps their figures beside
those of other rows, DIR/aot.md shows all of them. Exit 2 where a step does not fit its device.
--nightly: other methods and phases of these configs too.

--level O0 has the compiler optimise less, in a half or third of the time: the peak is within a
quarter of the true one, collectives are not split. Without it steps are compiled as training
compiles them.

Needs libtpu and jax's CUDA plugin: `make aot` makes an environment that has them.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NamedTuple

from bljust_jax.benchmarks.chips import CHIPS, GIB, ctc_of, devices
from bljust_jax.common import cli
from bljust_jax.common.errors import UserError
from bljust_jax.monitoring import peak_flops

MIB = 2**20
LEVELS = ("", "O0", "O1", "O2", "O3")  # of optimisation; "" is training's


class Row(NamedTuple):
    """A config, the phase whose step is compiled, where, and config.mesh; data takes the rest."""

    config: str
    phase: str
    chips: str
    fsdp: int = 1
    tensor: int = 1

    @property
    def name(self) -> str:
        return f"{self.config} {self.phase} on {self.chips}"


# Each recipe and model shape once, each kind of chips at least once; the longest to compile first.
ROWS = (
    Row("wav2vec2_just.py:large", "joint", "v6e-8", fsdp=8),
    Row("wav2vec2_just.py:base", "joint", "v6e-8", fsdp=2),
    Row("m2asr.py:librispeech_aishell,vc", "joint", "v6e-8", fsdp=2),
    Row("librispeech.py:S", "joint", "v5e-16"),
    Row("librispeech.py:M,best_rq", "joint", "v5e-256", fsdp=4),
    Row("librispeech.py:L", "joint", "2 x v5e-16", fsdp=4, tensor=2),
    Row("librispeech.py:lstm", "joint", "v6e-8"),
    Row("birq.py:librispeech", "pretrain", "v4-16", fsdp=4),
    Row("birq.py:yodas", "pretrain", "v5e-16", fsdp=8),
    Row("librispeech.py:M", "joint", "8 x H200"),
)
# What `make nightly` adds: these shapes elsewhere, and their other phases, methods and variants.
NIGHTLY = (
    Row("librispeech.py:L", "joint", "v4-128", fsdp=4),
    Row("librispeech.py:L", "joint", "v5e-256", fsdp=4),
    Row("librispeech.py:M,best_rq", "joint", "v5e-16", fsdp=4),
    Row("m2asr.py:covost,vm_uas", "joint", "v5e-16", fsdp=4),
    Row("librispeech.py:L", "joint", "8 x H200", fsdp=8),
    Row("wav2vec2_just.py:large", "joint", "8 x H200", fsdp=8),
    Row("m2asr.py:librispeech_aishell,vc", "joint", "8 x H200"),
    Row("birq.py:yodas", "pretrain", "8 x H200", fsdp=8),
    Row("librispeech.py:S", "explore", "v5e-16"),
    Row("librispeech.py:S", "finetune", "v5e-16"),
    Row("librispeech.py:S,ptft", "pretrain", "v5e-16"),
    Row("librispeech.py:S,alternating", "turn_ctc", "v5e-16"),
    Row("librispeech.py:S,chunked", "joint", "v5e-16"),
    Row("librispeech.py:parakeet", "joint", "v6e-8"),
    Row("librispeech.py:gru", "joint", "v6e-8"),
    Row("tedlium.py:L", "joint", "v5e-16", fsdp=4),
    Row("birq.py:librispeech", "pretrain", "v5e-16", fsdp=4),
    Row("birq.py:librispeech", "finetune", "v5e-16", fsdp=4),
    Row("birq.py:librispeech,best_rq", "pretrain", "v5e-16", fsdp=4),
    Row("birq.py:ami", "pretrain", "v5e-16", fsdp=4),
    Row("wav2vec2_just.py:base", "finetune", "v6e-8", fsdp=2),
    Row("wav2vec2_just.py:base,ft", "supervised", "v6e-8", fsdp=2),
    Row("m2asr.py:librispeech_aishell,vs", "joint", "v6e-8", fsdp=2),
    Row("m2asr.py:librispeech_aishell,two_stage", "supervised", "v6e-8", fsdp=2),
    Row("m2asr.py:covost,vm_usa", "joint", "v5e-16", fsdp=4),
)
CHARACTERS = 30  # letters, a few signs and the blank: a vocabulary that a run would learn


class Figures(NamedTuple):
    """What a compiled step needs, a device and a step."""

    name: str
    level: str  # of optimisation
    mesh: str
    parameters: int
    rows: dict[str, str]  # {stream: "rows x seconds"} of all devices together
    audio: float  # seconds
    flops: float  # of the encoder, forward 1, backward 2
    peak: int  # bytes
    memory: float  # bytes of a chip
    arguments: int  # bytes: state and batch
    temporaries: int  # bytes
    collectives: dict[str, list[int]]  # {kind: [in the program's text, bytes of their results]}
    seconds: float  # of compiling, CPU time


def compile_row(row: Row, level: str) -> Figures:
    """UserError where the step does not fit."""
    import jax

    from bljust_jax.parallel.mesh import batch_devices

    if level:
        jax.config.update("jax_optimization_level", level)
    config, recipe = make_recipe(row)
    mesh = make_mesh(row)
    phase = next(p for p in recipe.phases if p.name == row.phase)
    began = time.process_time()
    try:
        lowered, state, buckets = lower(config, recipe, phase, mesh)
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        why = " ".join(str(error).split())[:300]
        raise UserError(f"{row.name}: does not fit: {why}") from error
    heard = [(o, buckets[o.streams[0]]) for o in recipe.active(phase)]
    memory, share = program.memory_analysis(), batch_devices(mesh)
    figures = Figures(
        name=row.name,
        level=level,
        mesh=" x ".join(f"{name} {n}" for name, n in mesh.shape.items() if n > 1),
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)),
        rows={s: f"{b.batch_size} x {b.seconds:g} s" for s, b in buckets.items()},
        audio=sum(b.batch_size * b.seconds for _, b in heard) / share,
        flops=sum(
            b.batch_size * recipe.cost(phase.losses & {*o.losses}, b.seconds) for o, b in heard
        )
        / mesh.size,
        peak=memory.peak_memory_in_bytes,
        memory=CHIPS[row.chips].memory,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        collectives=collectives(program.as_text()),
        seconds=time.process_time() - began,
    )
    if figures.peak > figures.memory:
        need, have = figures.peak / GIB, figures.memory / GIB
        raise UserError(f"{row.name}: does not fit: {need:.1f} GiB a device, which has {have:.0f}")
    return figures


def lower(config: Any, recipe: Any, phase: Any, mesh: Any) -> tuple[Any, Any, dict[str, Any]]:
    """(the step of a phase on its largest batch, placed as training places it; the abstract state;
    {stream: bucket})."""
    import jax

    from bljust_jax.bilevel import step
    from bljust_jax.bilevel.optimizer import group_of_parameters, make_optimizer
    from bljust_jax.common import trees
    from bljust_jax.parallel.mesh import batch_devices, batch_sharding, state_sharding

    optimizer = make_optimizer(recipe.combiner, recipe.groups)
    state = jax.eval_shape(lambda: step.init_state(recipe, optimizer, 0))
    groups = group_of_parameters(state.params, recipe.groups)
    placed = state_sharding(state, mesh, trees.path_name)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed
    )
    streams = sorted({stream for o in recipe.active(phase) for stream in o.streams})
    buckets = largest_buckets(config, streams, batch_devices(mesh) * config.accumulate)
    batch = {
        stream: blank(buckets[stream], config.data.sample_rate, batch_sharding(mesh))
        for stream in streams
    }
    train_step = step.make_train_step(
        recipe, phase, optimizer, groups, config.seed, config.accumulate
    )
    jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(placed, None))
    with jax.set_mesh(mesh):
        return jitted.lower(state, batch), state, buckets


def make_recipe(row: Row) -> tuple[Any, Any]:
    """(config, recipe), as training on data of the configured kind would build them."""
    from bljust_jax import recipes

    file, _, variants = row.config.partition(":")
    path = pathlib.Path("configs") / file
    found = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    config = module.get_config(variants)
    config.ctc.implementation = ctc_of(CHIPS[row.chips])
    texts = {name: stream.text for name, stream in config.data.streams.items()}
    texts = texts or {"labelled": config.data.text}
    sizes = {
        name: CHARACTERS if text.units == "characters" else text.vocab_size + 1
        for name, text in texts.items()
    }
    epoch = dict.fromkeys((*sizes, "unlabelled"), 1000)
    return config, recipes.load(config.recipe)(config, recipes.Facts(sizes, epoch))


def make_mesh(row: Row) -> Any:
    from bljust_jax.parallel.mesh import lay_out

    chips = CHIPS[row.chips]
    data = chips.count // (chips.slices * row.fsdp * row.tensor)
    return lay_out((chips.slices, data, row.fsdp, row.tensor), devices(chips), chips.slices)


def largest_buckets(config: Any, streams: Sequence[str], multiple: int) -> dict[str, Any]:
    """{stream: the bucket of its longest rows}, of streams of equal shares."""
    from bljust_jax.data.batch_plan import bucket_table

    data, found = config.data, {}
    for name in streams:
        lengths, seconds = data.buckets, data.batch_seconds
        if name == "unlabelled":
            lengths = data.unlabelled_buckets or lengths
            seconds = data.unlabelled_batch_seconds or seconds
        elif name in data.streams:
            lengths = data.streams[name].buckets or lengths
        rows = multiple * data.rows_multiple
        table = bucket_table(lengths, seconds, data.labels_per_second, rows)
        found[name] = table[-1]
    return found


def blank(bucket: Any, sample_rate: int, rows: Any) -> dict[str, Any]:
    """The shapes of a batch."""
    import jax
    import jax.numpy as jnp

    def array(*shape: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct((bucket.batch_size, *shape), dtype, sharding=rows)

    samples = round(bucket.seconds * sample_rate)
    audio = {"audio": array(samples, dtype=jnp.int16), "audio_lengths": array()}
    labels = {"labels": array(bucket.max_labels), "label_lengths": array()}
    return audio | labels | {"ids": array(dtype=jnp.uint32)}


KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}  # else 4


def collectives(text: str) -> dict[str, list[int]]:
    """{kind: [how many, bytes of their results]} in a compiled program's text; what a loop repeats
    is counted once."""
    found: dict[str, list[int]] = {}
    text = re.sub(r"/\*.*?\*/", "", text)
    for results, kind in re.findall(rf"= (\(?[^=]*?\)?) ({KINDS})(?:-start)?\(", text):
        entry = found.setdefault(kind, [0, 0])
        entry[0] += 1
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", results):
            size = math.prod(int(d) for d in dims.split(",") if d)
            entry[1] += size * BYTES.get(dtype, 4)
    return dict(sorted(found.items()))


# The command


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(__doc__)
    parser.add_argument("--rows", default="")
    parser.add_argument("--nightly", action="store_true")
    parser.add_argument("--level", choices=LEVELS, default="")
    parser.add_argument("--out", default="")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--one", default="")  # what a job of ours is asked for
    return cli.run(parser, body, argv)


def body(given: Any) -> None:
    if given.one:
        row = next(row for row in ROWS + NIGHTLY if row.name == given.one)
        print(json.dumps(compile_row(row, given.level)._asdict()))
        return
    wanted = [text for text in given.rows.split(",") if text] or [""]
    known = ROWS + NIGHTLY if given.nightly else ROWS
    rows = [row for row in known if any(text in row.name for text in wanted)]
    if not rows:
        raise UserError(f"--rows={given.rows}: no row of that name; see bljust_jax/aot.py")
    with concurrent.futures.ThreadPoolExecutor(max(given.jobs, 1)) as pool:
        done = [pool.submit(compile_apart, row, given.level, given.out) for row in rows]
        outcomes = [outcome.result() for outcome in done]
    failed = [said for said in outcomes if said]
    if failed:
        raise UserError("; ".join(failed))


LOCK = threading.Lock()


def compile_apart(row: Row, level: str, out: str) -> str:
    """In a process of its own, as libtpu serves one program at a time; figures go to the folder
    `out`. Returns the last line of what is said where it fails, else ""."""
    environment = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    environment |= {"TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    say(f"compiling {row.name}")
    done = subprocess.run(
        [sys.executable, "-m", "bljust_jax.aot", "--one", row.name, "--level", level],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"{row.name}: exit {done.returncode}"])[-1]
        say(f"  {last}")
        return last.removeprefix("error: ")
    found = Figures(**json.loads(done.stdout.splitlines()[-1]))
    with LOCK:
        if out:
            write(pathlib.Path(out), found)
        need, have = found.peak / GIB, found.memory / GIB
        say(f"  {row.name}: {need:.1f} of {have:.0f} GiB; {found.seconds:.0f} s of CPU")
    return ""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def write(folder: pathlib.Path, found: Figures) -> None:
    """aot.json with these figures beside those of other rows, and aot.md."""
    path = folder / "aot.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    stamp = {"date": time.strftime("%Y-%m-%d"), "jax": metadata.version("jax")}
    kept[f"{found.name} {found.level}".strip()] = found._asdict() | stamp
    names = [f"{row.name} {level}".strip() for row in ROWS + NIGHTLY for level in LEVELS]
    kept = {name: kept[name] for name in names if name in kept}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n")
    (folder / "aot.md").write_text(render(list(kept.values())))


HEAD = """# Ahead of time: what a step needs

    make aot

Training steps of shipped configs on their largest batch, compiled on a machine without a TPU or GPU
and never executed. All figures are of one device and one step, but for the batch, which is that of
all devices. Peak: the most bytes that are live at once, state included, against those that a program
may take of the device. Encoder: arithmetic of its forward and backward passes; at the chip's peak
it takes at least so long. Collectives: how many are in the program's text, and the bytes of their
results; what a loop over blocks repeats is counted once. Level: how much the compiler optimises,
"full" is what training gets. For GPUs it cannot time its choices without one, and peaks are lower
bounds by some tenths (results/README.md, "On one H200").

| step | level | mesh | parameters | batch | audio | peak / chip | state, batch | encoder | at least | collectives | CPU s to compile | date, jax |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501


def render(rows: Sequence[dict[str, Any]]) -> str:
    return HEAD + "".join(line(row) for row in rows)


def line(row: dict[str, Any]) -> str:
    kind = CHIPS[row["name"].rpartition(" on ")[2]].kind
    peak = peak_flops.FLOPS[kind]["bfloat16"]
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
        f"{row['flops'] / 1e12:.2f} TFLOP",
        f"{1000 * row['flops'] / peak:.0f} ms",
        moved,
        f"{row['seconds']:.0f}",
        f"{row['date']}, {row['jax']}",
    )
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.exit(main())
