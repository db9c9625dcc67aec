"""Simplex problems: Euclidean projection, and the convex combination of minimum norm.

The simplex is {lam: lam >= 0, sum lam = 1}.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Of K with mean diagonal 1. A duality gap of GAP bounds the excess of lam^T K lam and the violation
# of (K lam)_i >= 0; RIDGE, on the diagonal of the systems that are solved, keeps those of parallel
# or equal vectors regular at the cost of as much of the objective at most. Both are a few units of
# float32 rounding, 6e-8.
GAP, RIDGE = 3e-7, 1e-7


def project(v: Float[Array, "n"]) -> Float[Array, "n"]:
    """argmin over lam in the simplex of |lam - v|^2.

    With u = v sorted downwards, r the largest j such that u_j > (u_1 + ... + u_j - 1) / j, and th
    that quotient at r: lam = max(v - th, 0). Entries more than 1 below the largest are 0, so v is
    first shifted and clipped to [-1, 0]: sums stay exact to rounding however large v is. Where the
    largest is not finite, lam is not either.
    """
    v = jnp.maximum(v - jnp.max(v), -1)
    down = jnp.flip(jnp.sort(v))
    quotients = (jnp.cumsum(down) - 1) / jnp.arange(1, v.size + 1, dtype=v.dtype)
    # a property of the first r entries and of none after them
    r = jnp.sum(down > quotients)
    return jnp.maximum(v - quotients[r - 1], 0)


def min_norm(
    gram: Float[Array, "n n"], present: Bool[Array, "n"] | None = None
) -> Float[Array, "n"]:
    """argmin over lam in the simplex of lam^T K lam, for K = G G^T: the weights of the shortest
    convex combination d of the rows of G, which has <d, G_i> = (K lam)_i >= |d|^2 for each i.

    present: rows that take part (all by default); the others have lam_i = 0. Where none is, lam is
    one of the rows.

    Two rows (Desideri 2012; Sener and Koltun 2018), with a = K_11, b = K_12, c = K_22:
        lam_1 = (c - b) / (a + c - 2 b), clipped to [0, 1]; 1/2 where both rows are equal.
    More rows: the active set of Wolfe, "Finding the nearest point in a polytope" (1976), until the
    duality gap lam^T K lam - min_i (K lam)_i is at most 3e-7 of the mean of K's diagonal.
    It does not depend on the scale of K. Where K is 0, lam is the first of three rows or
    more; where K is not finite, so may be lam.
    """
    n = gram.shape[0]
    mean = jnp.trace(gram) / n
    k = gram / jnp.where(mean == 0, 1, mean)
    if n == 1:
        return jnp.ones_like(gram[0])
    if n > 2:
        return _wolfe(k, jnp.ones(n, bool) if present is None else present)
    both = _between(k[0, 0], (k[0, 1] + k[1, 0]) / 2, k[1, 1])
    if present is None:
        return both
    return jnp.where(jnp.all(present), both, jax.nn.one_hot(jnp.argmax(present), 2, dtype=k.dtype))


def _between(a: Float[Array, ""], b: Float[Array, ""], c: Float[Array, ""]) -> Float[Array, "2"]:
    apart = a + c - 2 * b  # |G_1 - G_2|^2
    first = jnp.where(apart > 0, (c - b) / jnp.where(apart > 0, apart, 1), 0.5)
    first = jnp.clip(first, 0, 1)
    return jnp.stack([first, 1 - first])


class _Corral(NamedTuple):
    lam: Float[Array, "n"]
    support: Bool[Array, "n"]
    gap: Float[Array, ""]
    steps: Int[Array, ""]


def _wolfe(k: Float[Array, "n n"], present: Bool[Array, "n"]) -> Float[Array, "n"]:
    """Each step moves to the point z of minimum norm in the affine hull of the support: z is
    proportional to x, (K + 1 1^T) x = 1 on the support. If z is outside the simplex, stop at its
    border and drop the row that reaches it first; else add the row of the smallest (K lam)_i, of
    the present ones."""
    n = k.shape[0]
    regular = k + 1 + RIDGE * jnp.eye(n, dtype=k.dtype)

    def step(at: _Corral) -> _Corral:
        both = at.support[:, None] & at.support[None, :]
        x = jnp.linalg.solve(
            jnp.where(both, regular, jnp.eye(n, dtype=k.dtype)), at.support.astype(k.dtype)
        )
        z = x / jnp.sum(x)
        leaves = at.support & (z <= 0)
        share = jnp.where(leaves, at.lam / jnp.where(leaves, at.lam - z, 1), jnp.inf)
        first = jnp.arange(n) == jnp.argmin(share)
        border = at.lam + jnp.min(share, initial=1) * (z - at.lam)
        border = jnp.where(at.support & ~first, jnp.maximum(border, 0), 0)
        inside = ~jnp.any(leaves)
        lam = jnp.where(inside, z, border / jnp.sum(border))
        # no matrix product: it would be rounded on a GPU
        slope = jnp.where(present, jnp.sum(k * lam[None, :], axis=1), jnp.inf)
        next_row = jnp.arange(n) == jnp.argmin(slope)
        support = jnp.where(inside, at.support | next_row, at.support & ~first)
        norm = jnp.sum(jnp.where(present, lam * slope, 0))
        gap = jnp.where(inside, norm - jnp.min(slope), jnp.inf)
        return _Corral(lam, support, gap, at.steps + 1)

    start = jnp.arange(n) == jnp.argmin(jnp.where(present, jnp.diag(k), jnp.inf))
    state = _Corral(start.astype(k.dtype), start, jnp.asarray(jnp.inf, k.dtype), jnp.int32(0))
    # usually about as many steps as rows; the bound ends cycles caused by rounding
    return jax.lax.while_loop(lambda at: (at.gap > GAP) & (at.steps < 8 * n), step, state).lam
