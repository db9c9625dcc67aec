"""The CTC lattice of label and blank states, and the interface of forward-backward programs.

The 2U+1 states of the blank-interleaved labelling are stored as two rows of W > U: `blank[u]`
precedes label u, `label[u]` emits it (states after those of an utterance are dead; the last label
state always is). With e the log-probabilities of a frame, a forward step is

    enter[u]   = logaddexp(blank[u], label[u-1])
    blank'[u]  = e[blank] + enter[u]
    label'[u]  = e[y_u] + logaddexp(label[u], blank[u] if y_u == y_{u-1} else enter[u])

from blank[0] = 0 and all other states at log 0; paths end in blank[U] or label[U-1]. A backward
step is the same recursion along the reversed arcs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from bljust_jax.common.shapes import Labels, Lengths, Logits
from bljust_jax.ops.log_mel import valid_frames

NEG = -1e30  # log(0) as a finite number, so that differences stay finite
VECTOR = 8  # float32 numbers per CPU vector register; other row sizes end in a slow remainder


class Trellis(NamedTuple):
    """Input of the recursions, time first, float32 (float64 for float64 logits).

    W is U + 1 rounded up to a multiple of `VECTOR`. `blank` and `label` lie between NEG and 0, in
    padded frames too; a NaN among the logits of a real frame stays NaN.
    """

    blank: Float[Array, "t b 1"]  # log-probability of blank
    label: Float[Array, "t b w"]  # log-probability of label u; NEG where u is no label
    repeat: Bool[Array, "b w"]  # label u equals label u-1
    logit_lengths: Lengths  # real frames, the first of T
    label_lengths: Lengths  # real labels, at most W - 1

    @property
    def end_states(self) -> tuple[Bool[Array, "b w"], Bool[Array, "b w"]]:
        """The blank after the last label, and the last label."""
        position = jnp.arange(self.label.shape[2])[None, :]
        last = self.label_lengths[:, None]
        return position == last, position == last - 1


class Recursions(NamedTuple):
    """One implementation of the forward-backward algorithm: a pair of functions.

    forward(trellis, *, store) -> (log_prob [B], states)
        log P(labels | logits), at or below NEG / 2 where no path has positive probability;
        `states` is the input of `occupancy` (any pytree), None unless `store`.
    occupancy(trellis, states) -> [T, B, W]
        P(label u is emitted at frame t | labels, logits) in column u, 0 where u is no label, and
        P(blank) in the last column; they sum to 1 in each real frame of a feasible utterance.
        Other rows are undefined, NaN included.
    """

    forward: Callable[..., tuple[Array, Any]]
    occupancy: Callable[[Trellis, Any], Array]


def repeats(labels: Labels, label_lengths: Lengths) -> Bool[Array, "b u"]:
    """Real label u equals label u-1."""
    width = labels.shape[1]
    previous = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)))[:, :width]
    position = jnp.arange(width)[None, :]
    return (labels == previous) & (position < label_lengths[:, None]) & (position > 0)


def ctc_feasible(
    labels: Labels, label_lengths: Lengths, logit_lengths: Lengths
) -> Bool[Array, "b"]:
    """True where some path of `logit_lengths` frames spells the labels: T >= U + adjacent repeats.

    Two equal neighbours need a blank between them. Any number of frames, zero included, spells zero
    labels. Padded labels never matter.
    """
    return label_lengths + jnp.sum(repeats(labels, label_lengths), axis=1) <= logit_lengths


def log_add(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(exp(a) + exp(b)) of finite numbers; twice as fast as `jnp.logaddexp` on CPU."""
    return jnp.maximum(a, b) + jnp.log(1.0 + jnp.exp(-jnp.abs(a - b)))


def compensated_sum(x: Float[Array, "t ..."]) -> Float[Array, "..."]:
    """Sum over the first axis, plus the accumulated rounding errors of its additions (Knuth)."""

    def add(a, b):
        total = a[0] + b[0]
        part = total - a[0]
        return total, (a[0] - (total - part)) + (b[0] - part) + (a[1] + b[1])

    zero = jnp.zeros((), x.dtype)
    total, lost = lax.reduce((x, jnp.zeros_like(x)), (zero, zero), add, (0,))
    return total + lost


class Softmax(NamedTuple):
    """log softmax(x)[k] = (x[k] - peak) - log_sum, precise where a class has probability near 1."""

    peak: Float[Array, "b t 1"]  # largest logit of the frame
    log_sum: Float[Array, "b t 1"]  # log(sum(exp(logits - peak)))


def softmax_of(logits: Logits) -> Softmax:
    """The two statistics of each frame, in float32 (float64 for float64)."""
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    peak = jnp.max(wide, axis=-1, keepdims=True)
    return Softmax(peak, jnp.log(jnp.sum(jnp.exp(wide - peak), axis=-1, keepdims=True)))


def columns_of(labels: Labels, label_lengths: Lengths, blank: int) -> Int[Array, "b w"]:
    """Class id of each label position of the lattice, `blank` where there is no label."""
    is_label = jnp.arange(labels.shape[1])[None, :] < label_lengths[:, None]
    extra = VECTOR - labels.shape[1] % VECTOR
    columns = jnp.where(is_label, labels, blank)
    return jnp.pad(columns, ((0, 0), (0, extra)), constant_values=blank)


def trellis_of(
    logits: Logits,
    softmax: Softmax,
    logit_lengths: Lengths,
    labels: Labels,
    label_lengths: Lengths,
    blank: int,
) -> Trellis:
    """Gather the W log-probabilities of each frame, time first, without an array of size B*T*K.

    An id outside [0, K) among the real labels gives NaN.
    """
    columns = columns_of(labels, label_lengths, blank)
    is_label = jnp.arange(columns.shape[1])[None, :] < label_lengths[:, None]
    real = valid_frames(logits.shape[1], logit_lengths).T[..., None]

    def log_probs(gathered):
        gathered = gathered.astype(softmax.peak.dtype) - jnp.transpose(softmax.peak, (1, 0, 2))
        gathered = jnp.maximum(gathered - jnp.transpose(softmax.log_sum, (1, 0, 2)), NEG)
        return jnp.where(real, gathered, 0.0)

    def gather(x, c):
        return x.at[:, c].get(mode="fill", wrap_negative_indices=False)

    gathered = jax.vmap(gather, out_axes=1)(logits, columns)
    extra = columns.shape[1] - labels.shape[1]
    return Trellis(
        blank=log_probs(jnp.transpose(logits[:, :, blank])[..., None]),
        label=jnp.where(is_label[None], log_probs(gathered), NEG),
        repeat=jnp.pad(repeats(labels, label_lengths), ((0, 0), (0, extra))),
        logit_lengths=logit_lengths,
        label_lengths=label_lengths,
    )
