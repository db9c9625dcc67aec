"""SpecAugment: random frequency and time masks, drawn with a key per utterance."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bljust_jax.common.shapes import Features, Lengths, Rng, RowKeys


def specaugment(
    features: Features,
    lengths: Lengths,
    keys: RowKeys,
    *,
    freq_masks: int = 2,
    freq_width: int = 27,
    time_masks: int = 2,
    time_width: int = 20,
    max_time_share: float = 0.15,
) -> Features:
    """Set random mel bands and spans of frames to 0, the mean of normalised features.

    The width of a mask is uniform on 0..cap and its start uniform where it fits. The cap is
    min(freq_width, M) bands, or min(time_width, floor(max_time_share * length)) frames per time
    mask; time masks lie inside the valid frames. Masks may overlap.

    Args:
      features: normalised features `[B, T, M]`, 0 in padded frames.
      lengths: valid frames `[B]`; 0 is allowed.
      keys: one typed key per row `[B]`; the masks of an utterance do not depend on its row.

    Source: Park et al., SpecAugment, Interspeech 2019, section 2 (no time warping).
    """
    frames, bands = features.shape[1:]

    def masked(length: Int[Array, ""], key: Rng) -> Bool[Array, "t m"]:
        draws = jax.random.uniform(key, (2, freq_masks + time_masks))
        time_cap = jnp.minimum(time_width, jnp.floor(max_time_share * length).astype(jnp.int32))
        in_band = _spans(draws[:, :freq_masks], bands, min(freq_width, bands), bands)
        in_time = _spans(draws[:, freq_masks:], frames, time_cap, length)
        return in_time[:, None] | in_band[None, :]

    return jnp.where(jax.vmap(masked)(lengths, keys), 0.0, features)


def _spans(
    draws: Float[Array, "2 n"], size: int, cap: int | Int[Array, ""], extent: int | Int[Array, ""]
) -> Bool[Array, "size"]:
    """Union of n spans: uniform widths on 0..cap, starts uniform on 0..extent - width."""
    width = jnp.floor(draws[0] * (cap + 1)).astype(jnp.int32)
    start = jnp.floor(draws[1] * (extent - width + 1)).astype(jnp.int32)
    position = jnp.arange(size)[:, None]
    inside = (position >= start[None, :]) & (position < (start + width)[None, :])
    return jnp.any(inside, axis=1)
