"""The recursions of CTC as two `lax.scan`s over time.

Forward states are held before they emit, so what is stored is what came in and what arrives at the
last blank is the whole sum. Each frame subtracts the largest state that it was handed, its `peak`;
log P is the compensated sum of the peaks. The way back subtracts the same peaks, which puts the sum
forward + e + backward of a frame at log 1 without a maximum of its own; each frame's occupancies
are divided by their own sum for what rounding leaves. So numbers stay of order one where plain
log-space recursions carry 1e4 and lose three digits.

The barriers keep XLA:CPU from taking an exp and a log again for each reader of what they give.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from bljust_jax.ops.ctc.trellis import (
    NEG,
    Recursions,
    Trellis,
    compensated_sum,
    end_states,
    log_add,
    real_frames,
)


def _where_real(real, new, old):
    return jax.tree.map(lambda n, o: jnp.where(real, n, o), new, old)


def _frames(trellis):
    real = real_frames(trellis.label.shape[0], trellis.logit_lengths)
    return trellis.blank, trellis.label, real.T[..., None]


def forward(trellis: Trellis, *, store: bool):
    """log P [B]; if `store`: the states that enter each frame, the frame's peak, and the end."""
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
    end = jnp.max(jnp.where(end_states(trellis)[0], blank, NEG), axis=1, keepdims=True)
    log_prob = (compensated_sum(peaks) + end)[:, 0]
    return log_prob, ((alphas, peaks, end) if store else None)


def occupancy(trellis: Trellis, states) -> Array:
    """P(label u is emitted at t | labels, logits), [T, B, W]; the last column is the blank's."""
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

    ends = tuple(jnp.where(at, -end, NEG) for at in end_states(trellis))
    inputs = (*_frames(trellis), peaks, *alphas)
    _, (at_blank, at_label) = lax.scan(step, ends, inputs, reverse=True)
    mass = at_blank + jnp.sum(at_label, axis=2, keepdims=True)
    return jnp.concatenate([at_label[..., :-1], at_blank], axis=2) / mass


RECURSIONS = Recursions(forward, occupancy)
