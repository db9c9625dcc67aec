"""Beam search for an attention decoder on the device, inside `jit`.

    score(y) = ln P(y, end | x) / ((5 + n) / 6)^alpha,     n = the tokens of y and its end

after Wu et al. (GNMT, arXiv 1609.08144), equation 14, without coverage. Each row keeps the `beam`
hypotheses of best score; n is the number of tokens so far for an unfinished hypothesis. A finished
one keeps its score and stays until `beam` better ones replace it. The search stops when no
unfinished hypothesis of any row can exceed the best finished one: its ln P can only decrease, and n
is at most the row's limit. A beam of 1 is greedy search: the most probable token at every step. A
beam that prunes nothing is exact. Ties go to the better parent, then to the smaller id.

Every hypothesis ends: at the row's limit of tokens only the end is allowed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

END = 0  # start of sequence as an input, end of sequence as an output
PADDING = -1
NONE = -jnp.inf


def search(
    begin: Callable[[int, int], Any],
    extend: Callable[..., tuple[Array, Any]],
    lengths: Int[Array, "b"],
    frames: int,
    *,
    beam: int = 4,
    alpha: float = 0.6,
    max_ratio: float = 1.0,
    max_extra: int = 10,
) -> Int[Array, "b u"]:
    """The best hypothesis of each row, int32 `[B, U]`, -1 after its last token.

    Args:
      begin(max_len, beam) -> cache of `beam` hypotheses per row, of at most max_len inputs each.
      extend(cache, tokens `[B, W]`, position, parents `[B, W]` or None) -> (logits `[B, W, K]`,
        cache): appends tokens[w] to the hypothesis parents[w] of the row.
      lengths: `[B]` valid frames of the encoder output; a row of length 0 gets no tokens.
      frames: T, the padded number of frames.
      beam: hypotheses kept per row. alpha: of the score, at least 0; 0 favours short texts.
      max_ratio, max_extra: n frames give at most ceil(max_ratio n) + max_extra tokens; U: for T.

    Raises:
      ValueError: a beam below 1, or another setting below 0.
    """
    if beam < 1 or min(alpha, max_ratio, max_extra) < 0:
        raise ValueError(
            f"beam={beam} must be at least 1; alpha={alpha}, max_ratio={max_ratio} and "
            f"max_extra={max_extra} at least 0"
        )
    most = limits(frames, max_ratio, max_extra)
    longest, limit = int(most[-1]), jnp.asarray(most)[lengths]

    def grow(state: _State) -> _State:
        parents = state.parents if beam > 1 else None
        logits, cache = extend(state.cache, state.tokens, state.position, parents)
        full = (state.position >= limit)[:, None]
        parents, tokens, total = _choose(state, jax.nn.log_softmax(logits), full, alpha)
        ids = jnp.take_along_axis(state.ids, parents[..., None], axis=1)
        here = (jnp.arange(longest) == state.position)[None, None]
        ids = jnp.where(here & (tokens != END)[..., None], tokens[..., None], ids)
        return _State(state.position + 1, tokens, parents, total, tokens == END, ids, cache)

    def unfinished(state: _State) -> Bool[Array, ""]:
        best = jnp.where(state.ended, state.total / penalty(_lengths(state), alpha), NONE)
        hope = jnp.where(state.ended, NONE, state.total / penalty(limit + 1, alpha)[:, None])
        best, hope = best.max(axis=1), hope.max(axis=1)
        return (state.position <= longest) & jnp.any((hope > NONE) & (hope >= best))

    shape = (len(lengths), beam)
    first = _State(
        position=jnp.int32(0),
        tokens=jnp.full(shape, END, jnp.int32),
        parents=jnp.zeros(shape, jnp.int32),
        total=jnp.broadcast_to(jnp.where(jnp.arange(beam) == 0, 0.0, NONE)[None], shape),
        ended=jnp.zeros(shape, bool),
        ids=jnp.full((*shape, longest), PADDING, jnp.int32),
        cache=begin(longest + 1, beam),
    )
    return lax.while_loop(unfinished, grow, first).ids[:, 0]


def limits(frames: int, ratio: float, extra: int) -> Int[np.ndarray, "n"]:
    """Maximum number of tokens for 0, 1, ..., `frames` frames: 0, then ceil(ratio n) + extra."""
    most = np.ceil(ratio * np.arange(frames + 1)).astype(np.int32) + np.int32(extra)
    most[0] = 0
    return most


def penalty(length: Int[Array, "*b"], alpha: float) -> Float[Array, "*b"]:
    """Length penalty ((5 + n) / 6)^alpha of a hypothesis of n tokens, the end included."""
    return ((5 + length) / 6) ** alpha


class _State(NamedTuple):
    """W hypotheses per row, best first."""

    position: Int[Array, ""]  # of the next token
    tokens: Int[Array, "b w"]  # last tokens
    parents: Int[Array, "b w"]  # index in the previous beam
    total: Float[Array, "b w"]  # ln P; -inf: unused
    ended: Bool[Array, "b w"]
    ids: Int[Array, "b w u"]
    cache: Any


def _choose(
    state: _State, log_probs: Float[Array, "b w k"], full: Bool[Array, "b #w"], alpha: float
) -> tuple[Int[Array, "b w"], Int[Array, "b w"], Float[Array, "b w"]]:
    """(parents, tokens, ln P) of the W best continuations, best first.

    A finished hypothesis continues with the end at no cost; a full one with the end only.
    """
    beam, classes = log_probs.shape[1:]
    end = (jnp.arange(classes) == END)[None, None]
    gain = jnp.where(state.ended[..., None], 0.0, log_probs)
    gain = jnp.where((state.ended | full)[..., None] & ~end, NONE, gain)
    total = state.total[..., None] + gain
    score = total / penalty(_lengths(state), alpha)[..., None]
    _, best = lax.top_k(score.reshape(len(score), -1), beam)
    total = jnp.take_along_axis(total.reshape(len(total), -1), best, axis=1)
    return best // classes, best % classes, total


def _lengths(state: _State) -> Int[Array, "b w"]:
    """Number of tokens, including the end or the next token."""
    return 1 + jnp.sum(state.ids != PADDING, axis=-1)
