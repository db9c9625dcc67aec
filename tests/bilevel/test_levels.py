"""The level combiner: closed forms, selection at weight 0, finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bljust_jax.bilevel import multi_objective, step
from bljust_jax.bilevel.levels import Grads, combine_levels
from bljust_jax.bilevel.multi_objective import (
    METHODS,
    NORMALISE,
    SAMPLES,
    Conflict,
    SeparateGradients,
)
from bljust_jax.bilevel.schedules import penalty_schedule
from bljust_jax.bilevel.types import Extras
from bljust_jax.common import trees as trees_module
from tests.helpers import toy


def run_to_rest(gamma, steps=2000):
    def rate(k):
        return 0.05 * jnp.maximum(0.0, 1 - k / steps)

    phase = toy.phase("joint", steps, gamma=lambda k: gamma, lr=rate)
    r, opt, groups, state = toy.start([phase])
    train_step = step.make_train_step(r, (phase,), opt, groups, seed=0)

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
@example(start=0.25, slope=0.125, extra=2.0, k=0)
@settings(max_examples=40, deadline=None)
def test_penalty_schedule(start, slope, extra, k):
    cap = start + extra
    got = float(penalty_schedule(start, slope, cap)(k))
    assert got == pytest.approx(min(cap, start + slope * k), rel=1e-5, abs=1e-6)


def test_penalty_schedule_refuses_to_fall():
    with pytest.raises(ValueError, match="rises"):
        penalty_schedule(1.0, 0.1, 0.5)


def test_weight_zero_selects_bit_for_bit():
    """Law 3: at penalty 0 the direction is the upper gradient array-equal, whatever the lower one
    holds."""
    upper = {"encoder": jnp.array([1.5, -0.0, 3e-38, -7.0]), "head": None}
    owned = {"encoder": None, "head": jnp.array(2.0)}
    for poison in (jnp.nan, jnp.inf, 1e30):
        lower = {"encoder": jnp.full(4, poison), "head": None}
        direction, _ = combine_levels().update(
            Grads(owned, (upper, lower)),
            optax.EmptyState(),
            level_weights=(jnp.float32(1), jnp.float32(0)),
        )
        assert np.asarray(direction["encoder"]).tobytes() == np.asarray(upper["encoder"]).tobytes()
        assert float(direction["head"]) == 2.0


def test_weight_zero_of_the_upper_level_selects_the_lower_one():
    lower = {"encoder": jnp.array([1.5, -7.0])}
    for poison in (jnp.nan, jnp.inf):
        direction, _ = combine_levels().update(
            Grads({"encoder": None}, ({"encoder": jnp.full(2, poison)}, lower)),
            optax.EmptyState(),
            level_weights=(jnp.float32(0), jnp.float32(1)),
        )
        np.testing.assert_array_equal(direction["encoder"], lower["encoder"])


def test_penalty_zero_ignores_the_lower_batch_in_one_compiled_step():
    phase = toy.phase("joint", gamma=lambda k: 0.0)
    r, opt, groups, state = toy.start([phase])
    train_step = jax.jit(step.make_train_step(r, (phase,), opt, groups, seed=0))
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
        after, _ = step.make_train_step(r, (phase,), opt, groups, seed=0)(state, toy.BATCH)
        direction = jax.tree.map(lambda a, b: a - b, state.params, after.params)

        extras = Extras(0, {}, {}, {}, {"f": 1.0, "g": 1.0})

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
    got = float(trees_module.cosine(a, b))
    x, y = np.float64(values[:2]), np.float64(values[2:])
    size = np.linalg.norm(x) * np.linalg.norm(y)
    assert -1.0001 <= got <= 1.0001
    if size > 1e-6:
        assert got == pytest.approx(float(x @ y / size), abs=1e-4)
    assert float(trees_module.cosine(a, {"x": jnp.zeros(2), "y": None})) == 0.0


# Dynamic levels, without a step: gradients in, direction and state out

NAMES = ("a", "b", "c", "d")
SHAPES = {"blocks": {"bias": (3, 2), "kernel": (3, 4, 2)}, "front": {"kernel": (5,)}}


def draw(rng, cases, n, samples=1):
    """Gradients of n objectives, some along and some against one another, on two stacked arrays of
    three layers and one more: {objective: (tree, ...)}, and the parameters."""
    sizes = 10 ** rng.uniform(-2, 2, (cases, n))

    def leaf(shape):
        common = rng.normal(size=(cases, *shape))
        signs = rng.choice([-1, 0, 1], (cases, n))
        own = rng.normal(size=(samples, n, cases, *shape))
        pull = np.einsum("cn,c...->nc...", signs, common)
        return np.float32(np.einsum("cn,snc...->nsc...", sizes, own + pull))

    drawn = jax.tree.map(leaf, SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    params = {"encoder": jax.tree.map(lambda x: x[0, 0, 0], drawn), "head": np.zeros(1, np.float32)}
    trees = {
        name: tuple(
            {"encoder": jax.tree.map(lambda x, i=i, s=s: x[i, s], drawn), "head": None}
            for s in range(samples)
        )
        for i, name in enumerate(NAMES[:n])
    }
    return trees, params


def combine(conflict, trees, params):
    """(init state, update(state, step, trees) -> (direction, level state)) of one dynamic level."""
    names = tuple(trees)
    combiner = combine_levels(conflict, (names,))
    owned = {"encoder": jax.tree.map(lambda _: None, params["encoder"]), "head": jnp.zeros(1)}

    def update(state, step, trees):
        grads = Grads(owned, (SeparateGradients(trees),))
        direction, state = combiner.update(grads, state, level_weights=(1.0,), step=step)
        return direction["encoder"], state

    return combiner.init(params), update


def by_layer(encoder):
    """float64, [cases, 4 layers, 10]: the three layers of the blocks and the front end, padded."""
    kernel, bias = (np.asarray(encoder["blocks"][k], np.float64) for k in ("kernel", "bias"))
    blocks = np.concatenate([kernel.reshape(*kernel.shape[:2], -1), bias], axis=-1)
    front = np.asarray(encoder["front"]["kernel"], np.float64)
    front = np.pad(front, ((0, 0), (0, blocks.shape[-1] - front.shape[-1])))
    return np.concatenate([blocks, front[:, None]], axis=1)


def used(level):
    """bool [cases, 4]: the layers that the weights were found on."""
    blocks, front = (np.asarray(level.selected[f"encoder/{p}"]) for p in ("blocks", "front"))
    return np.concatenate([blocks, front[:, None]], axis=1)


@pytest.mark.daily("2-None-none", "4-0.0-norm")
@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("threshold", [None, 0.0])
@pytest.mark.parametrize("n", [2, 4])
def test_mgda_worsens_no_objective(n, threshold, normalise):
    """<d, G_i> >= -1e-6 of the mean |G_i|^2 on the layers used, G_i scaled to their mean norm where
    that is asked for. No layer is left out of d."""
    trees, params = draw(np.random.default_rng(n), 60, n)
    conflict = Conflict("mgda", normalise=normalise, threshold=threshold)
    state, update = combine(conflict, trees, params)
    direction, state = jax.jit(jax.vmap(update, (None, None, 0)))(state, 0, trees)
    level = state.levels["+".join(NAMES[:n])]
    lam = np.float64(level.lam)
    np.testing.assert_allclose(lam.sum(1), 1, atol=1e-5)
    g = np.stack([by_layer(trees[name][0]["encoder"]) for name in NAMES[:n]], 1)
    d = by_layer(direction)
    assert (abs(d).max(-1) > 0).all(), "no layer is frozen"
    chosen = used(level)
    assert chosen.any(1).all()
    assert chosen.all() == (threshold is None)
    on_chosen = np.where(chosen[:, None, :, None], g, 0)
    norms = np.sqrt(np.einsum("cnlx,cnlx->cn", on_chosen, on_chosen))
    if normalise == "norm":
        scale = np.mean(norms, 1, keepdims=True) / norms
        g, on_chosen = (scale[..., None, None] * x for x in (g, on_chosen))
        norms = scale * norms
    np.testing.assert_allclose(d, np.einsum("cn,cnlx->clx", lam, g), atol=1e-6 * abs(g).max())
    d = np.where(chosen[..., None], d, 0)
    tolerance = np.mean(norms**2, 1, keepdims=True)
    assert (np.einsum("clx,cnlx->cn", d, on_chosen) >= -1e-6 * tolerance).all()


def test_layers_are_chosen_by_mean_cosine_every_n_steps():
    trees, params = draw(np.random.default_rng(0), 40, 3)
    conflict = Conflict("mgda", threshold=0.1, every=4)
    state, update = combine(conflict, trees, params)
    update = jax.jit(update)
    g = np.stack([by_layer(trees[name][0]["encoder"]) for name in NAMES[:3]], 1)
    unit = g / np.linalg.norm(g, axis=-1, keepdims=True)
    cosine = np.einsum("cnlx,cmlx->clnm", unit, unit)[..., *np.triu_indices(3, 1)].mean(-1)
    expected = np.where((cosine < 0.1).any(1, keepdims=True), cosine < 0.1, True)
    assert len(np.unique(expected, axis=0)) > 5
    for n in range(40):
        before = used(jax.tree.map(lambda x: x[None], state.levels["a+b+c"]))
        case = jax.tree.map(lambda x, n=n: x[n], trees)
        _, state = update(state, n, case)
        level = jax.tree.map(lambda x: x[None], state.levels["a+b+c"])
        want = before if n % 4 else expected[[n]]
        np.testing.assert_array_equal(used(level), want)


def test_without_a_layer_in_conflict_all_are_used():
    trees, params = draw(np.random.default_rng(0), 1, 2)
    one = jax.tree.map(lambda x: x[0], trees["a"])
    state, update = combine(Conflict("mgda", threshold=0.0), trees, params)
    _, state = jax.jit(update)(state, 0, {"a": one, "b": jax.tree.map(lambda x: 2 * x, one)})
    assert used(jax.tree.map(lambda x: x[None], state.levels["a+b"])).all()


@pytest.mark.daily("2-none-mgda", "3-norm-modo", "2-norm-mgda")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("n", [2, 3])
def test_an_objective_without_a_gradient_is_left_out(method, normalise, n):
    """The direction is that of the others alone, not 0, and MoDo keeps the absent one's weight."""
    trees, params = draw(np.random.default_rng(1), 1, n, SAMPLES[method])
    trees = jax.tree.map(lambda x: x[0], trees)
    others = {name: tree for name, tree in trees.items() if name != "b"}
    trees["b"] = jax.tree.map(jnp.zeros_like, trees["b"])
    conflict = Conflict(method, normalise=normalise)
    state, update = combine(conflict, trees, params)
    direction, state = jax.jit(update)(state, 0, trees)
    lam = np.asarray(state.levels["+".join(NAMES[:n])].lam)
    np.testing.assert_allclose(lam.sum(), 1, atol=1e-6)
    assert lam[1] == pytest.approx(1 / n if method == "modo" else 0, abs=1e-6)
    alone, update = combine(conflict, others, params)
    want, alone = jax.jit(update)(alone, 0, others)
    rest, expected = np.delete(lam, 1), alone.levels["+".join(others)].lam
    np.testing.assert_allclose(rest / rest.sum(), expected, rtol=1e-5, atol=1e-6)
    assert max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(want)) > 0
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, direction, want)


@pytest.mark.parametrize("method", METHODS)
def test_without_any_gradient_nothing_moves(method):
    trees, params = draw(np.random.default_rng(1), 1, 3, SAMPLES[method])
    trees = jax.tree.map(lambda x: jnp.zeros_like(x[0]), trees)
    state, update = combine(Conflict(method), trees, params)
    direction, state = jax.jit(update)(state, 0, trees)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), direction)
    assert float(state.levels["a+b+c"].lam.sum()) == pytest.approx(1, abs=1e-6)


def test_steps_of_modo_on_unit_gradients_do_not_depend_on_their_size():
    """Seven times longer gradients: the same lam, and seven times the direction, to rounding."""
    trees, params = draw(np.random.default_rng(5), 1, 3, 2)
    trees = jax.tree.map(lambda x: x[0], trees)
    found = []
    for size in (1, 7):
        state, update = combine(Conflict("modo", normalise="norm"), trees, params)
        longer = jax.tree.map(lambda x, size=size: size * x, trees)
        direction, state = jax.jit(update)(state, 0, longer)
        shorter = jax.tree.map(lambda x, size=size: x / size, direction)
        found.append((state.levels["a+b+c"].lam, shorter))
    assert abs(found[0][0] - 1 / 3).max() > 0.01
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)


def test_gram_matrices_by_layer():
    """Against float64, within the rounding of sums of ten products."""
    trees, _ = draw(np.random.default_rng(2), 1, 3)
    got = multi_objective.gram(
        [jax.tree.map(lambda x: x[0], trees[n][0]) for n in "abc"], "^encoder/blocks"
    )
    g = np.stack([by_layer(trees[name][0]["encoder"])[0] for name in "abc"])
    want = np.einsum("nlx,mlx->lnm", g, g)
    size = 1e-6 * want.max()
    np.testing.assert_allclose(got["encoder/blocks"], want[:3], atol=size)
    np.testing.assert_allclose(got["encoder/front"], want[3], atol=size)


def test_gram_matrices_of_sharded_gradients():
    """Eight devices hold an eighth of the first leaf each, of either axis of the second: equal
    within rounding, and no leaf is gathered."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rng = np.random.default_rng(3)
    shapes = {"encoder": {"blocks": {"kernel": (2, 16, 8)}, "front": {"bias": (24,)}}}
    trees = [
        jax.tree.map(
            lambda s: rng.normal(size=s).astype(np.float32),
            shapes,
            is_leaf=lambda x: isinstance(x, tuple),
        )
        for _ in range(3)
    ]
    gram = jax.jit(functools.partial(multi_objective.gram, stacked="^encoder/blocks/"))
    want = gram(trees)
    spread = {
        "encoder": {
            "blocks": {"kernel": jax.sharding.PartitionSpec(None, "x", None)},
            "front": {"bias": jax.sharding.PartitionSpec("x")},
        }
    }
    placed = jax.tree.map(lambda spec: jax.sharding.NamedSharding(mesh, spec), spread)
    sharded = [jax.device_put(tree, placed) for tree in trees]
    compiled = gram.lower(sharded).compile()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), compiled(sharded), want)
    assert "all-reduce" in compiled.as_text()
    assert "all-gather" not in compiled.as_text()


@pytest.mark.parametrize(
    "wrong", [{"method": "sgd"}, {"normalise": "l2"}, {"rate": -1}, {"rho": -0.1}, {"every": 0}]
)
def test_conflict_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Conflict(**wrong)


def test_dynamic_levels_are_announced_and_their_layers_agree():
    trees, params = draw(np.random.default_rng(0), 1, 2)
    state, update = combine(Conflict("mgda"), trees, params)
    with pytest.raises(ValueError, match=r"level b\+a is not among"):
        update(state, 0, {name: trees[name] for name in ("b", "a")})
    params["encoder"]["blocks"]["bias"] = jnp.zeros((4, 2))
    with pytest.raises(ValueError, match="encoder/blocks/kernel has not as many layers"):
        combine(Conflict("mgda"), trees, params)
