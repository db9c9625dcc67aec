"""Connectionist temporal classification: -log P of a labelling, with its own VJP.

Sources: Graves, Fernandez, Gomez, Schmidhuber, "Connectionist Temporal Classification" (ICML 2006),
equations 5-8 (forward variables), 9-11 (backward variables), 14-16 (gradient).

The 2U+1 states of the blank-interleaved labelling are held as two rows of U+1: `blank[u]` stands
before label u, `label[u]` emits it (the last label state is a dead one that squares the shapes).
With e the log-probabilities of a frame,

    enter[u]   = logaddexp(blank[u], label[u-1])
    blank'[u]  = e[blank] + enter[u]
    label'[u]  = e[y_u] + logaddexp(label[u], blank[u] if y_u == y_{u-1} else enter[u])

Every frame's forward variables are divided by their maximum, whose logarithm goes to a compensated
sum, and every frame's occupancies are normalised by their own sum. States therefore stay of order
one where plain log-space recursions carry 1e4 and lose three digits.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

NEG = -1e30  # log(0) that survives subtraction; states are held at or above it
IMPLEMENTATIONS = ("auto", "scan")


def ctc_loss(
    logits: Float[Array, "b t k"],
    logit_lengths: Int[Array, "b"],
    labels: Int[Array, "b u"],
    label_lengths: Int[Array, "b"],
    *,
    blank: int = 0,
    implementation: str = "auto",
) -> Float[Array, "b"]:
    """-log P(labels | logits) of each utterance, in nats, not divided by any length.

    logits         [B, T, K]  unnormalised scores of any float type; the arithmetic is float32
                              (float64 for float64) and the gradient has the type of the logits
    logit_lengths  [B]        valid frames, at most T
    labels         [B, U]     ids in [0, K), none equal to `blank` among the valid ones
    label_lengths  [B]        valid labels, at most U

    Returns [B] float32 (float64 for float64), never below 0. The gradient with respect to a valid
    frame's logits is softmax(logits) - occupancy, which sums to 0 over K. Padded frames and padded
    labels never matter, NaN included. An infeasible utterance (see `ctc_feasible`) has loss and
    gradient exactly 0. A labelling of probability zero (logits of -inf) has loss inf.

    `implementation`: "auto" or "scan" (two `lax.scan`s over time). Reverse mode, once: there is no
    forward mode and no second derivative. Raises ValueError for another name or a blank outside K.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r}: expected one of {IMPLEMENTATIONS}")
    if not 0 <= blank < logits.shape[-1]:
        raise ValueError(f"blank {blank} is outside the {logits.shape[-1]} classes of the logits")
    return _scan_loss(logits, logit_lengths, labels, label_lengths, blank)


def ctc_feasible(
    labels: Int[Array, "b u"], label_lengths: Int[Array, "b"], logit_lengths: Int[Array, "b"]
) -> Bool[Array, "b"]:
    """Whether some path of `logit_lengths` frames spells the labels: T >= U + adjacent repeats.

    Two equal neighbours need a blank between them. Zero labels are spelt by any number of frames,
    zero included. Padded labels never matter.
    """
    repeats = jnp.sum(_repeats(labels, label_lengths), axis=1)
    return label_lengths + repeats <= logit_lengths


def blank_share(
    logits: Float[Array, "b t k"], logit_lengths: Int[Array, "b"], *, blank: int = 0
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(valid frames whose best class is blank, valid frames): a mean in two parts.

    Near 1 early in training; a share that stays there means that CTC has not found its alignments.
    """
    valid = _valid_frames(logits, logit_lengths)
    best_is_blank = (jnp.argmax(logits, axis=-1) == blank) & valid
    return jnp.sum(best_is_blank, dtype=jnp.float32), jnp.sum(valid, dtype=jnp.float32)


def _repeats(labels, label_lengths):
    """[B, U]: valid label u equals label u-1."""
    valid = jnp.arange(labels.shape[1])[None, :] < label_lengths[:, None]
    previous = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)))[:, : labels.shape[1]]
    first = jnp.arange(labels.shape[1])[None, :] == 0
    return (labels == previous) & valid & ~first


class _Trellis(NamedTuple):
    """What the recursions read, time first; W = U + 1."""

    peak: Array  # [B, T, 1] largest logit of the frame
    log_sum: Array  # [B, T, 1] log(sum(exp(logits - peak)))
    blank: Array  # [T, B, 1] log-probability of blank
    label: Array  # [T, B, W] log-probability of label u, NEG where u is no label of the utterance
    repeat: Array  # [B, W] label u equals label u-1
    valid: Array  # [T, B] real frames
    label_lengths: Array  # [B]


def _valid_frames(logits, logit_lengths):
    return jnp.arange(logits.shape[1])[None, :] < logit_lengths[:, None]


def _trellis(logits, logit_lengths, labels, label_lengths, blank) -> _Trellis:
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    is_label = jnp.arange(labels.shape[1])[None, :] < label_lengths[:, None]
    columns = jnp.pad(jnp.where(is_label, labels, blank), ((0, 0), (0, 1)), constant_values=blank)
    valid = _valid_frames(logits, logit_lengths)
    wide = logits.astype(dtype)
    peak = jnp.max(wide, axis=-1, keepdims=True)
    log_sum = jnp.log(jnp.sum(jnp.exp(wide - peak), axis=-1, keepdims=True))
    picked = jnp.take_along_axis(logits, columns[:, None, :], axis=2).astype(dtype)
    log_probs = jnp.where(valid[..., None], (picked - peak) - log_sum, 0.0)
    log_probs = jnp.transpose(jnp.maximum(log_probs, NEG), (1, 0, 2))
    is_label = jnp.pad(is_label, ((0, 0), (0, 1)))
    return _Trellis(
        peak=peak,
        log_sum=log_sum,
        blank=log_probs[..., -1:],
        label=jnp.where(is_label[None], log_probs, NEG),
        repeat=jnp.pad(_repeats(labels, label_lengths), ((0, 0), (0, 1))),
        valid=valid.T,
        label_lengths=label_lengths,
    )


def _log_add(a, b):
    """log(exp(a) + exp(b)) of finite numbers; twice as fast as `jnp.logaddexp` on CPU."""
    return jnp.maximum(a, b) + jnp.log(1.0 + jnp.exp(-jnp.abs(a - b)))


def _peak(blank, label):
    """The largest state of each utterance, [B, 1]."""
    return jnp.max(jnp.maximum(blank, label), axis=1, keepdims=True)


def _renormalise(blank, label):
    """States divided by the largest of their frame, and its logarithm [B, 1]."""
    peak = jnp.maximum(_peak(blank, label), NEG)
    return jnp.maximum(blank - peak, NEG), jnp.maximum(label - peak, NEG), peak


def _end_states(trellis):
    """[B, W] twice: the blank after the last label, and the last label."""
    position = jnp.arange(trellis.label.shape[2])[None, :]
    last = trellis.label_lengths[:, None]
    return position == last, position == last - 1


def _forward(trellis: _Trellis, *, store: bool):
    """log P [B], and the forward variables ([T, B, W] for blanks and for labels) if `store`."""
    batch, width = trellis.label.shape[1:]
    dtype = trellis.label.dtype
    nowhere = jnp.full((batch, width), NEG, dtype)
    zero = jnp.zeros((batch, 1), dtype)

    def step(carry, frame):
        blank, label, total, lost = carry
        emit_blank, emit_label, valid = frame
        before = jnp.pad(label[:, :-1], ((0, 0), (1, 0)), constant_values=NEG)
        enter = _log_add(blank, before)
        stay_or_enter = _log_add(label, jnp.where(trellis.repeat, blank, enter))
        new_blank, new_label, peak = _renormalise(emit_blank + enter, emit_label + stay_or_enter)
        term = peak - lost
        new_total = total + term
        new = (new_blank, new_label, new_total, (new_total - total) - term)
        new = lax.optimization_barrier(new)
        kept = jax.tree.map(lambda n, o: jnp.where(valid[:, None], n, o), new, carry)
        return kept, (kept[:2] if store else None)

    start = (nowhere.at[:, 0].set(0.0), nowhere, zero, zero)
    frames = (trellis.blank, trellis.label, trellis.valid)
    (blank, label, total, lost), alphas = lax.scan(step, start, frames)
    end_blank, end_label = _end_states(trellis)
    ends = _log_add(
        jnp.max(jnp.where(end_blank, blank, NEG), axis=1),
        jnp.max(jnp.where(end_label, label, NEG), axis=1),
    )
    return (total[:, 0] - lost[:, 0]) + ends, alphas


def _occupancy(trellis: _Trellis, alphas) -> Array:
    """P(label u is emitted at t | labels, logits), [T, B, W]; the last column is the blank's."""
    end_blank, end_label = _end_states(trellis)
    dtype = trellis.label.dtype

    def step(carry, frame):
        blank, label = carry
        emit_blank, emit_label, valid, alpha_blank, alpha_label = frame
        at_blank, at_label = alpha_blank + blank, alpha_label + label
        peak = _peak(at_blank, at_label)
        at_label = jnp.exp(at_label - peak)
        at_blank = jnp.sum(jnp.exp(at_blank - peak), axis=1, keepdims=True)
        mass = at_blank + jnp.sum(at_label, axis=1, keepdims=True)
        occupancy = jnp.concatenate([at_label[:, :-1], at_blank], axis=1) / mass

        to_blank, to_label = emit_blank + blank, emit_label + label
        leave = _log_add(to_blank, to_label)
        after = jnp.where(trellis.repeat, to_blank, leave)[:, 1:]
        after = jnp.pad(after, ((0, 0), (0, 1)), constant_values=NEG)
        new = _renormalise(leave, _log_add(to_label, after))[:2]
        new = lax.optimization_barrier(new)
        kept = jax.tree.map(lambda n, o: jnp.where(valid[:, None], n, o), new, carry)
        return kept, occupancy

    end = jax.tree.map(lambda e: jnp.where(e, 0.0, NEG).astype(dtype), (end_blank, end_label))
    frames = (trellis.blank, trellis.label, trellis.valid, *alphas)
    return lax.scan(step, end, frames, reverse=True)[1]


def _to_loss(log_prob, logit_lengths, labels, label_lengths):
    loss = jnp.where(log_prob <= NEG / 2, jnp.inf, jnp.maximum(-log_prob, 0.0))
    return jnp.where(ctc_feasible(labels, label_lengths, logit_lengths), loss, 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _scan_loss(logits, logit_lengths, labels, label_lengths, blank):
    trellis = _trellis(logits, logit_lengths, labels, label_lengths, blank)
    log_prob, _ = _forward(trellis, store=False)
    return _to_loss(log_prob, logit_lengths, labels, label_lengths)


def _scan_loss_fwd(logits, logit_lengths, labels, label_lengths, blank):
    trellis = _trellis(logits, logit_lengths, labels, label_lengths, blank)
    log_prob, alphas = _forward(trellis, store=True)
    loss = _to_loss(log_prob, logit_lengths, labels, label_lengths)
    return loss, (logits, logit_lengths, labels, trellis, alphas)


def _scan_loss_bwd(blank, residuals, cotangent):
    logits, logit_lengths, labels, trellis, alphas = residuals
    occupancy = jnp.transpose(_occupancy(trellis, alphas), (1, 0, 2))
    # A product with one-hot rows adds up a repeated label; a scatter would copy B*T*K.
    columns = jnp.pad(labels, ((0, 0), (0, 1)), constant_values=blank)
    one_hot = jax.nn.one_hot(columns, logits.shape[2], dtype=occupancy.dtype)
    expected = jnp.einsum("btu,buk->btk", occupancy, one_hot, precision=lax.Precision.HIGHEST)
    wide = logits.astype(occupancy.dtype)
    gradient = jnp.exp((wide - trellis.peak) - trellis.log_sum) - expected
    feasible = ctc_feasible(labels, trellis.label_lengths, logit_lengths)
    real = _valid_frames(logits, logit_lengths) & feasible[:, None]
    gradient = jnp.where(real[..., None], gradient * cotangent[:, None, None], 0.0)
    return gradient.astype(logits.dtype), None, None, None


_scan_loss.defvjp(_scan_loss_fwd, _scan_loss_bwd)
