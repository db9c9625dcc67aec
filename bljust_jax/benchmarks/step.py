"""Benchmark of training steps: against torch, joint against single, one forward pass against two.

Each is the whole step of training: log-mel of int16 audio, losses, gradients, clipping, AdamW, EMA;
without dropout and SpecAugment, as the peer has neither.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from bljust_jax import recipes
from bljust_jax.benchmarks import cpu_rate, torch_peer, traffic
from bljust_jax.benchmarks.interleave import MIB, interleave, ratios, table
from bljust_jax.bilevel import step
from bljust_jax.bilevel.types import Phase, Recipe
from bljust_jax.models import audio_features
from bljust_jax.models.encoders import conformer
from bljust_jax.monitoring import flops, peak_flops
from bljust_jax.parallel.mesh import make_mesh, put_batch
from bljust_jax.train.system import jit_train_step, make_system, seed_of
from configs import defaults

VOCAB_SIZE = 1000
LABELS_PER_SECOND = 4.0  # of pieces
RATE = 16000


class Shape(NamedTuple):
    """Rows of a batch, seconds per row, width and blocks of the encoder."""

    rows: int
    seconds: int
    dim: int
    layers: int


SHAPES = {
    "cpu": [Shape(4, 10, 256, 8)],
    "gpu": [Shape(64, 16, 512, 17)],
    "tpu": [Shape(32, 16, 512, 17)],
}


class Program(NamedTuple):
    """A compiled step with its own state, and its cost."""

    run: Callable[[], dict]  # one step; its metrics
    temporaries: int  # bytes, by the compiler
    gradients: int  # bytes of one tree of gradients
    flops: float  # of the encoder, forward and backward, by `Conformer.flops`
    parameters: int
    audio: float = 0.0  # seconds read per step, all streams together
    bytes: float = 0.0  # that its kernels read and write, by `traffic`
    compile_s: float = 0.0


EPOCH_HOURS = 960  # of LibriSpeech


def make_config(shape: Shape, dtype: str, **fields: Any) -> Any:
    """The default config at this size, changed by `fields` such as ctc__context="causal"."""
    config = defaults.base()
    set_size(config, shape, dtype)
    config.specaugment.update(freq_masks=0, time_masks=0)
    for path, value in fields.items():
        *groups, name = path.split("__")
        node = config
        for group in groups:
            node = node[group]
        node[name] = value
    return config


def set_size(config: Any, shape: Shape, dtype: str) -> None:
    """Set width, depth and type of the encoder; no dropout."""
    heads = max(4, shape.dim // 64)
    config.model.update(dim=shape.dim, layers=shape.layers, heads=heads, channels=shape.dim)
    config.model.update(dropout=0.0, dtype=dtype)


def make_batch(shape: Shape) -> dict[str, dict[str, np.ndarray]]:
    """A batch of both streams: noise of full length, labels in 1 ... K - 1."""
    rng = np.random.default_rng(0)
    b, samples = shape.rows, shape.seconds * RATE
    count = round(shape.seconds * LABELS_PER_SECOND)
    audio = {
        "audio": rng.integers(-8000, 8000, (b, samples), dtype=np.int16),
        "audio_lengths": np.full(b, samples, np.int32),
        "ids": np.arange(b, dtype=np.uint32),
    }
    labels = {
        "labels": rng.integers(1, VOCAB_SIZE, (b, count), dtype=np.int32),
        "label_lengths": np.full(b, count, np.int32),
    }
    return {"labelled": audio | labels, "unlabelled": audio}


def compile_step(config: Any, phase_name: str, batch: dict, log: Callable[[str], None]) -> Program:
    """The step of a config's phase, compiled for this batch, with its own state."""
    facts = recipes.Facts({"labelled": VOCAB_SIZE}, {"labelled": 1000, "unlabelled": 1000})
    recipe = recipes.load(config.recipe)(config, facts)
    phase = next(p for p in recipe.phases if p.name == phase_name)
    log(f"compiling {phase_name}")
    return compile_phase(config, recipe, phase, batch)


def compile_phase(
    config: Any, recipe: Recipe, phase: Phase, batch: dict, optimizer: Any = None
) -> Program:
    """The step of a phase of a recipe on one device; `optimizer` replaces that of the config."""
    system = make_system(config, recipe, make_mesh(data=1), optimizer)
    state = step.compute_init_state(recipe, system.optimizer, config.seed)
    state = state._replace(stats=state.stats | recipe.statistics([batch["unlabelled"]]))
    state = jax.device_put(state, system.shardings)
    streams = {s for o in recipe.active(phase) for s in o.streams}
    batch = put_batch({s: batch[s] for s in sorted(streams)}, system.mesh)
    with jax.set_mesh(system.mesh):
        operands = batch, seed_of(config)
        began = time.perf_counter()
        program = jit_train_step(config, system, (phase,)).lower(state, *operands).compile()
        compiling = time.perf_counter() - began
    leaves = jax.tree.leaves(state.params)
    shapes = {name: part["audio"].shape for name, part in batch.items()}
    compute = dict(flops.FRESH)
    flops.count(
        compute, recipe, phase, {s: (b, samples / RATE) for s, (b, samples) in shapes.items()}
    )

    def run() -> dict:
        nonlocal state
        state, metrics = jax.block_until_ready(program(state, *operands))
        return metrics

    return Program(
        run,
        temporaries=program.memory_analysis().temp_size_in_bytes,
        gradients=sum(x.nbytes for x in leaves),
        flops=compute["flops"],
        parameters=sum(x.size for x in leaves),
        audio=3600 * compute["audio_hours"],
        bytes=traffic.count(program.as_text()).bytes,
        compile_s=compiling,
    )


def time_programs(
    programs: dict[str, Program], dtype: str, rounds: int, log: Callable[[str], None]
) -> dict[str, dict]:
    """Interleaved times of the programs, and the other figures of `report`."""
    times = interleave({name: p.run for name, p in programs.items()}, rounds, log)
    return report(programs, times, dtype)


def report(programs: dict[str, Program], times: dict[str, dict], dtype: str) -> dict[str, dict]:
    """Times, memory, throughput, FLOP/s and MFU of each program; on a CPU the FLOPs per CPU second,
    and their share of those of a product of matrices in this run.

    RuntimeError if a step was skipped as not finite, because its time would mislead.
    """
    rows, peak = {}, peak_flops.flops([jax.devices()[0].device_kind], dtype)
    product = cpu_rate.product_flops() if jax.default_backend() == "cpu" else 0.0
    for name, program in programs.items():
        skipped, _ = program.run()["train/skipped"]
        if float(skipped):
            raise RuntimeError(f"{name}: a step was not finite, so its time is meaningless")
        rate = program.flops / times[name]["min_s"]
        rows[name] = times[name] | {
            "temporary_mib": program.temporaries / MIB,
            "gradients_mib": program.gradients / MIB,
            "gflop_per_s": rate / 1e9,
            "mfu": rate / peak if peak else None,
            "parameters": program.parameters,
            "gb": program.bytes / 1e9,
            "compile_s": program.compile_s,
        }
        rows[name] |= throughput(program.audio, times[name]["min_s"])
        if product:
            rate = program.flops / cpu_rate.cpu_seconds(program.run)
            rows[name] |= {"gflop_per_cpu_s": rate / 1e9, "product_share": rate / product}
    return rows


def throughput(audio: float, seconds: float) -> dict[str, float]:
    """Seconds of audio per second, on the one device; hours for as much audio as LibriSpeech has,
    960 h, of all streams together."""
    return {
        "audio_s_per_s": audio / seconds,
        "epoch_hours": EPOCH_HOURS * seconds / audio if audio else 0.0,
    }


def make_peer(name: str, config: Any, batch: dict) -> tuple[Callable[[], float], int] | str:
    """(a training step of a peer in `torch_peer.PEERS` on the labelled stream, number of its
    parameters), or the reason why it cannot run."""
    make, packages = torch_peer.PEERS[name]
    if reason := torch_peer.absent(*packages) or torch_peer.no_compiler(name):
        return reason
    labelled = batch["labelled"]
    features, _, _ = audio_features.make_features(config)(
        labelled["audio"], labelled["audio_lengths"], keys=None, train=False
    )
    model = conformer.make_model(config)
    return make(np.asarray(features), labelled["labels"], VOCAB_SIZE, model)


def supervised(shape: Shape, dtype: str, n: int, log: Callable[[str], None]) -> dict[str, Any]:
    """A CTC step with Parakeet's subsampling against steps of the peers, of that size."""
    config = make_config(shape, dtype, method="supervised", model__subsampling="parakeet")
    batch = make_batch(shape)
    programs = {"ours": compile_step(config, "supervised", batch, log)}
    runs = {name: p.run for name, p in programs.items()}
    notes, parameters = [], {}
    for name in torch_peer.PEERS:
        log(f"building {name}")
        made = make_peer(name, config, batch)
        if isinstance(made, str):
            notes.append(f"{name}: {made}")
        else:
            runs[name], parameters[name] = made
    times = interleave(runs, n, log)
    rows = report(programs, times, dtype)
    found: dict[str, Any] = {"rows": rows, "notes": notes}
    for name, count in parameters.items():
        rate = throughput(float(shape.rows * shape.seconds), times[name]["min_s"])
        rows[name] = times[name] | {"parameters": count} | rate
        found[f"over_{name.replace(' ', '_')}"] = ratios(times, ["ours"], [name])
    return found


def bilevel(shape: Shape, dtype: str, n: int, log: Callable[[str], None]) -> dict[str, Any]:
    """The joint step against the sum of the two single steps, and its memory against the larger; a
    step with one causal forward pass for both losses against two steps of that encoder."""
    batch = make_batch(shape)
    plain, causal = (make_config(shape, dtype, ctc__context=c) for c in ("full", "causal"))
    once = make_config(shape, dtype, ctc__context="causal", share_forward=True, gradients="fused")
    programs = {
        "joint": compile_step(plain, "joint", batch, log),
        "shared": compile_step(once, "joint", batch, log),
        "explore": compile_step(plain, "explore", batch, log),
        "finetune": compile_step(plain, "finetune", batch, log),
        "finetune causal": compile_step(causal, "finetune", batch, log),
    }
    rows = time_programs(programs, dtype, n, log)
    singles = [programs[name] for name in ("explore", "finetune")]
    return {
        "rows": rows,
        "notes": [],
        "joint_over_singles": ratios(rows, ["joint"], ["explore", "finetune"]),
        "shared_over_singles": ratios(rows, ["shared"], ["explore", "finetune causal"]),
        "joint_memory_over_single": memory_ratio(programs["joint"], *singles),
    }


def memory_ratio(together: Program, *singles: Program) -> float:
    """Temporaries without gradient trees (two in the joint step, one in a single step), relative to
    the larger single step."""
    largest = max(p.temporaries - p.gradients for p in singles)
    return (together.temporaries - 2 * together.gradients) / largest


def measure(shape: Shape, *, dtype: str, rounds: int, log: Callable[[str], None]) -> dict[str, Any]:
    """Both cases; UserError for a shape that `Conformer` does not support."""
    cases = {"supervised": supervised, "bilevel": bilevel}
    found = {name: case(shape, dtype, rounds, log) for name, case in cases.items()}
    return {"shape": shape._asdict(), "dtype": dtype, **found}


TITLES = {
    "supervised": "CTC step, Parakeet subsampling, against peers with torch",
    "bilevel": "joint and shared steps against single ones",
}
VERDICTS = {
    "over_torch": "time of ours / transformers' Parakeet, torch",
    "over_torch_compiled": "time of ours / transformers' Parakeet, torch.compile",
    "over_speechbrain": "time of ours / SpeechBrain's Conformer, torch",
    "joint_over_singles": "time of joint / (explore + finetune)",
    "shared_over_singles": "time of shared / (explore + finetune causal)",
}


def describe(result: dict[str, Any]) -> list[str]:
    """The tables, in lines of at most 100 columns."""
    lines = []
    for name, title in TITLES.items():
        case = result[name]
        compared = {words: case[key] for key, words in VERDICTS.items() if key in case}
        lines += [*([""] if lines else []), *describe_rows(title, result, case["rows"], compared)]
        if "joint_memory_over_single" in case:
            ratio = f"{case['joint_memory_over_single']:.3f}"
            lines.append(f"temporaries of joint / single, without gradient trees: {ratio}")
        lines += case["notes"]
    return lines


def describe_rows(
    title: str, result: dict[str, Any], rows: dict[str, dict], compared: dict[str, dict]
) -> list[str]:
    """The title, the size in `result`, the table of `rows`, and {words: ratio} `compared`."""
    shape = Shape(**result["shape"])
    size = f"{shape.dim} x {shape.layers}, {shape.rows} x {shape.seconds} s, {result['dtype']}"
    columns = time_of, cost_of
    lines = [title, size]
    for of in columns:
        lines += [table([of(*row) for row in rows.items()]), ""]
    lines.pop()
    for words, ratio in compared.items():
        by_flops = f"; {ratio['flops']:.3f} by FLOPs" if "flops" in ratio else ""
        verdict = f"{ratio['min']:.3f} by minima, {ratio['median']:.3f} by medians"
        lines.append(f"{words}: {verdict}{by_flops}")
    return lines


def time_of(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table of times."""
    cells = {"": name, "min s": row["min_s"], "median s": row["median_s"]}
    cells |= {"audio s/s": row.get("audio_s_per_s"), "h for 960 h": row.get("epoch_hours")}
    cells |= {"GFLOP/s": row.get("gflop_per_s"), "MFU": row.get("mfu")}
    if jax.default_backend() == "cpu":
        del cells["MFU"]
        cells |= {"GFLOP/CPU s": row.get("gflop_per_cpu_s")}
        cells |= {"of a product": row.get("product_share")}
    return cells


def cost_of(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table of costs."""
    return {
        "": name,
        "GB": row.get("gb"),
        "temp MiB": row.get("temporary_mib"),
        "gradients MiB": row.get("gradients_mib"),
        "compile s": row.get("compile_s"),
        "parameters": f"{row['parameters'] / 1e6:.1f} M",
    }
