"""Random spans of frames to mask, per utterance: the rules of BEST-RQ and of wav2vec 2.0.

A draw is a function of the utterance's (key, length), independent of padding and of the rest of the
batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bljust_jax.common.shapes import Lengths, Mask, RowKeys
from bljust_jax.ops.log_mel import valid_frames


class InputMask(NamedTuple):
    """Masks that an encoder applies after its front end."""

    time: Mask  # True = frame replaced by the learned embedding
    channels: Bool[Array, "b d"] | None = None  # True = channel set to 0


def start_spans(
    keys: RowKeys, lengths: Lengths, frames: int, *, probability: float, span: int
) -> Mask:
    """Each valid frame starts a span with `probability`; a span covers `span` frames, clipped at
    the end of the utterance. True = masked.

    The expected share of n frames is the mean over t < n of 1 - (1 - probability)^min(t + 1, span).
    Source: Chiu et al., BEST-RQ, ICML 2022, section 3.1 (probability 0.01 at frames of 10 ms, spans
    of 400 ms).
    """
    valid = valid_frames(frames, lengths)
    return _cover(valid & (_uniform(keys, 0, frames) < probability), span) & valid


def wav2vec2_spans(
    keys: RowKeys, lengths: Lengths, frames: int, *, probability: float, span: int, least: int = 0
) -> Mask:
    """n whole spans of `span` frames, which may overlap, at distinct starts uniform on
    0 .. length - span. True = masked.

    n = floor(probability length / span + u), u uniform on [0, 1), at least `least`, at most
    length // span and never more than there are starts: an utterance shorter than a span has none.
    `probability` is an upper bound of the masked share, because spans overlap. The rules are those
    of transformers' wav2vec 2.0, with u and length per utterance instead of per batch.
    Source: Baevski et al., wav2vec 2.0, NeurIPS 2020, section 3.1.
    """
    u = _uniform(keys, 1, 1)[:, 0]
    wanted = jnp.floor(probability * lengths / span + u).astype(jnp.int32)
    starts = jnp.maximum(lengths - span + 1, 0)
    count = jnp.minimum(jnp.clip(wanted, least), jnp.minimum(lengths // span, starts))
    place = jnp.where(valid_frames(frames, starts), _uniform(keys, 0, frames), 2.0)
    rank = jnp.argsort(jnp.argsort(place, axis=1), axis=1)
    return _cover(rank < count[:, None], span)


def _uniform(keys: RowKeys, draw: int, count: int) -> Float[Array, "b n"]:
    """Uniform on [0, 1), `count` per row; a prefix does not depend on `count`."""
    return jax.vmap(
        lambda key: jax.random.uniform(jax.random.fold_in(key, draw), (count,), jnp.float32)
    )(keys)


def _cover(starts: Mask, span: int) -> Mask:
    """True on the `span` frames from each start."""
    begun = jnp.cumsum(starts, axis=1)
    ended = jnp.pad(begun, ((0, 0), (span, 0)))[:, : begun.shape[1]]
    return begun > ended
