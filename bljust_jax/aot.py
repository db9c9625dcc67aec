"""python -m bljust_jax.aot [--rows TEXT[,TEXT...]] [--out results] [--jobs 2] [--json]

Compiles the real training step of shipped configs, on their largest batch, for accelerators that
are not here, and says what each needs: nothing is executed. Rows whose name holds one of the texts
are compiled, all by default; `--out` keeps their figures in aot.json and writes the table aot.md.
The exit code is 2 where a step does not fit its device.

Needs libtpu (requirements-tpu.txt) for TPU rows, and jax's CUDA plugin for the others.
"""

from __future__ import annotations

import math
import os
import pathlib
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from bljust_jax.errors import UserError

MIB, GIB = 2**20, 2**30


class Chips(NamedTuple):
    """Accelerators as libtpu names them; memory and dense bfloat16 FLOP/s of a chip."""

    topology: str
    count: int
    memory: float
    peak: float
    options: dict[str, Any] = {}


CHIPS = {
    "v4-16": Chips("v4:2x2x2", 8, 32 * GIB, 275e12, {"chip_config_name": "megacore"}),
    "v4-128": Chips("v4:4x4x4", 64, 32 * GIB, 275e12, {"chip_config_name": "megacore"}),
    "v5e-16": Chips("v5e:4x4", 16, 16 * GIB, 197e12),
    "v5e-256": Chips("v5e:16x16", 256, 16 * GIB, 197e12),
    "2 x v5e-16": Chips("v5e:4x4", 32, 16 * GIB, 197e12, {"num_slices": 2}),
    "v6e-8": Chips("v6e:2x4", 8, 32 * GIB, 918e12),
}


class Row(NamedTuple):
    """A config, the phase whose step is compiled, and where; the rest of `mesh` is data = -1."""

    config: str
    phase: str
    chips: str
    mesh: dict[str, int] = {}
    smoke: bool = False

    @property
    def name(self) -> str:
        return f"{self.config} {self.phase} on {self.chips}"


ROWS = (
    Row("librispeech.py:S", "joint", "v5e-16", smoke=True),
    Row("librispeech.py:M", "joint", "v5e-16", {"fsdp": 4}),
    Row("librispeech.py:L", "joint", "v4-128", {"fsdp": 4}),
    Row("librispeech.py:L", "joint", "v5e-256", {"fsdp": 4}),
    Row("librispeech.py:L", "joint", "2 x v5e-16", {"fsdp": 4, "tensor": 2, "dcn": 2}),
    Row("librispeech.py:M,best_rq", "joint", "v5e-16", {"fsdp": 4}),
    Row("librispeech.py:lstm", "joint", "v6e-8"),
    Row("tedlium.py", "joint", "v5e-16", {"fsdp": 4}),
    Row("wav2vec2_just.py:base", "joint", "v6e-8", {"fsdp": 2}),
    Row("wav2vec2_just.py:large", "joint", "v6e-8", {"fsdp": 8}),
    Row("birq.py:librispeech", "pretrain", "v5e-16", {"fsdp": 4}),
    Row("birq.py:yodas", "pretrain", "v5e-16", {"fsdp": 8}),
    Row("birq.py:ami,best_rq", "pretrain", "v6e-8", {"fsdp": 2}),
    Row("m2asr.py:librispeech_aishell,vc", "joint", "v6e-8", {"fsdp": 2}),
    Row("m2asr.py:covost,vm_uas", "joint", "v5e-16", {"fsdp": 4}),
)
CHARACTERS = 30  # letters, a few signs and the blank: a vocabulary that a run would learn


class Figures(NamedTuple):
    """What a compiled step needs, a device and a step."""

    name: str
    mesh: str
    parameters: int
    rows: dict[str, str]  # {stream: "rows x seconds"} of all devices together
    audio: float  # seconds
    flops: float  # of the encoder, forward 1, backward 2
    peak: int  # bytes
    arguments: int  # bytes: state and batch
    temporaries: int  # bytes
    collectives: dict[str, list[int]]  # {kind: [in the program's text, bytes of their results]}
    seconds: float  # of compiling, CPU time


def compile_row(row: Row) -> Figures:
    """UserError where the step does not fit."""
    import jax

    from bljust_jax import optim, sharding, step

    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    config, recipe = make_recipe(row)
    mesh = make_mesh(row)
    optimizer = optim.make(recipe.combiner, recipe.groups)
    state = jax.eval_shape(lambda: step.init_state(recipe, optimizer, 0))
    groups = optim.assign(state.params, recipe.groups)
    placed = sharding.state_sharding(state, mesh, optim.path_name)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed
    )
    phase = next(p for p in recipe.phases if p.name == row.phase)
    objectives = recipe.active(phase)
    streams = sorted({stream for o in objectives for stream in o.streams})
    buckets = largest_buckets(config, streams, sharding.batch_devices(mesh) * config.accumulate)
    batch = {
        stream: blank(buckets[stream], config.data.sample_rate, sharding.batch_sharding(mesh))
        for stream in streams
    }
    train_step = step.make_train_step(
        recipe, phase, optimizer, groups, config.seed, config.accumulate
    )
    jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(placed, None))
    began = time.process_time()
    try:
        with jax.set_mesh(mesh):
            program = jitted.lower(state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"{row.name}: does not fit: {' '.join(str(error).split())[:300]}"
        ) from error
    spent = time.process_time() - began
    heard = [(o, buckets[o.streams[0]]) for o in objectives]
    memory, share = program.memory_analysis(), sharding.batch_devices(mesh)
    figures = Figures(
        name=row.name,
        mesh=" x ".join(f"{name} {n}" for name, n in mesh.shape.items() if n > 1),
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)),
        rows={s: f"{b.batch_size} x {b.seconds:g} s" for s, b in buckets.items()},
        audio=sum(b.batch_size * b.seconds for _, b in heard) / share,
        flops=sum(
            b.batch_size * recipe.cost(phase.losses & {*o.losses}, b.seconds) for o, b in heard
        )
        / mesh.size,
        peak=memory.peak_memory_in_bytes,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        collectives=collectives(program.as_text()),
        seconds=spent,
    )
    have = CHIPS[row.chips].memory
    if figures.peak > have:
        raise UserError(
            f"{row.name}: does not fit: {figures.peak / GIB:.1f} GiB a device, which has "
            f"{have / GIB:.0f}"
        )
    return figures


def make_recipe(row: Row) -> tuple[Any, Any]:
    """(config, recipe), as training on data of the configured kind would build them."""
    import importlib.util

    from bljust_jax import recipes

    file, _, variants = row.config.partition(":")
    path = pathlib.Path("configs") / file
    found = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    config = module.get_config(variants)
    config.ctc.implementation = "pallas_tpu"  # what "auto" is on a TPU
    texts = {name: stream.text for name, stream in config.data.streams.items()}
    texts = texts or {"labelled": config.data.text}
    sizes = {
        name: CHARACTERS if text.units == "characters" else text.vocab_size + 1
        for name, text in texts.items()
    }
    epoch = dict.fromkeys((*sizes, "unlabelled"), 1000)
    return config, recipes.load(config.recipe)(config, recipes.Facts(sizes, epoch))


def make_mesh(row: Row) -> Any:
    from jax.experimental import topologies

    from bljust_jax import sharding

    chips = CHIPS[row.chips]
    found = topologies.get_topology_desc(
        platform="tpu", topology_name=chips.topology, **chips.options
    )
    sizes = {name: row.mesh.get(name, 1) for name in sharding.AXES}
    sizes["data"] = chips.count // math.prod(sizes.values())
    slices = chips.options.get("num_slices", 1)
    return sharding.lay_out(tuple(sizes.values()), found.devices, slices)


def largest_buckets(config: Any, streams: Sequence[str], multiple: int) -> dict[str, Any]:
    """{stream: the bucket of its longest rows}, of streams of equal shares."""
    from bljust_jax.data.plan import bucket_table

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
