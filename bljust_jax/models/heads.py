"""Linear heads on an encoder, single or stacked: parameters and application."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bljust_jax.common.shapes import Frames, Logits, Rng


def init(rng: Rng, dim: int, out: int, *, steps: int | None = None) -> dict[str, Array]:
    """{"kernel": `[dim, out]`, "bias": `[out]`}; with `steps`, one map per step on a leading axis.

    Kernels are normal with variance 1 / dim, biases 0, float32.
    """
    lead = () if steps is None else (steps,)
    kernel = jax.random.normal(rng, (*lead, dim, out), jnp.float32) * dim**-0.5
    return {"kernel": kernel, "bias": jnp.zeros((*lead, out), jnp.float32)}


def apply(params: dict[str, Array], x: Frames) -> Logits | Float[Array, "b t steps k"]:
    """x @ kernel + bias in float32: `[B, T, K]`, or `[B, T, steps, K]` for a stack of maps."""
    kernel, bias = params["kernel"], params["bias"]
    x = x.astype(kernel.dtype)
    if kernel.ndim == 2:
        return x @ kernel + bias[None, None, :]
    return jnp.einsum("btd,sdk->btsk", x, kernel) + bias[None, None, :, :]
