"""The core by argument: closed forms, selection at weight 0, finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bljust_jax import bilevel, step, system
from tests import toy


def run_to_rest(gamma, steps=2000):
    def rate(k):
        return 0.05 * jnp.maximum(0.0, 1 - k / steps)

    phase = toy.phase("joint", steps, gamma=lambda k: gamma, lr=rate)
    r, opt, groups, state = toy.start([phase])
    train_step = step.make_train_step(r, phase, opt, groups, seed=0)

    def body(_, s):
        return train_step(s, toy.BATCH)[0]

    return jax.jit(lambda s: jax.lax.fori_loop(0, steps, body, s))(state).params


@pytest.mark.parametrize("gamma", [0.5, 5.0, 50.0])
def test_penalised_optimum_is_the_closed_form(gamma):
    params = run_to_rest(gamma)
    theta, phi = toy.optimum(gamma)
    # Adam with a rate falling to 0 stops within its last steps' size: 1e-3 of values near 5.
    np.testing.assert_allclose(params["encoder"]["theta"], [theta, 1.0], atol=5e-3)
    np.testing.assert_allclose(params["f_head"]["phi"], phi, atol=5e-3)
    np.testing.assert_allclose(params["g_head"]["psi"], theta, atol=5e-3)


def test_penalised_optimum_approaches_the_bilevel_one_as_the_penalty_grows():
    """The gap |theta_1 - 5| is 1 / (1/2 + gamma): it falls in proportion to 1 / gamma."""
    gaps = [abs(float(run_to_rest(g)["encoder"]["theta"][0]) - 5.0) for g in (1.0, 10.0, 100.0)]
    assert gaps[0] > 5 * gaps[1] > 20 * gaps[2]
    assert gaps[2] < 0.02


@given(
    start=st.floats(0, 1), slope=st.floats(0, 1), extra=st.floats(0, 2), k=st.integers(0, 10_000)
)
@settings(max_examples=40, deadline=None)
def test_penalty_schedule(start, slope, extra, k):
    cap = start + extra
    got = float(bilevel.penalty_schedule(start, slope, cap)(k))
    assert got == pytest.approx(min(cap, start + slope * k), rel=1e-5, abs=1e-6)


def test_penalty_schedule_refuses_to_fall():
    with pytest.raises(ValueError, match="rises"):
        bilevel.penalty_schedule(1.0, 0.1, 0.5)


def test_weight_zero_selects_bit_for_bit():
    """Law 3: at penalty 0 the direction is the upper gradient array-equal, whatever the lower one
    holds."""
    upper = {"encoder": jnp.array([1.5, -0.0, 3e-38, -7.0]), "head": None}
    owned = {"encoder": None, "head": jnp.array(2.0)}
    for poison in (jnp.nan, jnp.inf, 1e30):
        lower = {"encoder": jnp.full(4, poison), "head": None}
        direction, _ = bilevel.combine_levels().update(
            bilevel.Grads(owned, (upper, lower)),
            optax.EmptyState(),
            level_weights=(jnp.float32(1), jnp.float32(0)),
        )
        assert np.asarray(direction["encoder"]).tobytes() == np.asarray(upper["encoder"]).tobytes()
        assert float(direction["head"]) == 2.0


def test_penalty_zero_ignores_the_lower_batch_in_one_compiled_step():
    phase = toy.phase("joint", gamma=lambda k: 0.0)
    r, opt, groups, state = toy.start([phase])
    train_step = jax.jit(step.make_train_step(r, phase, opt, groups, seed=0))
    one, _ = train_step(state, toy.BATCH)
    other = {**toy.BATCH, "unlabelled": {"x": jnp.array([9, 9], jnp.int32)}}
    two, _ = train_step(state, other)
    for part in ("encoder", "f_head"):
        jax.tree.map(np.testing.assert_array_equal, one.params[part], two.params[part])


@pytest.mark.parametrize("gradients", ["separate", "fused"])
@pytest.mark.parametrize("head_scale", ["plain", "penalised"])
def test_direction_against_finite_differences(gradients, head_scale):
    """Law 4, float64: shared parameters see grad(f + gamma g); with `penalised` heads do too,
    otherwise each sees its own loss."""
    gamma = 0.7
    with jax.enable_x64(True):
        phase = toy.phase("joint", gamma=lambda k: gamma)
        options = {"gradients": gradients, "head_scale": head_scale}
        r = toy.recipe([phase], **options)
        opt = toy.sgd(r.combiner, 1.0)
        r, opt, groups, state = toy.start([phase], opt, **options)
        params = jax.tree.map(lambda p: p.astype(jnp.float64), state.params)
        state = state._replace(params=params, ema=params)
        after, _ = step.make_train_step(r, phase, opt, groups, seed=0)(state, toy.BATCH)
        direction = jax.tree.map(lambda a, b: a - b, state.params, after.params)

        extras = system.Extras(0, {}, {}, {}, {"f": 1.0, "g": 1.0})

        def losses(p):
            f, _ = toy.upper(p, extras, toy.BATCH, None)
            g, _ = toy.lower(p, extras, toy.BATCH, None)
            return float(f["f"][0] / f["f"][1]), float(g["g"][0] / g["g"][1])

        eps = 1e-6
        weights = {"encoder": (1, gamma), "f_head": (1, 0), "g_head": (0, 1)}
        if head_scale == "penalised":
            weights["g_head"] = (0, gamma)
        flat, tree = jax.tree_util.tree_flatten_with_path(params)
        for n, (path, leaf) in enumerate(flat):
            a, b = weights[path[0].key]
            for i in range(leaf.size):

                def moved(by, n=n, i=i):
                    leaves = [x for _, x in flat]
                    leaves[n] = leaves[n].reshape(-1).at[i].add(by).reshape(leaves[n].shape)
                    return losses(jax.tree.unflatten(tree, leaves))

                (fp, gp), (fm, gm) = moved(eps), moved(-eps)
                want = (a * (fp - fm) + b * (gp - gm)) / (2 * eps)
                got = float(jax.tree.leaves(direction)[n].reshape(-1)[i])
                # central differences at 1e-6 in float64 carry about 1e-9 of rounding; gamma is
                # float32
                assert got == pytest.approx(want, rel=1e-6, abs=1e-7)


@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4))
@settings(max_examples=20, deadline=None)
def test_cosine(values):
    a = {"x": jnp.array(values[:2]), "y": None}
    b = {"x": jnp.array(values[2:]), "y": None}
    got = float(bilevel.cosine(a, b))
    x, y = np.float64(values[:2]), np.float64(values[2:])
    size = np.linalg.norm(x) * np.linalg.norm(y)
    assert -1.0001 <= got <= 1.0001
    if size > 1e-6:
        assert got == pytest.approx(float(x @ y / size), abs=1e-4)
    assert float(bilevel.cosine(a, {"x": jnp.zeros(2), "y": None})) == 0.0
