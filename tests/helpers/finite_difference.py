"""Derivatives of models against finite differences, in float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_slope(output: Callable[[Any], Any], params: Any) -> None:
    """Compare the derivative of sum(sin(output(params))) in one random direction with a central
    difference. To be called under `jax.enable_x64(True)`; `params` are made float64."""
    exact = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
    draw = np.random.default_rng(1)
    direction = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape), exact)

    @jax.jit
    @jax.value_and_grad
    def loss(s):
        moved = jax.tree.map(lambda p, d: p + s * d, exact, direction)
        return jnp.sum(jnp.sin(output(moved)))

    slope = loss(jnp.float64(0.0))[1]
    # Central differences: error O(step^2) = 1e-10 and rounding 1e-16 / step = 1e-11.
    difference = (loss(jnp.float64(1e-5))[0] - loss(jnp.float64(-1e-5))[0]) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-6)
