"""Forced alignment: the most probable CTC path of given labels, with a confidence per label.

The Viterbi recursion over the lattice of `trellis`: the same states, with a maximum in place of the
sum of the loss, and the best arc stored for backtracking.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from bljust_jax.common.shapes import Labels, Lengths, Logits
from bljust_jax.ops.ctc.trellis import NEG, Trellis, ctc_feasible, softmax_of, trellis_of
from bljust_jax.ops.log_mel import valid_frames

STAY, FROM_BLANK, FROM_LABEL = range(3)  # arcs into a label; the first two also into a blank


class Alignment(NamedTuple):
    """The most probable path that spells the labels; see `ctc_align`."""

    path: Int[Array, "b t"]
    starts: Labels
    ends: Labels
    confidence: Float[Array, "b u"]
    score: Float[Array, "b"]


@functools.partial(jax.jit, static_argnames=("blank",))
def ctc_align(
    logits: Logits,
    logit_lengths: Lengths,
    labels: Labels,
    label_lengths: Lengths,
    *,
    blank: int = 0,
) -> Alignment:
    """argmax over the paths pi that spell the labels of sum_t log softmax(logits[t])[pi_t].

    logits         [B, T, K]  unnormalised scores of any float type
    logit_lengths  [B]        valid frames, at most T
    labels         [B, U]     ids in [0, K), none equal to `blank` among the valid ones
    label_lengths  [B]        valid labels, at most U

    Returns an `Alignment`:

    path        [B, T] int32    index u of the label emitted at frame t; -1 for blank and padding
    starts      [B, U] int32    first frame of label u
    ends        [B, U] int32    one past its last frame; label u is emitted in all frames between
    confidence  [B, U] float32  exp(mean of log softmax(logits[t])[labels[u]] over those frames),
                                the geometric mean of the label's posterior, in [0, 1]
    score       [B]    float32  log-probability of the path, in nats

    Padded labels have starts, ends and confidence 0. An infeasible utterance, or one whose labels
    have probability zero, has path -1, score -inf and 0 elsewhere. Padding never matters, NaN
    included. Of equally probable paths, one that stays longer in its last states is returned. No
    gradient.

    Sources: Graves et al. (ICML 2006) for the lattice; Kuerzinger et al.,
    "CTC-Segmentation of Large Corpora for German End-to-End Speech Recognition" (SPECOM 2020),
    for the mean log-probability as confidence.
    """
    logits = lax.stop_gradient(logits)
    trellis = trellis_of(logits, softmax_of(logits), logit_lengths, labels, label_lengths, blank)
    real = valid_frames(logits.shape[1], logit_lengths)
    path = _best_path(trellis, real.T)
    emits = jnp.arange(labels.shape[1])[None, None, :] == path[:, :, None]
    log_probs = jnp.transpose(trellis.label[..., : labels.shape[1]], (1, 0, 2))
    label_score = jnp.sum(jnp.where(emits, log_probs, 0.0), axis=1)
    on_blank = jnp.where((path < 0) & real, trellis.blank[..., 0].T, 0.0)
    score = label_score.sum(axis=1) + on_blank.sum(axis=1)
    found = ctc_feasible(labels, label_lengths, logit_lengths) & ~(score <= NEG / 2)

    emits &= found[:, None, None]
    frames = jnp.sum(emits, axis=1, dtype=jnp.int32)
    position = jnp.arange(path.shape[1])[None, :, None]
    ends = jnp.max(jnp.where(emits, position + 1, 0), axis=1, initial=0).astype(jnp.int32)
    confidence = jnp.exp(label_score / jnp.maximum(frames, 1))
    return Alignment(
        path=jnp.where(found[:, None], path, -1),
        starts=ends - frames,
        ends=ends,
        confidence=jnp.where(frames > 0, confidence, 0.0).astype(jnp.float32),
        score=jnp.where(found, score, -jnp.inf).astype(jnp.float32),
    )


def _best_path(trellis: Trellis, real):
    """Label index of each frame, -1 for blank and padding: [B, T]."""
    (blank, label), arcs = _viterbi(trellis, real)
    end_blank, end_label = trellis.end_states
    best_blank = jnp.max(jnp.where(end_blank, blank, NEG), axis=1)
    best_label = jnp.max(jnp.where(end_label, label, NEG), axis=1)
    on_label = (best_label >= best_blank) & (trellis.label_lengths > 0)
    index = trellis.label_lengths - on_label

    def step(state, frame):
        index, on_label = state
        blank_arc, label_arc, real = frame
        emitted = jnp.where(on_label & real, index, -1)
        arc = jnp.where(on_label[:, None], label_arc, blank_arc)
        arc = jnp.take_along_axis(arc, index[:, None], axis=1)[:, 0]
        came = (index - (arc == FROM_LABEL), jnp.where(arc == STAY, on_label, arc == FROM_LABEL))
        return jax.tree.map(lambda new, old: jnp.where(real, new, old), came, state), emitted

    return lax.scan(step, (index, on_label), (*arcs, real), reverse=True)[1].T


def _viterbi(trellis: Trellis, real):
    """Best log-probability of each state at the end, up to a constant per utterance, and the arc
    [T, B, W] by which each blank and each label was reached."""
    nowhere = jnp.full(trellis.label.shape[1:], NEG, trellis.label.dtype)

    def step(carry, frame):
        blank, label = carry
        emit_blank, emit_label, real = frame
        before = jnp.pad(label[:, :-1], ((0, 0), (1, 0)), constant_values=NEG)
        blank_arc = jnp.where(before > blank, FROM_LABEL, STAY)
        skip = jnp.where(trellis.repeat, NEG, before)
        enter = jnp.maximum(blank, skip)
        label_arc = jnp.where(enter > label, jnp.where(skip > blank, FROM_LABEL, FROM_BLANK), STAY)
        best_blank = jnp.maximum(blank, before) + emit_blank
        best_label = jnp.maximum(label, enter) + emit_label
        peak = jnp.max(jnp.maximum(best_blank, best_label), axis=1, keepdims=True)
        peak = jnp.maximum(peak, NEG)
        best = (jnp.maximum(best_blank - peak, NEG), jnp.maximum(best_label - peak, NEG))
        kept = jax.tree.map(lambda new, old: jnp.where(real[:, None], new, old), best, carry)
        return kept, (blank_arc.astype(jnp.int8), label_arc.astype(jnp.int8))

    start = (nowhere.at[:, 0].set(0.0), nowhere)
    return lax.scan(step, start, (trellis.blank, trellis.label, real))
