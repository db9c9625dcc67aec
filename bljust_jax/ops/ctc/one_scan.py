"""CTC forward-backward recursions as one `lax.scan`, both directions side by side.

The backward variables of an utterance are the forward variables of the utterance with frames and
labels reversed, so both are stacked and computed together. That halves the number of dependent
steps, which dominate on a GPU (each iteration of a `while` costs several launches, whatever its
size). The axis of directions, D = 2 (D = 1 without gradient), is apart from the batch axis, which
may be sharded.

A step carries states *before* they emit: it adds a frame's log-probabilities e and follows the arcs

    blank[u] += e[blank]
    label[u] += e[y_u]
    blank'[u] = logaddexp(blank[u], label[u-1])
    label'[u] = logaddexp(label[u], blank[u] if y_u == y_{u-1} else blank'[u])

so forward + e + backward counts a frame once, and log P is the final state of the last blank. Each
step subtracts the largest incoming state; those peaks are summed, with compensation, after the
scan, so that the GPU compiler can fuse the step into the reduction that finds the next peak.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from bljust_jax.ops.ctc.trellis import NEG, Recursions, Trellis, compensated_sum, log_add


class Walk(NamedTuple):
    """Input of the recursion: D directions through B utterances, the second one backward."""

    blank: Float[Array, "t d b 1"]  # log-probability of blank
    label: Float[Array, "t d b w"]  # log-probability of label u; NEG where u is no label
    start: Float[Array, "d b w"]  # 0 where paths start (a blank, the label beside it), else NEG
    repeat: Bool[Array, "d b w"]  # label u equals label u-1
    first: Int[Array, "d b"]  # first real frame
    stop: Int[Array, "d b"]  # one past the last real frame


def flip_labels(x: Array) -> Array:
    """Reverse the label states of the last axis; the dead one stays last."""
    return jnp.concatenate([jnp.flip(x[..., :-1], -1), x[..., -1:]], axis=-1)


def walk_of(trellis: Trellis, *, backward: bool) -> Walk:
    """The forward direction (D = 1), with `backward` also the reversed utterances (D = 2).

    Padding of reversed labels and frames precedes them.
    """
    frames, batch, width = trellis.label.shape
    lengths = trellis.logit_lengths
    begin = jnp.arange(width)[None, :] == jnp.zeros((batch, 1), jnp.int32)
    end, _ = trellis.end_states
    directions = [
        (trellis.blank, trellis.label, begin, trellis.repeat, jnp.zeros_like(lengths), lengths),
        (
            jnp.flip(trellis.blank, 0),
            flip_labels(jnp.flip(trellis.label, 0)),
            jnp.flip(end, 1),
            jnp.flip(trellis.repeat, 1),
            frames - lengths,
            jnp.full_like(lengths, frames),
        ),
    ]
    blank, label, start, *rest = zip(*directions[: 1 + backward], strict=True)
    start = jnp.where(jnp.stack(start), 0.0, NEG).astype(trellis.label.dtype)
    return Walk(jnp.stack(blank, 1), jnp.stack(label, 1), start, *map(jnp.stack, rest))


def walk_by_scan(walk: Walk, *, store: bool):
    """State of each blank after the last frame [D, B, W], and if `store` the states before each
    frame ([T, D, B, W] of blanks and of labels, each frame up to a constant)."""
    zero = jnp.zeros((*walk.start.shape[:2], 1), walk.start.dtype)

    def step(carry, frame):
        blank, label, peak = carry
        emit_blank, emit_label, real = frame
        held_blank, held_label = blank - peak, label - peak
        blank, label = emit_blank + held_blank, emit_label + held_label
        before = jnp.pad(label[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=NEG)
        enter = log_add(blank, before)
        stay_or_enter = log_add(label, jnp.where(walk.repeat, blank, enter))
        new_blank = jnp.where(real[..., None], enter, held_blank)
        new_label = jnp.where(real[..., None], stay_or_enter, held_label)
        new_peak = jnp.max(jnp.maximum(new_blank, new_label), axis=-1, keepdims=True)
        return (new_blank, new_label, new_peak), (peak, carry[:2] if store else None)

    time = jnp.arange(walk.label.shape[0])[:, None, None]
    real = (time >= walk.first[None]) & (time < walk.stop[None])
    start = (walk.start, walk.start, zero)
    (blank, _, _), (peaks, states) = lax.scan(step, start, (walk.blank, walk.label, real))
    return compensated_sum(peaks) + blank, states


def log_prob_of(trellis: Trellis, arrived: Array) -> Array:
    """log P(labels | logits) [B]: the forward state of the blank after the last label."""
    end_blank, _ = trellis.end_states
    return jnp.max(jnp.where(end_blank, arrived[0], -jnp.inf), axis=1)


def occupancy(trellis: Trellis, states) -> Array:
    """P(label u is emitted at t | labels, logits), [T, B, W]; P(blank) in the last column."""
    blank, label = states
    at_blank = trellis.blank + blank[:, 0] + jnp.flip(blank[:, 1], (0, 2))
    at_label = trellis.label + label[:, 0] + flip_labels(jnp.flip(label[:, 1], 0))
    peak = jnp.max(jnp.maximum(at_blank, at_label), axis=2, keepdims=True)
    at_label = jnp.exp(at_label - peak)
    at_blank = jnp.sum(jnp.exp(at_blank - peak), axis=2, keepdims=True)
    mass = at_blank + jnp.sum(at_label, axis=2, keepdims=True)
    return jnp.concatenate([at_label[..., :-1], at_blank], axis=2) / mass


def forward(trellis: Trellis, *, store: bool):
    """log P [B], and if `store` the input of `occupancy`."""
    arrived, states = walk_by_scan(walk_of(trellis, backward=store), store=store)
    return log_prob_of(trellis, arrived), states


RECURSIONS = Recursions(forward, occupancy)
