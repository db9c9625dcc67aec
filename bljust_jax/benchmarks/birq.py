"""Benchmark of a BiRQ step against a BEST-RQ step: the same encoder, masks, codebook and batch.

BiRQ adds a pass over the clean features up to layer k = 0.7 K, with or without its backward pass,
and soft labels over the whole codebook. The steps are those of training, without dropout.
"""

from collections.abc import Callable
from typing import Any

from bljust_jax.benchmarks import step
from bljust_jax.benchmarks.interleave import ratios
from bljust_jax.benchmarks.step import Shape
from configs import birq

SHAPES = {
    "cpu": [Shape(4, 10, 256, 10)],
    "gpu": [Shape(64, 12, 768, 10)],
    "tpu": [Shape(64, 12, 768, 10)],
}


def make_config(shape: Shape, dtype: str, variant: str, label_gradient: bool = True) -> Any:
    """The paper's config at this size."""
    config = birq.get_config(variant)
    step.set_size(config, shape, dtype)
    config.model.remat = "none"
    config.birq.label_gradient = label_gradient
    return config


def measure(shape: Shape, *, dtype: str, rounds: int, log: Callable[[str], None]) -> dict[str, Any]:
    """Times, memory and ratios; UserError for a shape that the encoder does not support."""
    batch = step.make_batch(shape)
    configs = {
        "best_rq": make_config(shape, dtype, "best_rq"),
        "birq": make_config(shape, dtype, "birq"),
        "fixed labels": make_config(shape, dtype, "birq", label_gradient=False),
    }
    programs = {
        name: step.compile_step(config, "pretrain", batch, log) for name, config in configs.items()
    }
    rows = step.time_programs(programs, dtype, rounds, log)
    over = {
        name: ratios(rows, [name], ["best_rq"])
        | {"flops": programs[name].flops / programs["best_rq"].flops}
        for name in ("birq", "fixed labels")
    }
    return {"shape": shape._asdict(), "dtype": dtype, "rows": rows, "over": over}


def describe(result: dict[str, Any]) -> list[str]:
    """The table, in lines of at most 100 columns."""
    title = "step of BiRQ, and without its labels' gradient, against BEST-RQ"
    over = {f"time of {name} / best_rq": ratio for name, ratio in result["over"].items()}
    return step.describe_rows(title, result, result["rows"], over)
