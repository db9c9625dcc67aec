"""Beam search for an attention decoder, on the device, inside `jit`.

    score(y) = ln P(y, end | x) / ((5 + n) / 6)^alpha,     n = the tokens of y and its end

after Wu et al. (GNMT, arXiv 1609.08144), equation 14, without coverage. Each row keeps its `beam`
texts of the best score, n being the tokens so far while a text grows. A text that has ended keeps
its score and its place until `beam` better ones push it out. The search is over when no growing
text of any row can still reach the best that has ended: its ln P can only fall, and n is at most
the row's limit. A beam of 1 is the greedy search: the most probable token at every step. A beam
that drops nothing finds the best text. Ties go to the better parent, then to the smaller id.

Every text ends: one of as many tokens as the row's limit may take nothing but the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

END = 0  # begins a text as an input, ends it as an output
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
    """The best text of each row that the search finds, int32 `[B, U]`, -1 after its last token.

    Args:
      begin(max_len, beam) -> cache of `beam` texts a row, of at most max_len inputs each.
      extend(cache, tokens `[B, W]`, position, parents `[B, W]` or None) -> (logits `[B, W, K]`,
        cache): text w of a row takes one more token, after what was the row's text parents[w].
      lengths: `[B]` frames of an encoder's output; a row without any has no tokens.
      frames: T, the frames that rows are padded to.
      beam: texts kept a row. alpha: of the score, at least 0; 0 favours short texts.
      max_ratio, max_extra: a row of n frames has at most ceil(max_ratio n) + max_extra tokens, so
        that a decoder that never ends a text does not run on. U is that of T frames.

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
    """The most tokens of a row of 0, 1, ..., `frames` frames: 0, then ceil(ratio n) + extra."""
    most = np.ceil(ratio * np.arange(frames + 1)).astype(np.int32) + np.int32(extra)
    most[0] = 0
    return most


def penalty(length: Int[Array, "*b"], alpha: float) -> Float[Array, "*b"]:
    """((5 + n) / 6)^alpha, which divides ln P of a text of n tokens, the end included."""
    return ((5 + length) / 6) ** alpha


class _State(NamedTuple):
    """W texts a row, best first."""

    position: Int[Array, ""]  # of the token that they take next
    tokens: Int[Array, "b w"]  # their last ones
    parents: Int[Array, "b w"]  # where they stood before these
    total: Float[Array, "b w"]  # ln P; -inf: an empty place
    ended: Bool[Array, "b w"]
    ids: Int[Array, "b w u"]
    cache: Any


def _choose(
    state: _State, log_probs: Float[Array, "b w k"], full: Bool[Array, "b #w"], alpha: float
) -> tuple[Int[Array, "b w"], Int[Array, "b w"], Float[Array, "b w"]]:
    """(parents, tokens, ln P) of the best W of all continuations, best first.

    An ended text has one: the end again, at no cost. A full text has one: the end.
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
    """Tokens with the end, of a growing text with what it takes next."""
    return 1 + jnp.sum(state.ids != PADDING, axis=-1)
