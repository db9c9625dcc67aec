"""Benchmark of CTC value and gradient, log-softmax included, against optax and torch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bljust_jax.benchmarks import torch_peer
from bljust_jax.benchmarks.interleave import MIB, interleave, ratios, table
from bljust_jax.common.errors import UserError
from bljust_jax.ops.ctc import ctc_loss


class Shape(NamedTuple):
    """Size of a batch."""

    utterances: int
    frames: int
    labels: int
    classes: int


LONG, SHORT = Shape(32, 1600, 200, 1000), Shape(16, 400, 100, 1000)
SHAPES = {
    "cpu": [SHORT, LONG, Shape(8, 400, 50, 32)],
    "gpu": [LONG, SHORT],
    "tpu": [LONG, SHORT],
}
# "auto" is what training uses, and what is compared with the peers.
OURS = {
    "cpu": ("auto", "scan", "one_scan"),
    "gpu": ("auto", "scan", "one_scan", "pallas_gpu"),
    "tpu": ("auto", "scan", "one_scan", "pallas_tpu"),
}


class Task(NamedTuple):
    """A batch of untrained logits with every frame and label real."""

    logits: Any  # [B, T, K] float32, standard normal
    logit_lengths: Any  # [B]
    labels: Any  # [B, U], in 1 ... K - 1
    label_lengths: Any  # [B]


class Contender(NamedTuple):
    """A compiled loss with its gradient, on the task's arrays."""

    run: Callable[[], tuple[Any, Any]]  # () -> (losses [B], gradient of their sum [B, T, K])
    temporaries: int | None  # bytes, by the compiler


def make_task(shape: Shape) -> Task:
    """Random logits and labels; UserError for a shape that CTC cannot align."""
    b, t, u, k = shape
    if not (0 < 2 * u <= t and k > 1):
        raise UserError(f"--shapes {b},{t},{u},{k}: want FRAMES >= 2 LABELS and CLASSES >= 2")
    rng = np.random.default_rng(0)
    return Task(
        rng.standard_normal((b, t, k), np.float32),
        np.full(b, t, np.int32),
        rng.integers(1, k, (b, u), dtype=np.int32),
        np.full(b, u, np.int32),
    )


def optax_loss(logits, logit_lengths, labels, label_lengths):
    """optax.ctc_loss with lengths instead of paddings; blank 0, returns [B]."""
    frames, width = jnp.arange(logits.shape[1])[None], jnp.arange(labels.shape[1])[None]
    past = (frames >= logit_lengths[:, None]).astype(logits.dtype)
    unused = (width >= label_lengths[:, None]).astype(logits.dtype)
    return optax.ctc_loss(logits, past, labels, unused)


def compile_value_and_grad(loss: Callable, task: Task) -> Any:
    """The compiled ((sum, losses), gradient) of the task's logits."""

    def total(logits, rest):
        losses = loss(logits, *rest)
        return jnp.sum(losses), losses

    both = jax.jit(jax.value_and_grad(total, has_aux=True))
    return both.lower(task.logits, tuple(task[1:])).compile()


def jax_contender(loss: Callable, task: Task, precision: str | None = None) -> Contender:
    """A loss written in jax, compiled at a precision of matrix products."""
    with jax.default_matmul_precision(precision):
        program = compile_value_and_grad(loss, task)
    arguments = jax.device_put((task.logits, tuple(task[1:])))

    def run():
        (_, losses), gradient = jax.block_until_ready(program(*arguments))
        return losses, gradient

    return Contender(run, program.memory_analysis().temp_size_in_bytes)


def exact(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """(losses, gradient) in float64 by optax, whose recursion is independent of ours."""
    with jax.enable_x64(True):
        wide = Task(np.float64(task.logits), *task[1:])
        (_, losses), gradient = compile_value_and_grad(optax_loss, wide)(
            wide.logits, tuple(wide[1:])
        )
        return np.asarray(losses), np.asarray(gradient)


def contenders(task: Task, platform: str) -> tuple[dict[str, Contender], list[str]]:
    """({name: contender}, lines with the reason for each that cannot run)."""
    found, notes = {}, []
    for name in OURS[platform]:
        try:
            found[name] = jax_contender(partial(ctc_loss, implementation=name), task)
        except ValueError as error:  # the kernel does not support this jax or shape
            notes.append(f"{name} cannot run: {error}")
    found["optax"] = jax_contender(optax_loss, task)
    if platform != "cpu":  # its one-hot products may be rounded to TF32 or bfloat16
        found["optax highest"] = jax_contender(optax_loss, task, "highest")
    reason = torch_peer.absent("torch")
    if reason:
        return found, [*notes, reason]
    found["torch"] = Contender(torch_peer.ctc(*task), None)
    return found, notes


def errors(contender: Contender, expected: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Largest relative error of a loss and absolute error of a gradient entry, against float64."""
    losses, gradient = (
        np.asarray(jax.device_get(x), np.float64) for x in map(host, contender.run())
    )
    return {
        "loss_error": float(np.max(np.abs(losses - expected[0]) / np.abs(expected[0]))),
        "gradient_error": float(np.max(np.abs(gradient - expected[1]))),
    }


def host(x: Any) -> Any:
    """A torch tensor on the CPU; anything else unchanged."""
    return x.cpu() if hasattr(x, "cpu") else x


def measure(shape: Shape, *, rounds: int, log: Callable[[str], None]) -> dict[str, Any]:
    """Times, memory and errors of every contender, and "auto" against each peer; UserError for a
    shape that CTC cannot align."""
    platform, task = jax.default_backend(), make_task(shape)
    found, notes = contenders(task, platform)
    expected = exact(task)
    rows = {
        name: {"temporary_mib": c.temporaries and c.temporaries / MIB} | errors(c, expected)
        for name, c in found.items()
    }
    times = interleave({name: c.run for name, c in found.items()}, rounds, log)
    rows = {name: times[name] | row for name, row in rows.items()}
    return {"shape": list(shape), "rows": rows, "notes": notes} | compare(rows, OURS[platform])


def compare(rows: dict[str, dict], ours: tuple[str, ...]) -> dict[str, Any]:
    """Speed of "auto" relative to each peer, and its memory relative to optax's."""
    peers = [name for name in rows if name not in ours]
    faster = {peer: ratios(rows, [peer], ["auto"]) for peer in peers}
    memory = rows["auto"]["temporary_mib"] / rows["optax"]["temporary_mib"]
    return {"times_faster": faster, "memory_over_optax": memory}


def describe(result: dict[str, Any]) -> list[str]:
    """The table, in lines of at most 100 columns."""
    b, t, u, k = result["shape"]
    lines = [
        f"CTC value and gradient, {b} x {t} frames, {u} labels, {k} classes",
        table([row_of(name, result) for name in result["rows"]]),
        f"temporaries of auto / optax: {result['memory_over_optax']:.3f}",
    ]
    if "optax highest" in result["rows"]:
        default, highest = (result["rows"][n]["loss_error"] for n in ("optax", "optax highest"))
        lines.append(f"optax's one-hot products: loss off by {default:.2g}, {highest:.2g} exact")
    return lines + result["notes"]


def row_of(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    row = result["rows"][name]
    return {
        "": name,
        "min ms": 1e3 * row["min_s"],
        "median ms": 1e3 * row["median_s"],
        "auto faster": result["times_faster"].get(name, {}).get("min"),
        "temp MiB": row["temporary_mib"],
        "loss rel err": row["loss_error"],
        "grad abs err": row["gradient_error"],
    }
