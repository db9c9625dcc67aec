"""Spans of frames to mask, drawn for each utterance from its own key and its own length.

A draw is a function of (key, length) alone: neither the padding behind an utterance nor its
neighbours in the batch change it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from bljust_jax.ops.log_mel import valid_frames


class Hide(NamedTuple):
    """What an encoder itself shall mask, after its front end."""

    time: Bool[Array, "b t"]  # True = this frame is replaced by the learned embedding
    channels: Bool[Array, "b d"] | None = None  # True = this channel is set to 0


def start_spans(
    keys: Key[Array, "b"],
    lengths: Int[Array, "b"],
    frames: int,
    *,
    probability: float,
    span: int,
) -> Bool[Array, "b t"]:
    """Each valid frame starts a span with `probability`; a span covers `span` frames, or what is
    left of the utterance. True = masked.

    The expected share of an utterance is `expected_share`. Source: Chiu et al., BEST-RQ, ICML
    2022, section 3.1 (probability 0.01 at frames of 10 ms, spans of 400 ms).
    """
    valid = valid_frames(frames, lengths)
    return _cover(valid & (_uniform(keys, 0, frames) < probability), span) & valid


def expected_share(length: int, probability: float, span: int) -> float:
    """The mean of `start_spans` over the valid frames of an utterance, exactly:
    mean over t < length of 1 - (1 - probability)^min(t + 1, span); 0 for an empty one."""
    starts = np.minimum(np.arange(length) + 1, span)
    return float(np.sum(1 - (1 - probability) ** starts) / max(length, 1))


def wav2vec2_spans(
    keys: Key[Array, "b"],
    lengths: Int[Array, "b"],
    frames: int,
    *,
    probability: float,
    span: int,
    least: int = 0,
) -> Bool[Array, "b t"]:
    """n whole spans of `span` frames at distinct starts, uniform on 0 .. length - span; they may
    overlap. True = masked.

    n = floor(probability length / span + u), u uniform on [0, 1), at least `least`, at most
    length // span and never more than there are starts: an utterance shorter than a span has none.
    `probability` bounds the masked share, which overlaps make smaller. The rules are those of
    transformers' wav2vec 2.0, with each utterance's own u and length in place of the batch's.
    Source: Baevski et al., wav2vec 2.0, NeurIPS 2020, section 3.1.
    """
    u = _uniform(keys, 1, 1)[:, 0]
    wanted = jnp.floor(probability * lengths / span + u).astype(jnp.int32)
    starts = jnp.maximum(lengths - span + 1, 0)
    count = jnp.minimum(jnp.clip(wanted, least), jnp.minimum(lengths // span, starts))
    place = jnp.where(valid_frames(frames, starts), _uniform(keys, 0, frames), 2.0)
    rank = jnp.argsort(jnp.argsort(place, axis=1), axis=1)
    return _cover(rank < count[:, None], span)


def _uniform(keys: Key[Array, "b"], draw: int, count: int) -> Float[Array, "b n"]:
    """Uniform on [0, 1), `count` a row; the first values do not depend on how many follow."""
    return jax.vmap(
        lambda key: jax.random.uniform(jax.random.fold_in(key, draw), (count,), jnp.float32)
    )(keys)


def _cover(starts: Bool[Array, "b t"], span: int) -> Bool[Array, "b t"]:
    """True on the `span` frames from each start on."""
    begun = jnp.cumsum(starts, axis=1)
    ended = jnp.pad(begun, ((0, 0), (span, 0)))[:, : begun.shape[1]]
    return begun > ended
