"""A step of BiRQ against one of BEST-RQ: the same encoder, masks, codebook and batch.

BiRQ adds a pass over the clean features up to layer k = 0.7 K, with or without its backward pass,
and soft labels over the whole codebook. Steps are those that `train` takes, without dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from bljust_jax.benchmarks.interleave import interleave, ratios, table
from bljust_jax.benchmarks.step import Shape, compile_step, make_batch, report, row_of
from configs import birq

SHAPES = {
    "cpu": Shape(4, 10, 256, 10),
    "gpu": Shape(64, 12, 768, 10),
    "tpu": Shape(64, 12, 768, 10),
}


def make_config(shape: Shape, dtype: str, variant: str, label_gradient: bool = True) -> Any:
    """The paper's config at this size."""
    config = birq.get_config(variant)
    heads = max(4, shape.dim // 64)
    config.model.update(dim=shape.dim, layers=shape.layers, heads=heads, channels=shape.dim)
    config.model.update(dropout=0.0, dtype=dtype, remat="none")
    config.birq.label_gradient = label_gradient
    return config


def run(
    *, shapes: list[tuple[int, ...]] | None, dtype: str, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """{"shapes": times, memory and ratios at each}; UserError for one that no encoder has."""
    results = []
    for shape in [Shape(*s) for s in shapes] if shapes else [SHAPES[jax.default_backend()]]:
        say(f"birq {shape}")
        batch = make_batch(shape)
        configs = {
            "best_rq": make_config(shape, dtype, "best_rq"),
            "birq": make_config(shape, dtype, "birq"),
            "fixed labels": make_config(shape, dtype, "birq", label_gradient=False),
        }
        programs = {
            name: compile_step(config, "pretrain", batch, say) for name, config in configs.items()
        }
        times = interleave({name: p.run for name, p in programs.items()}, rounds, say)
        over = {
            name: ratios(times, [name], ["best_rq"])
            | {"flops": programs[name].flops / programs["best_rq"].flops}
            for name in ("birq", "fixed labels")
        }
        rows = report(programs, times, dtype)
        results.append({"shape": shape._asdict(), "dtype": dtype, "rows": rows, "over": over})
    return {"shapes": results}


def describe(result: dict[str, Any]) -> list[str]:
    """The tables, in lines of at most 100 columns."""
    lines = []
    for at in result["shapes"]:
        shape = Shape(**at["shape"])
        size = f"{shape.dim} x {shape.layers}, {shape.rows} x {shape.seconds} s, {at['dtype']}"
        rows = [row_of(*row) for row in at["rows"].items()]
        lines += ["step of BiRQ, and without its labels' gradient, against BEST-RQ", size]
        lines.append(table(rows))
        lines += [
            f"time of {name} / best_rq: {r['min']:.3f} by minima, {r['median']:.3f} by medians; "
            f"{r['flops']:.3f} by FLOPs"
            for name, r in at["over"].items()
        ]
        lines.append("")
    return lines
