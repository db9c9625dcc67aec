"""Rotary positions (RoPE): queries and keys turned by angles that grow with their frame."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bljust_jax.models.norms import at_least_float32


def rotate(x: Float[Array, "b t h s"]) -> Float[Array, "b t h s"]:
    """Turns the pair (x[t, i], x[t, i + S/2]) by the angle t w_i, w_i = 10000^(-2i/S), S even.

    The product of a rotated query i and a rotated key j then depends on i - j alone, besides their
    contents, and needs no parameter and no bias per pair of frames. The arithmetic is float32 or
    wider, the result has the dtype of x. Source: Su et al., RoFormer, 2021, equation 34, with the
    halves of a head as pairs.
    """
    frames, size = x.shape[1], x.shape[-1]
    angle = np.arange(frames)[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)[None, :]
    wide = at_least_float32(x)
    sin, cos = (jnp.asarray(f(angle), wide.dtype)[None, :, None] for f in (np.sin, np.cos))
    first, second = jnp.split(wide, 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
