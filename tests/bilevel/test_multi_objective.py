"""MoDo's weights: closed forms of their fixed points, the bound of the stable rate, and laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bljust_jax.bilevel import multi_objective
from bljust_jax.bilevel.multi_objective import (
    Conflict,
    SeparateGradients,
    combine_dynamic,
    initial_level_state,
    row_sum_bound,
)
from configs import m2asr

PUBLISHED = {"rate": 0.01, "relative": False, "rho": 0.001, "normalise": "none"}


@functools.partial(jax.jit, static_argnums=0)
def weights_of(conflict, gradients):
    """lam after each step, [steps, n], of gradients [steps, n, samples, P]."""
    names = tuple("abcdefghi"[: gradients.shape[1]])
    state = initial_level_state(conflict, names, {"encoder": {"w": gradients[0, 0, 0]}})

    def step(state, inputs):
        k, g = inputs
        level = SeparateGradients(
            {n: tuple({"encoder": {"w": x}} for x in g[i]) for i, n in enumerate(names)}
        )
        direction, state = combine_dynamic(conflict, level, state, k)
        return state, (state.lam, direction["encoder"]["w"])

    return jax.lax.scan(step, state, (jnp.arange(len(gradients)), gradients))[1]


def constant(*rows, steps=400):
    """The same gradients in both samples of all steps."""
    g = np.asarray(rows, np.float32)
    return np.broadcast_to(g[None, :, None], (steps, len(rows), 2, g.shape[1]))


@pytest.mark.daily("0.05-0.1", "1.9-5000.0")
@pytest.mark.parametrize(("rate", "rho"), [(0.05, 0.1), (1.9, 0.1), (0.3, 50.0), (1.9, 5000.0)])
def test_fixed_point_of_two_orthogonal_objectives(rate, rho):
    """(K + rho) lam has equal entries: lam_1 = (K_22 + rho) / (K_11 + K_22 + 2 rho), with norms
    50:10 a weight of 0.038 for the longer one; 1/2 where gradients are scaled to norm 1. The rate
    decides how fast, and below 2 not whether."""
    g = constant((50, 0), (0, 10), steps=20000)
    raw = Conflict(rate=rate, relative=True, rho=rho)
    expected = (100 + rho) / (2600 + 2 * rho)
    np.testing.assert_allclose(weights_of(raw, g)[0][-1, 0], expected, atol=1e-4)
    unit = Conflict(rate=rate, relative=True, rho=rho, normalise="norm")
    lam, direction = weights_of(unit, g)
    np.testing.assert_allclose(lam[-1], (0.5, 0.5), atol=1e-5)
    np.testing.assert_allclose(direction[-1], (15, 15), rtol=1e-4)  # half of the mean norm of 30


def test_the_published_rate_is_not_stable_for_these_norms():
    """K = diag(2,500, 100), on the simplex's direction (1, -1) a curvature of 1,300: a step of
    2 / 2,500 settles, one above 2 / 1,300 and the published 0.01 swing for ever."""
    g = constant((50, 0), (0, 10), steps=2000)

    def swing(rate):
        lam = weights_of(Conflict(rate=rate), g)[0]
        return float(jnp.ptp(lam[-50:, 0]))

    assert swing(0.0008) < 1e-4
    assert swing(0.0016) > 0.01
    assert swing(0.01) > 0.4


@given(st.integers(2, 6), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_row_sums_bound_the_largest_eigenvalue(n, seed):
    g = np.random.default_rng(seed).normal(size=(n, 4)) * 10 ** np.linspace(-1, 1, n)[:, None]
    k = g @ g.T
    assert float(row_sum_bound(jnp.asarray(k))) >= np.linalg.eigvalsh(k)[-1] * (1 - 1e-5)


def test_the_bound_is_the_eigenvalue_of_orthogonal_and_of_parallel_gradients():
    assert float(row_sum_bound(jnp.diag(jnp.array([2500.0, 100.0])))) == 2500
    assert float(row_sum_bound(jnp.ones((5, 5)))) == 5


def noisy(norms, signal, steps, seed, size=50):
    """Gradients whose squared norm is `norms`^2 on average, a share `signal` of it that of a mean
    that does not change: orthogonal means, independent noise per sample."""
    rng = np.random.default_rng(seed)
    norms, signal = np.asarray(norms, np.float64), np.asarray(signal, np.float64)
    noise = rng.normal(size=(steps, len(norms), 2, size)) / size**0.5
    g = np.sqrt(1 - signal)[:, None, None] * noise
    g += (np.sqrt(signal)[:, None] * np.eye(len(norms), size))[:, None]
    return np.float32(norms[:, None, None] * g)


def shipped(arg=None):
    moo = m2asr.get_config(arg).moo
    return Conflict(
        **{name: moo[name] for name in ("method", "rate", "relative", "rho", "normalise")}
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("arg", [None, "digits"])
def test_no_weight_starves_with_the_shipped_settings(arg, seed):
    """Gradient norms 50:10, recognition first, whose gradients are the less noisy ones: all steps
    keep weights above 0.02; with the published settings they swing to 0."""
    norms, signal = (50, 50, 10, 10), (0.6, 0.6, 0.1, 0.1)
    g = noisy(norms, signal, 300, seed)
    lam = np.asarray(weights_of(shipped(arg), g)[0])
    np.testing.assert_allclose(lam.sum(1), 1, atol=1e-5)
    assert lam.min() > 0.02
    before = np.asarray(weights_of(Conflict(**PUBLISHED), g)[0])
    assert before.min() == 0


@pytest.mark.parametrize("n", [2, 5, 9])
def test_the_shipped_pull_keeps_a_third_of_an_equal_share(n):
    """The worst case of orthogonal gradients of norm 1: one objective has the same gradient in both
    samples, the others have noise, orthogonal ones, so that K = diag(1, 0, ..., 0). Its weight is
    rho / (rho + (n - 1) (1 + rho)), at least rho / (1 + rho) of 1 / n."""
    g = np.zeros((n, 2, 2 * n), np.float32)
    g[0, :, 0] = 1
    for i in range(1, n):
        g[i, 0, 2 * i], g[i, 1, 2 * i + 1] = 1, 1
    conflict = shipped()
    lam = np.asarray(weights_of(conflict, np.broadcast_to(g, (3000, *g.shape)))[0])
    rho = conflict.rho
    np.testing.assert_allclose(lam[-1, 0], rho / (rho + (n - 1) * (1 + rho)), rtol=1e-3)
    assert lam.min() >= (1 - 1e-3) * rho / (1 + rho) / n
    assert rho / (1 + rho) >= 0.33


def test_weights_of_unit_gradients_do_not_depend_on_their_norms():
    """vs: a self-supervised loss a hundred times smaller gets the weight of one as large."""
    g = noisy((50, 50, 50), (0.5, 0.5, 0.5), 100, 3)
    small = g * np.array([1, 1, 0.01], np.float32)[:, None, None]
    lam, other = (weights_of(shipped(), x)[0] for x in (g, small))
    np.testing.assert_allclose(lam, other, atol=2e-5)
    raw = weights_of(Conflict(rate=1.0, relative=True), small)[0]
    assert float(raw[-1, 2]) > 0.9


def test_weights_are_equal_before_a_step_and_move_from_it():
    g = constant((50, 0), (0, 10), steps=20)
    lam = weights_of(Conflict(relative=True, equal_until=12), g)[0]
    np.testing.assert_array_equal(lam[:12], 0.5)
    assert (abs(lam[12:] - 0.5) > 1e-3).all()


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_weights_stay_on_the_simplex(seed):
    rng = np.random.default_rng(seed)
    g = 10 ** rng.uniform(-3, 3, (1, 4, 1, 1)) * rng.normal(size=(20, 4, 2, 5))
    g = g * (rng.uniform(size=(20, 4, 1, 1)) > 0.3)  # some have no gradient in some steps
    for conflict in (shipped(), Conflict("mgda")):
        lam = weights_of(conflict, np.float32(g[:, :, : multi_objective.SAMPLES[conflict.method]]))
        lam = np.asarray(lam[0])
        assert (lam >= 0).all()
        np.testing.assert_allclose(lam.sum(1), 1, atol=1e-5)


def test_dot_of_the_update_is_that_of_what_the_optimizer_adds():
    """d = (G_a + G_b) / 2 worsens neither; the update of an optimizer that scales elements does."""
    a, b = (np.float32(x) for x in ((1, 1), (1, -0.5)))
    levels = (
        SeparateGradients(
            {"a": ({"encoder": a, "head": None},), "b": ({"encoder": b, "head": None},)}
        ),
    )
    updates = {"encoder": jnp.array([-0.01, -1.0]), "head": jnp.ones(3)}
    got = multi_objective.update_metrics(levels, updates)
    assert {name: float(x) for name, (x, _) in got.items()} == pytest.approx(
        {"moo/update_dot/a": -1.01, "moo/update_dot/b": 0.49}
    )
    assert (a + b) @ a > 0 < (a + b) @ b


@pytest.mark.parametrize("rate", [2.0, 5.0])
def test_a_relative_rate_that_is_not_stable_is_refused(rate):
    with pytest.raises(ValueError, match="not stable"):
        Conflict(rate=rate, relative=True)
    assert Conflict(rate=rate).rate == rate
