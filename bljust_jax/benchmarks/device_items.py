"""Measurements of `bench device`: one function per kind of item, called with the item's arguments.

Sizes are those of an accelerator; on a CPU, where only the code is tried, they are tiny.
"""

import gzip
import json
import pathlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bljust_jax.benchmarks import ctc as ctc_benchmark
from bljust_jax.benchmarks import step, step_ahead, traffic
from bljust_jax.benchmarks.device_names import FRAMES, KERNELS
from bljust_jax.benchmarks.interleave import interleave
from bljust_jax.common.console import log
from bljust_jax.common.errors import UserError
from bljust_jax.models.attention import Attention, attend
from bljust_jax.models.conformer_block import ConvModule, DepthwiseConv, FeedForward
from bljust_jax.models.norms import LayerNorm
from bljust_jax.models.subsampling import Subsampling
from bljust_jax.ops.log_mel import valid_frames
from bljust_jax.parallel.mesh import make_mesh

ROUNDS = 5
HALF = jnp.bfloat16


class Sizes(NamedTuple):
    """Sizes of all items."""

    copied: int  # bytes
    product: int  # rows and columns
    frames: dict[str, int]  # of attention, by the names in `FRAMES`
    heads: int
    step: step.Shape
    ctc: tuple[int, int, int, int]


FULL = Sizes(
    8 * 10**9,
    8192,
    {name: int(name) for name in FRAMES},
    8,
    step.Shape(64, 16, 512, 17),
    (32, 1600, 200, 1000),
)
TINY = Sizes(
    10**6,
    64,
    dict(zip(FRAMES, (12, 8, 10, 7), strict=True)),
    4,
    step.Shape(4, 1, 32, 2),
    (2, 12, 3, 5),
)


def sizes() -> Sizes:
    """Those of the backend."""
    return TINY if jax.default_backend() == "cpu" else FULL


def measure(name: str) -> dict[str, Any]:
    """The figures of an item. UserError if this machine cannot measure it."""
    kind, *arguments = name.split("/")
    return KINDS[kind](*arguments)


def seconds(run: Callable[[], Any]) -> float:
    """The least time of a call that waits for its result."""
    return interleave({"run": run}, ROUNDS, lambda line: None)["run"]["min_s"]


def blocking(function: Callable, *args: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(function(*args))


def random(shape: tuple[int, ...], seed: int, dtype: Any = HALF) -> jax.Array:
    """Normal deviates, made on the device."""
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def copy() -> dict[str, Any]:
    """Bytes per second of reading and writing an array."""
    x = jnp.zeros(sizes().copied // 4, jnp.float32)
    spent = seconds(blocking(jax.jit(lambda x: x + 1), x))
    return {"GB": x.nbytes / 1e9, "ms": 1e3 * spent, "TB_per_s": 2 * x.nbytes / spent / 1e12}


def product() -> dict[str, Any]:
    """FLOP/s of a square product in bfloat16."""
    n = sizes().product
    x = random((n, n), 0)
    spent = seconds(blocking(jax.jit(lambda x: x @ x), x))
    return {"n": n, "ms": 1e3 * spent, "TFLOP_per_s": 2 * n**3 / spent / 1e12}


def attention(form: str, frames: str, again: str = "") -> dict[str, Any]:
    """A form of attention with a trained bias against plain XLA in float32, full and causal:
    largest error of the output and of each gradient over the largest magnitude; whether two calls
    give equal bits; milliseconds forward and backward."""
    del again
    t, (rows, _, dim, _), heads = sizes().frames[frames], sizes().step, sizes().heads
    shapes = [(rows, t, heads, dim // heads)] * 3 + [(rows, heads, t, t)]
    operands = [random(shape, seed) for seed, shape in enumerate(shapes)]
    operands[0] = operands[0] * (dim // heads) ** -0.5
    lengths = jnp.full(rows, t).at[:3].set(jnp.array([0, 1, t])).at[3:].add(-t // 8)
    valid = valid_frames(t, lengths)
    slope = random(shapes[0], 9, jnp.float32)

    def make(form: str, causal: bool) -> Callable:
        def loss(q, k, v, bias):
            out = attend(q, k, v, bias, valid, causal=causal, form=form)
            out = jnp.where(valid[..., None, None], out.astype(jnp.float32), 0)
            return jnp.sum(out * slope), out

        def run(q, k, v, bias):
            (_, out), grads = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(q, k, v, bias)
            return out, *grads

        return jax.jit(run)

    found: dict[str, Any] = {"T": t}
    for name, causal in (("full", False), ("causal", True)):
        ours = make(form, causal)
        first, second = (jax.block_until_ready(ours(*operands)) for _ in range(2))
        equal = all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        with jax.default_matmul_precision("highest"):
            wide = [x.astype(jnp.float32) for x in operands]
            exact = make("xla", causal)(*wide)
        errors = [relative_error(a, b) for a, b in zip(first, exact, strict=True)]
        found[name] = dict(zip(("out", "dq", "dk", "dv", "dbias"), errors, strict=True))
        found[name] |= {"equal_bits": equal, "ms": 1e3 * seconds(blocking(ours, *operands))}
    return found


def relative_error(found: jax.Array, exact: jax.Array) -> float:
    """Largest difference over the largest magnitude; infinite where `found` is not finite."""
    difference = jnp.max(jnp.abs(found.astype(jnp.float32) - exact.astype(jnp.float32)))
    error = float(difference / jnp.max(jnp.abs(exact)))
    return error if np.isfinite(error) else float("inf")


def kernel(name: str) -> dict[str, Any]:
    """Milliseconds, counted bytes and bytes per second of a layer, forward and backward, with
    gradients of parameters and input."""
    (rows, _, dim, _), frames = sizes().step, sizes().frames[FRAMES[0]]
    heads, taps = sizes().heads, 31
    valid = jnp.ones((rows, frames), bool)
    x = random((rows, frames, dim), 0)
    features = random((rows, 4 * frames, 80), 1, jnp.float32)
    lengths = jnp.full(rows, 4 * frames)
    layers: dict[str, tuple] = {
        "layer norm": (LayerNorm(dtype=HALF), x),
        "depthwise": (DepthwiseConv(taps), x),
        "feed-forward": (FeedForward(4, HALF), x),
        "convolution module": (ConvModule(taps, HALF), x, valid),
        "conv2d": (Subsampling(dim, dim, 4, False, HALF), features, lengths),
        "separable": (Subsampling(dim, dim, 8, True, HALF), features, lengths),
    }
    for positions in ("relative", "rope"):
        for form in ("xla", "cudnn"):
            layer = Attention(heads, 0, HALF, positions, form)
            layers[f"{positions} {form}"] = layer, x, valid
    assert set(layers) == set(KERNELS)
    layer, first, *rest = layers[name]
    params = layer.init(jax.random.key(0), first, *rest)["params"]

    def loss(params, x):
        out = layer.apply({"params": params}, x, *rest)
        out = out[0] if isinstance(out, tuple) else out
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    return timed_program(jax.jit(jax.grad(loss, (0, 1))), params, first)


def timed_program(function: Any, *args: Any) -> dict[str, Any]:
    """Compile seconds, milliseconds per call, counted bytes and kernels, bytes per second,
    temporaries of a jitted function."""
    began = time.perf_counter()
    program = function.lower(*args).compile()
    compiling = time.perf_counter() - began
    counted, spent = traffic.count(program.as_text()), seconds(blocking(program, *args))
    return {
        "ms": 1e3 * spent,
        "GB": counted.bytes / 1e9,
        "TB_per_s": counted.bytes / spent / 1e12,
        "kernels": counted.kernels,
        "temporary_gib": program.memory_analysis().temp_size_in_bytes / 2**30,
        "compile_s": compiling,
    }


FAST = {"model__subsampling": "parakeet", "model__channels": 256}
FAST_TINY = FAST | {"model__channels": 8}


def fields_of(words: list[str]) -> dict[str, Any]:
    """Config fields of an item such as "names rope cudnn": a rematerialisation policy, "rope",
    "fast" (separable front end) and the form of attention."""
    found: dict[str, Any] = {}
    for word in words:
        if word in ("none", "dots", "full", "names"):
            found["model__remat"] = word
        elif word == "rope":
            found["model__positions"] = "rope"
        elif word == "fast":
            found |= FAST_TINY if sizes() is TINY else FAST
        else:
            found["model__attention"] = word
    return found


def blocks(name: str) -> dict[str, Any]:
    """The blocks of the encoder alone, forward and backward, under a policy."""
    shape = sizes().step
    config = step.make_config(shape, "bfloat16", **fields_of(name.split()))
    function, operands = step_ahead.blocks_of(config, shape)
    values = jax.tree.map(random_like, operands)
    with jax.set_mesh(make_mesh(data=1)):
        return timed_program(jax.jit(function), *values)


def random_like(x: Any) -> jax.Array:
    """Small deviates of this shape and type; for lengths the largest value."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.full(x.shape, 2**30, x.dtype)
    return 0.05 * random(x.shape, 0, x.dtype)


def whole_step(name: str, flags: str = "") -> dict[str, Any]:
    """A step of `bench`: time, throughput, MFU, compile seconds, and losses and gradient norms of
    the first step."""
    del flags
    what, *words = name.split()
    program = compile_step(what, words)
    means = program.run()
    first = {
        key: float(total / max(weight, 1e-9))
        for key, (total, weight) in means.items()
        if key.endswith("/loss") or "/norm/" in key
    }
    times = {"ours": {"min_s": seconds(program.run), "median_s": 0.0}}
    row = step.report({"ours": program}, times, "bfloat16")["ours"]
    del row["median_s"]
    return {"ms": 1e3 * row.pop("min_s")} | row | {"first step": first}


def compile_step(what: str, words: list[str]) -> step.Program:
    """The CTC step with Parakeet's subsampling, or the joint step."""
    fields, phase = fields_of(words), "joint"
    if what == "CTC":
        fields = {"method": "supervised", "model__subsampling": "parakeet"} | fields
        phase = "supervised"
    shape = sizes().step
    config = step.make_config(shape, "bfloat16", **fields)
    return step.compile_step(config, phase, step.make_batch(shape), log)


def peer(name: str) -> dict[str, Any]:
    """A peer's training step at the size of the CTC step."""
    shape = sizes().step
    fields = {"method": "supervised", "model__subsampling": "parakeet"}
    config = step.make_config(shape, "bfloat16", **fields)
    made = step.make_peer(name, config, step.make_batch(shape))
    if isinstance(made, str):
        raise UserError(made)
    run, parameters = made
    spent = seconds(run)
    audio = shape.rows * shape.seconds
    return {"ms": 1e3 * spent, "audio_s_per_s": audio / spent, "parameters": parameters}


def trace(name: str) -> dict[str, Any]:
    """The longest kernels of three steps, in milliseconds per step, from a trace of jax."""
    what, *words = name.split()
    program, steps = compile_step(what, words), 3
    program.run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            for _ in range(steps):
                program.run()
        (path,) = pathlib.Path(folder).rglob("perfetto_trace.json.gz")
        spent = kernel_times(json.loads(gzip.decompress(path.read_bytes()))["traceEvents"])
    total = sum(spent.values()) / steps / 1e3
    longest = [[name, ms / steps / 1e3] for name, ms in spent.most_common(60)]
    return {"ms": total, "names": len(spent), "longest": longest}


def kernel_times(events: list[dict[str, Any]]) -> Counter[str]:
    """{name: microseconds} of the events on devices; on those of the host if there is none."""
    processes = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    devices = {pid for pid, name in processes.items() if "/device:" in name}
    # a GPU has a line per stream, beside lines that sum up kernels by module or operation
    lines = {
        (e["pid"], e["tid"])
        for e in events
        if e.get("name") == "thread_name" and "stream" in e["args"]["name"].lower()
    }
    spent: Counter[str] = Counter()
    for e in events:
        place = e.get("pid"), e.get("tid")
        if e.get("ph") == "X" and (place in lines if lines else place[0] in (devices or processes)):
            spent[e["name"]] += e["dur"]
    return spent


def ctc() -> dict[str, Any]:
    """CTC value and gradient of each implementation and peer, in milliseconds."""
    found = ctc_benchmark.measure(ctc_benchmark.Shape(*sizes().ctc), rounds=ROUNDS, log=log)
    return {f"{name} ms": 1e3 * row["min_s"] for name, row in found["rows"].items()}


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "copy": copy,
    "product": product,
    "attention": attention,
    "kernel": kernel,
    "blocks": blocks,
    "step": whole_step,
    "peer": peer,
    "trace": trace,
    "ctc": ctc,
}
