"""Compile training steps ahead of time for TPUs and GPUs: memory, FLOPs and collectives.

The machine needs neither; nothing is executed.
"""

import importlib
import math
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from bljust_jax import recipes
from bljust_jax.benchmarks import step_ahead, traffic
from bljust_jax.benchmarks.chips import CHIPS, absent, ctc_implementation, devices
from bljust_jax.benchmarks.hlo import BYTES
from bljust_jax.benchmarks.step_ahead import Lowered, StepRow
from bljust_jax.bilevel.types import Phase, Recipe, TrainState
from bljust_jax.common import shipped_configs
from bljust_jax.common.errors import UserError
from bljust_jax.monitoring import flops
from bljust_jax.monitoring.peak_flops import GIB
from bljust_jax.parallel.mesh import batch_devices, batch_sharding, lay_out
from bljust_jax.train.system import jit_train_step, make_system, seed_of

LEVELS = ("", "O0", "O1", "O2", "O3")  # XLA's optimisation level; "" is that of training
VOCAB_SIZE = 30  # characters and the blank: about what a run learns


class Row(NamedTuple):
    """A config, the phase whose step is compiled, the chips, and sizes of `config.mesh`; `data`
    takes the remaining devices."""

    config: str
    phase: str
    chips: str
    fsdp: int = 1
    tensor: int = 1

    @property
    def name(self) -> str:
        return f"{self.config} {self.phase} on {self.chips}"


# Each recipe and model shape once, each kind of chip at least once; the slowest to compile first.
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
# Added by `make nightly`: the same shapes on other chips; other phases, methods and variants.
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


class Figures(NamedTuple):
    """Needs of a compiled step, per device and step."""

    name: str
    level: str  # one of LEVELS
    mesh: str
    parameters: int
    rows: dict[str, str]  # {stream: "rows x seconds"} of all devices together
    audio: float  # seconds
    flops: float  # of the encoder: forward 1, backward 2
    peak: int  # bytes
    memory: float  # bytes that a program may use of a chip
    arguments: int  # bytes of state and batch
    temporaries: int  # bytes
    collectives: dict[str, list[int]]  # {kind: [occurrences in the program, bytes of results]}
    seconds: float  # CPU time of compiling
    bytes: float = 0  # read and written by the kernels of a run, by `traffic`
    kernels: int = 0


def compile_row(row: Row | StepRow, level: str) -> Figures:
    """Figures of a row's step; UserError if it does not fit the device."""
    figures, _ = compile_text(row, level)
    if figures.peak > figures.memory:
        need, have = figures.peak / GIB, figures.memory / GIB
        raise UserError(f"{row.name}: does not fit: {need:.1f} GiB of {have:.0f} GiB per device")
    return figures


def compile_text(
    row: Row | StepRow, level: str, fields: dict[str, Any] | None = None
) -> tuple[Figures, str]:
    """(figures, text) of a row's step compiled at an optimisation level, with more config fields;
    UserError if the compiler finds that it does not fit."""
    if level:
        jax.config.update("jax_optimization_level", level)
    began = time.process_time()
    make = step_ahead.lower if isinstance(row, StepRow) else lower_row
    try:
        with absent(CHIPS[row.chips]):
            made = make(row, fields or {})
        program = made.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{row.name}: does not fit: {reason}") from error
    seconds = time.process_time() - began
    memory, text = program.memory_analysis(), program.as_text()
    moved = traffic.count(text)
    figures = Figures(
        name=row.name,
        level=level,
        mesh=" x ".join(f"{name} {n}" for name, n in made.mesh.shape.items() if n > 1),
        parameters=made.parameters,
        rows=made.rows,
        audio=made.audio,
        flops=made.flops,
        peak=memory.peak_memory_in_bytes,
        memory=CHIPS[row.chips].memory,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        collectives=collectives(text),
        seconds=seconds,
        bytes=moved.bytes,
        kernels=moved.kernels,
    )
    return figures, text


def lower_row(row: Row, fields: dict[str, Any]) -> Lowered:
    """The step of a row of shipped configs."""
    config, recipe = make_recipe(row, fields)
    mesh = make_mesh(row)
    phase = next(p for p in recipe.phases if p.name == row.phase)
    lowered, state, buckets = lower_step(config, recipe, phase, mesh)
    compute = dict(flops.FRESH)
    flops.count(compute, recipe, phase, {s: (b.batch_size, b.seconds) for s, b in buckets.items()})
    return Lowered(
        lowered,
        mesh,
        sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)),
        {s: f"{b.batch_size} x {b.seconds:g} s" for s, b in buckets.items()},
        3600 * compute["audio_hours"] / batch_devices(mesh),
        compute["flops"] / mesh.size,
    )


def lower_step(
    config: Any, recipe: Recipe, phase: Phase, mesh: jax.sharding.Mesh
) -> tuple[Any, TrainState, dict[str, Any]]:
    """(lowered step of a phase on its largest batch, abstract state, {stream: bucket}), built and
    sharded as for training."""
    from bljust_jax.data.splits import empty_batch

    system = make_system(config, recipe, mesh)
    streams = sorted({stream for o in recipe.active(phase) for stream in o.streams})
    buckets = largest_buckets(config, streams, batch_devices(mesh) * config.accumulate)
    rate, sharding = config.data.sample_rate, batch_sharding(mesh)
    per_second = config.data.frame_label_rate if config.data.frame_labels else 0
    batch = {
        stream: jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            empty_batch(
                *(bucket, bucket.batch_size, rate),
                labelled=True,
                frame_labels=math.ceil(bucket.seconds * per_second),
            ),
        )
        for stream, bucket in buckets.items()
    }
    with jax.set_mesh(mesh):
        step = jit_train_step(config, system, (phase,))
        lowered = step.lower(system.state, batch, seed_of(config))
    return lowered, system.state, buckets


def make_recipe(row: Row, fields: dict[str, Any] | None = None) -> tuple[Any, Recipe]:
    """(config, recipe) of a row, with a vocabulary size and steps per epoch that a run would
    have, and more config fields."""
    from bljust_jax.data.streams import labelled_streams

    file, _, variants = row.config.partition(":")
    shipped_configs.bind()
    module = importlib.import_module(f"configs.{file.removesuffix('.py')}")
    config = module.get_config(variants)
    config.ctc.implementation = ctc_implementation(CHIPS[row.chips])
    step_ahead.set_fields(config, fields or {})
    sizes = {
        name: VOCAB_SIZE if stream.text.units == "characters" else stream.text.vocab_size + 1
        for name, stream in labelled_streams(config.data).items()
    }
    epoch = dict.fromkeys((*sizes, "unlabelled"), 1000)
    return config, recipes.load(config.recipe)(config, recipes.Facts(sizes, epoch))


def make_mesh(row: Row) -> jax.sharding.Mesh:
    """The mesh of a row's chips."""
    chips = CHIPS[row.chips]
    data = chips.count // (chips.slices * row.fsdp * row.tensor)
    return lay_out((chips.slices, data, row.fsdp, row.tensor), devices(chips), chips.slices)


def largest_buckets(config: Any, names: Sequence[str], multiple: int) -> dict[str, Any]:
    """{stream: bucket of its longest rows}, for streams with equal shares of a batch."""
    from bljust_jax.data import buckets, streams

    data, found = config.data, {}
    lengths = {name: stream.buckets for name, stream in streams.labelled_streams(data).items()}
    lengths["unlabelled"] = data.unlabelled_buckets or data.buckets
    rows = multiple * data.rows_multiple
    for name in names:
        own = data.unlabelled_batch_seconds if name == "unlabelled" else 0
        seconds = own or data.batch_seconds
        found[name] = buckets.bucket_table(lengths[name], seconds, data.labels_per_second, rows)[-1]
    return found


KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


def collectives(text: str) -> dict[str, list[int]]:
    """{kind: [occurrences, bytes of their results]} in the text of a compiled program; the body of
    a loop counts once."""
    found: dict[str, list[int]] = {}
    text = re.sub(r"/\*.*?\*/", "", text)
    for results, kind in re.findall(rf"= (\(?[^=]*?\)?) ({KINDS})(?:-start)?\(", text):
        entry = found.setdefault(kind, [0, 0])
        entry[0] += 1
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", results):
            size = math.prod(int(d) for d in dims.split(",") if d)
            entry[1] += size * BYTES.get(dtype, 4)
    return dict(sorted(found.items()))
