"""CTC forward-backward recursions as two `lax.scan`s over time.

Forward states are stored before they emit, so the state of the last blank after the last frame is
the whole sum. Each frame subtracts the largest incoming state, its `peak`; log P is the compensated
sum of the peaks. The backward scan subtracts the same peaks, so that forward + e + backward of a
frame sums to log 1 without another maximum; the occupancies of a frame are divided by their sum to
remove rounding errors. Numbers stay of order one, where plain log-space recursions reach 1e4 and
lose three digits.

The optimization barriers keep XLA:CPU from recomputing an exp and a log for each use.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from bljust_jax.ops.ctc.trellis import NEG, Recursions, Trellis, compensated_sum, log_add
from bljust_jax.ops.log_mel import valid_frames


def _where_real(real, new, old):
    return jax.tree.map(lambda n, o: jnp.where(real, n, o), new, old)


def _frames(trellis):
    real = valid_frames(trellis.label.shape[0], trellis.logit_lengths)
    return trellis.blank, trellis.label, real.T[..., None]


def forward(trellis: Trellis, *, store: bool):
    """log P [B]; if `store`: the states before each frame, the frame peaks, the end state."""
    nowhere = jnp.full(trellis.label.shape[1:], NEG, trellis.label.dtype)

    def step(states, frame):
        emit_blank, emit_label, real = frame
        peak = jnp.max(jnp.maximum(*states), axis=1, keepdims=True)
        blank, label = emit_blank + (states[0] - peak), emit_label + (states[1] - peak)
        before = jnp.pad(label[:, :-1], ((0, 0), (1, 0)), constant_values=NEG)
        enter = lax.optimization_barrier(log_add(blank, before))
        new = enter, log_add(label, jnp.where(trellis.repeat, blank, enter))
        kept = _where_real(real, new, states)
        return kept, (jnp.where(real, peak, 0.0), states if store else None)

    origin = nowhere.at[:, 0].set(0.0)
    (blank, _), (peaks, alphas) = lax.scan(step, (origin, origin), _frames(trellis))
    end = jnp.max(jnp.where(trellis.end_states[0], blank, NEG), axis=1, keepdims=True)
    log_prob = (compensated_sum(peaks) + end)[:, 0]
    return log_prob, ((alphas, peaks, end) if store else None)


def occupancy(trellis: Trellis, states) -> Array:
    """P(label u is emitted at t | labels, logits), [T, B, W]; P(blank) in the last column."""
    alphas, peaks, end = states

    def step(betas, frame):
        emit_blank, emit_label, real, peak, alpha_blank, alpha_label = frame
        blank, label = emit_blank + (betas[0] - peak), emit_label + (betas[1] - peak)
        at_blank = jnp.sum(jnp.exp(alpha_blank + blank), axis=1, keepdims=True)
        at_label = jnp.exp(alpha_label + label)
        leave = lax.optimization_barrier(log_add(blank, label))
        after = jnp.where(trellis.repeat, blank, leave)[:, 1:]
        after = jnp.pad(after, ((0, 0), (0, 1)), constant_values=NEG)
        return _where_real(real, (leave, log_add(label, after)), betas), (at_blank, at_label)

    ends = tuple(jnp.where(at, -end, NEG) for at in trellis.end_states)
    inputs = (*_frames(trellis), peaks, *alphas)
    _, (at_blank, at_label) = lax.scan(step, ends, inputs, reverse=True)
    mass = at_blank + jnp.sum(at_label, axis=2, keepdims=True)
    return jnp.concatenate([at_label[..., :-1], at_blank], axis=2) / mass


RECURSIONS = Recursions(forward, occupancy)
