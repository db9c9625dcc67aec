"""Benchmark of a BiRQ step against a BEST-RQ step: the same encoder, masks, codebook and batch.

BiRQ adds a pass over the clean features up to layer k = 0.7 K, with or without its backward pass,
and soft labels over the whole codebook. The steps are those of training, without dropout.
"""

from collections.abc import Callable
from typing import Any

from bljust_jax.benchmarks.interleave import interleave, ratios, table
from bljust_jax.benchmarks.step import (
    Shape,
    chosen,
    compile_step,
    make_batch,
    report,
    row_of,
    set_size,
    size_of,
)
from configs import birq

SHAPES = {
    "cpu": Shape(4, 10, 256, 10),
    "gpu": Shape(64, 12, 768, 10),
    "tpu": Shape(64, 12, 768, 10),
}


def make_config(shape: Shape, dtype: str, variant: str, label_gradient: bool = True) -> Any:
    """The paper's config at this size."""
    config = birq.get_config(variant)
    set_size(config, shape, dtype)
    config.model.remat = "none"
    config.birq.label_gradient = label_gradient
    return config


def run(
    *, shapes: list[tuple[int, ...]] | None, dtype: str, rounds: int, log: Callable[[str], None]
) -> dict[str, Any]:
    """{"shapes": times, memory and ratios at each}; UserError for a shape that the encoder does not
    support."""
    results = []
    for shape in chosen(shapes, SHAPES):
        log(f"birq {shape}")
        batch = make_batch(shape)
        configs = {
            "best_rq": make_config(shape, dtype, "best_rq"),
            "birq": make_config(shape, dtype, "birq"),
            "fixed labels": make_config(shape, dtype, "birq", label_gradient=False),
        }
        programs = {
            name: compile_step(config, "pretrain", batch, log) for name, config in configs.items()
        }
        times = interleave({name: p.run for name, p in programs.items()}, rounds, log)
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
        lines += ["step of BiRQ, and without its labels' gradient, against BEST-RQ", size_of(at)]
        lines.append(table([row_of(*row) for row in at["rows"].items()]))
        lines += [
            f"time of {name} / best_rq: {r['min']:.3f} by minima, {r['median']:.3f} by medians; "
            f"{r['flops']:.3f} by FLOPs"
            for name, r in at["over"].items()
        ]
        lines.append("")
    return lines
