"""Attention modules with random parameters, and their jitted output."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def randomised(attention, x, valid):
    params = jax.eval_shape(attention.init, jax.random.key(0), x, valid)["params"]
    return jax.tree.map(lambda leaf: normal(*leaf.shape, seed=leaf.size) * 0.5, params)


@partial(jax.jit, static_argnums=(0, 4))
def attend(attention, params, x, valid, causal=False):
    return attention.apply({"params": params}, x, valid, causal)
