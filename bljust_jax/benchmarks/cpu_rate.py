"""Rates per CPU second, which other programs on a machine change less than those per second."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

SIZE = 1024  # of the product: large enough for the peak, 2 GFLOP


def cpu_seconds(run: Callable[[], Any], rounds: int = 2) -> float:
    """The fewest CPU seconds of a call, all threads of this process together."""
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        run()
        spent.append(time.process_time() - began)
    return max(min(spent), 1e-9)


def product_flops() -> float:
    """FLOPs per CPU second of a square product in float32: the peak that steps can come near."""
    x = jnp.ones((SIZE, SIZE), jnp.float32)
    multiply = jax.jit(lambda x: x @ x)
    jax.block_until_ready(multiply(x))
    return 2 * SIZE**3 / cpu_seconds(lambda: jax.block_until_ready(multiply(x)), rounds=7)
