"""Simplex projection and minimum-norm combination, against exact enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bljust_jax.bilevel import simplex

project, min_norm = jax.jit(simplex.project), jax.jit(simplex.min_norm)
KINDS = ("plain", "rank one", "duplicates", "a zero", "opposite", "scales", "parallel", "rank two")


def gradients(kind, rng):
    n, width = rng.integers(2, 11), rng.choice([3, 20, 200])
    g = rng.normal(size=(n, width)) + rng.choice([0, 0.5])
    if kind == "rank one":
        g = rng.normal(size=(n, 1)) * g[:1]
    if kind == "duplicates":
        g[n // 2 :] = g[: n - n // 2]
    if kind == "a zero":
        g[rng.integers(n)] = 0
    if kind == "opposite":
        g[1] = -rng.uniform(0.5, 2) * g[0]
    if kind == "scales":
        g = np.abs(g) * 10 ** rng.uniform(-3, 3, (n, 1))
    if kind == "parallel":
        g = g[:1] + 1e-3 * g
    if kind == "rank two":
        g = rng.normal(size=(n, 2)) @ g[:2]
    return g * 10 ** rng.uniform(-3, 3)


def shortest(k):
    """min over the simplex of lam^T K lam, exactly: some optimal lam solves the linear system of
    its own support, so all supports are tried."""
    n, best = len(k), np.inf
    for size in range(1, n + 1):
        rows = np.array(list(itertools.combinations(range(n), size)))
        system = np.zeros((len(rows), size + 1, size + 1))
        system[:, :size, :size] = k[rows[:, :, None], rows[:, None, :]] / np.trace(k)
        system[:, :size, size], system[:, size, :size] = -1, 1
        lam = np.linalg.pinv(system, rcond=1e-13)[:, :size, size]
        real = (lam.min(1) > -1e-12) & (abs(lam.sum(1) - 1) < 1e-9)
        value = np.einsum("si,sij,sj->s", lam, system[:, :size, :size], lam)
        best = min(best, value[real].min(initial=np.inf))
    return best * np.trace(k)


@pytest.mark.parametrize("kind", KINDS)
def test_min_norm_is_the_quadratic_program_s_solution(kind):
    """200 Gram matrices in all, float32. The gap that ends the iteration is 3e-7 of the mean
    diagonal, float32 sums of ten products as much again."""
    rng = np.random.default_rng(KINDS.index(kind))
    for _ in range(25):
        g = gradients(kind, rng)
        gram = (g @ g.T).astype(np.float32)
        k, unit = np.float64(gram), np.trace(np.float64(gram)) / len(gram)
        lam = np.float64(min_norm(gram))
        assert np.isfinite(lam).all()
        assert lam.min() >= 0
        assert abs(lam.sum() - 1) <= 1e-5
        assert lam @ k @ lam <= shortest(k) + 1e-6 * unit
        assert (k @ lam).min() >= -1e-6 * unit


def test_min_norm_of_two_is_the_closed_form():
    for a, b, c, want in [
        (1, 0, 3, 0.75),  # orthogonal: in inverse proportion to the squares
        (1, 2, 5, 1.0),  # <g1, g2> >= |g1|^2: the shorter one alone
        (5, 2, 1, 0.0),
        (4, -2, 1, 1 / 3),  # opposite: they cancel
        (2, 2, 2, 0.5),  # equal
        (0, 0, 0, 0.5),
    ]:
        lam = min_norm(jnp.array([[a, b], [b, c]], jnp.float32))
        np.testing.assert_allclose(lam, [want, 1 - want], atol=1e-6)


def test_min_norm_at_its_ends():
    np.testing.assert_array_equal(min_norm(jnp.full((1, 1), 7.0)), [1.0])
    np.testing.assert_array_equal(min_norm(jnp.zeros((3, 3))), [1.0, 0.0, 0.0])
    assert min_norm(jnp.full((4, 4), jnp.nan)).shape == (4,), "it ends"


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8))
@example([1e6, 1e6 - 0.5, -1e6])
@example([0.25] * 4)
@settings(max_examples=60, deadline=None)
def test_project_is_the_nearest_point(values):
    """max(v - th, 0) that sums to 1 is the projection: th found in float64 by bisection."""
    v = np.array(values, np.float32)
    low, high = v.max().astype(np.float64) - 1, np.float64(v.max())
    for _ in range(60):
        middle = (low + high) / 2
        above = np.maximum(v - middle, 0).sum() > 1
        low, high = (middle, high) if above else (low, middle)
    got = np.asarray(project(v))
    # of numbers in [0, 1], a few roundings each
    np.testing.assert_allclose(got, np.maximum(v - low, 0), atol=1e-6)
    assert abs(got.sum() - 1) <= 1e-6


def test_project_leaves_the_simplex_alone_and_stays_on_it():
    inside = jnp.array([0.125, 0.5, 0.375, 0.0])
    np.testing.assert_allclose(project(inside), inside, atol=1e-7)
    np.testing.assert_array_equal(project(jnp.array([-jnp.inf, 3e38, -3e38])), [0, 1, 0])
