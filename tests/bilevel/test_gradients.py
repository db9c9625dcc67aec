"""Gradients of dynamic levels through the whole step, on objectives with known gradients."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.bilevel import alike, step
from bljust_jax.bilevel.gradients import _depend_on, scale_gradient
from bljust_jax.bilevel.levels import CombinerState
from bljust_jax.bilevel.multi_objective import METHODS, NORMALISE, Conflict, level_name
from bljust_jax.bilevel.optimizer import group_of_parameters
from bljust_jax.bilevel.types import Group
from bljust_jax.checkpoint.manager import Checkpoints
from bljust_jax.parallel.mesh import make_mesh, put_batch, state_sharding
from tests.helpers import toy

A, B, C = toy.SOUP
ALL = (toy.SOUP,)
MODO, MGDA = Conflict("modo"), Conflict("mgda")


def level_of(state, names=toy.SOUP):
    return state.opt_state[0].levels[level_name(names)]


def lam_of(state):
    return level_of(state).lam


def with_lam(state, lam, names=toy.SOUP):
    """The state with MoDo's weights where they are wanted."""
    name = level_name(names)
    level = state.opt_state[0].levels[name]._replace(lam=jnp.array(lam, jnp.float32))
    return state._replace(opt_state=(CombinerState({name: level}), *state.opt_state[1:]))


def gradient(n, batch, rows=slice(None)):
    """At the start, where theta is 0."""
    return -toy.TARGETS[n] - np.asarray(batch[toy.SOUP[n]]["rows"])[rows].mean(0)


def moved(state, after, rate=1e-2):
    one, other = (np.asarray(toy.theta(s.params["encoder"])) for s in (state, after))
    return (one - other) / rate


def means(metrics):
    return {name: float(value) / float(weight) for name, (value, weight) in metrics.items()}


def test_modo_takes_the_even_and_the_odd_rows():
    """lam and direction are those of the formula; heads take the whole batch's plain gradient."""
    conflict = Conflict("modo", rate=0.02, rho=0.3)
    train_step, state = toy.soup(ALL, conflict)
    state = with_lam(state, [0.5, 0.3, 0.2])
    batch = toy.soup_batch(rows=6, noise=1.0)
    after, metrics = jax.jit(train_step)(state, batch)
    one, two = (np.stack([gradient(n, batch, slice(s, None, 2)) for n in range(3)]) for s in (0, 1))
    lam = np.array([0.5, 0.3, 0.2])
    lam = lam - 0.02 * (one @ two.T @ lam + 0.3 * (lam - 1 / 3))
    lam = lam - (lam.sum() - 1) / 3  # the projection, where all of it is inside
    assert lam.min() > 0
    np.testing.assert_allclose(level_of(after).lam, lam, atol=1e-6)
    np.testing.assert_allclose(moved(state, after), lam @ (one + two) / 2, atol=1e-5)
    for name in toy.SOUP:
        want = -2 * batch[name]["rows"][:, 0].mean() / 2
        head = after.params[f"{name}_head"]["value"]
        np.testing.assert_allclose(-head / 1e-2, want, atol=1e-5)
    got = means(metrics)
    k = ((one + two) / 2) @ ((one + two) / 2).T
    assert got[f"moo/weight/{B}"] == pytest.approx(lam[1], abs=1e-6)
    assert got[f"moo/norm/{C}"] == pytest.approx(math.sqrt(k[2, 2]), rel=1e-5)
    cosine = k[0, 1] / math.sqrt(k[0, 0] * k[1, 1])
    assert got[f"moo/cos/{A}|{B}"] == pytest.approx(cosine, abs=1e-5)
    g = (one + two)[[1, 2], 2:4]
    cosine = g[0] @ g[1] / np.linalg.norm(g[0]) / np.linalg.norm(g[1])
    assert got[f"moo/cos/{B}|{C}/encoder/blocks/1"] == pytest.approx(cosine, abs=1e-5)
    assert f"moo/cos/{A}|{C}/encoder/front" in got
    loss = 0.5 * np.mean(
        ((toy.TARGETS[0] + np.asarray(batch[A]["rows"])) ** 2).sum(1)
        + np.asarray(batch[A]["rows"])[:, 0] ** 2
    )
    assert got[f"train/{A}/loss"] == pytest.approx(loss, rel=1e-5)


def test_modo_s_halves_draw_apart():
    """Each half draws one number: that they differ shows in the mean of their squares."""
    train_step, state = toy.soup(ALL, MODO)
    _, metrics = jax.jit(train_step)(state, toy.soup_batch())
    assert float(metrics[f"{A}/drawn"][1]) == 2.0, "two halves"
    got = means(metrics)
    assert got[f"{A}/drawn_squared"] > got[f"{A}/drawn"] ** 2 + 1e-6


def test_modo_s_estimate_is_unbiased():
    """Inside the simplex lam moves by -rate times the part of (estimate of K) lam that sums to 0.
    Over 2000 pairs of samples that is the same of the true K, within 4.5 standard errors (one in
    1e5 for each of three); a Gram matrix of one sample would add its covariance, 5 / 2 for rows of
    5 independent unit normals, to the diagonal, and be many errors away."""
    lam, rate, draws = np.array([0.6, 0.3, 0.1]), 1e-3, 2000
    train_step, state = toy.soup(ALL, Conflict("modo", rate=rate))
    state = with_lam(state, lam)
    rng = np.random.default_rng(0)
    batches = {
        name: {"rows": rng.normal(size=(draws, 4, 5)), "reward": np.zeros((draws, 4))}
        | {"target": np.tile(target, (draws, 4, 1))}
        for name, target in zip(toy.SOUP, toy.TARGETS, strict=True)
    }
    batches = jax.tree.map(jnp.float32, batches)
    moves = jax.vmap(lambda batch: lam_of(train_step(state, batch)[0]) - lam_of(state))
    slopes = np.float64(jax.jit(moves)(batches)) / -rate
    got, error = slopes.mean(0), slopes.std(0) / math.sqrt(draws)

    def in_the_simplex(k):
        return k @ lam - (k @ lam).mean()

    k = toy.TARGETS @ toy.TARGETS.T
    # lam is float32: its change, divided by the rate, carries 6e-8 / 1e-3
    np.testing.assert_array_less(abs(got - in_the_simplex(k)), 4.5 * error + 1e-4)
    biased = in_the_simplex(k + 2.5 * np.eye(3))
    assert (abs(got - biased) > 10 * error).any()


@pytest.mark.daily("0.0-none", "100.0-norm")
@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("reward", [0.0, 100.0])
def test_modo_s_weights_move_and_stay_on_the_simplex(normalise, reward):
    """The reward makes each loss negative; at the start of the second case no loss is positive."""
    train_step, state = toy.soup(ALL, Conflict("modo", rate=0.02, normalise=normalise))
    train_step, seen = jax.jit(train_step), []
    for seed in range(20):
        batch = toy.soup_batch(noise=3.0, seed=seed, reward=reward)
        state, metrics = train_step(state, batch)
        assert (float(metrics[f"train/{A}/loss"][0]) < 0) == (reward > 0)
        seen.append([float(metrics[f"moo/weight/{name}"][0]) for name in toy.SOUP])
    seen = np.array(seen)
    assert np.isfinite(seen).all()
    assert seen.min() >= 0
    assert abs(seen.sum(1) - 1).max() <= 1e-5
    assert len(np.unique(seen.round(4), axis=0)) > 10


def test_levels_of_one_objective_are_bl_just_in_the_same_program():
    """A nested problem with one objective a level: MoDo or not, it compiles to the same program."""
    levels, weights = ((A,), (B,)), (1.0, 0.3)
    text, results = set(), []
    for combine in (("modo", "modo"), ("mgda", "sum"), ("sum", "sum"), ()):
        train_step, state = toy.soup(levels, MODO, combine, weights)
        batch = toy.soup_batch(noise=1.0)
        lowered = jax.jit(train_step).lower(state, batch)
        text.add(lowered.as_text())
        results.append(lowered.compile()(state, batch))
    assert len(text) == 1
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, results[0], other)


def test_all_weight_on_one_objective_is_single_task_training():
    """MoDo with lam held at one corner, and fixed weights of 1 and 0, train the shared parameters
    as the one objective alone does. The mean of two halves is another order of float32 sums."""
    batch = toy.soup_batch(noise=1.0)
    alone, state = toy.soup(((B,),), MODO)
    want, _ = jax.jit(alone)(state, batch)
    held, held_state = toy.soup(ALL, Conflict("modo", rate=0.0))
    held_state = with_lam(held_state, [0.0, 1.0, 0.0])
    fixed, fixed_state = toy.soup(ALL, MODO, ("sum",), inner={A: 0.0, C: 0.0})
    for train_step, start, tolerance in ((held, held_state, 1e-7), (fixed, fixed_state, 0)):
        after, _ = jax.jit(train_step)(start, batch)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=0, atol=tolerance),
            *(s.params["encoder"] for s in (after, want)),
        )


def test_fixed_weights_inside_a_level():
    """Shared parameters see them; a head its plain gradient."""
    batch = toy.soup_batch(noise=1.0)
    for gradients in ("separate", "fused"):
        train_step, state = toy.soup(
            *(((A, B), (C,)), MODO, ("sum", "sum"), (1.0, 0.5)),
            inner={A: 0.25, B: 0.75},
            gradients=gradients,
        )
        after, _ = jax.jit(train_step)(state, batch)
        want = sum(w * gradient(n, batch) for n, w in enumerate((0.25, 0.75, 0.5)))
        np.testing.assert_allclose(moved(state, after), want, atol=1e-5)
        head = after.params[f"{A}_head"]["value"]
        np.testing.assert_allclose(100 * head, batch[A]["rows"][:, 0].mean(), atol=1e-5)


@pytest.mark.daily("separate-plain", "fused-penalised")
@pytest.mark.parametrize("head_scale", ["plain", "penalised"])
@pytest.mark.parametrize("gradients", ["separate", "fused"])
def test_a_head_of_some_objectives_takes_their_levels_weights(gradients, head_scale):
    """Of two levels, or inside one, and once; a head of one objective takes its plain gradient, or
    all of its weight. A draws the head of A and B to 1, B to 2, from 0."""

    def drawn_to(n, params, extras, batch, rng):
        name = toy.SOUP[n]
        losses, aux = toy.drawn_to(n, params, extras, batch, rng)
        pair = scale_gradient(params["pair"]["value"], extras.scale[name])
        loss, count = losses[name]
        return {name: (loss + count * 0.5 * (pair - (n + 1)) ** 2, count)}, aux

    def init(rng):
        return toy.soup_init(rng)[0] | {"pair": {"value": jnp.zeros(())}}, {}, {}

    objectives = tuple(
        toy.Objective((name,), (name,), functools.partial(drawn_to if n < 2 else toy.drawn_to, n))
        for n, name in enumerate(toy.SOUP)
    )
    owners = {"encoder": toy.SOUP, "pair": (A, B)} | {name: (name,) for name in toy.SOUP}
    groups = tuple(
        Group(name, f"^{name}(_head)?/", frozenset(own), clip=1e9, weight_decay=0.0)
        for name, own in owners.items()
    )
    options = {"objectives": objectives, "groups": groups, "init": init}
    options |= {"gradients": gradients, "head_scale": head_scale}
    batch = toy.soup_batch(noise=1.0)
    for levels, weights, inner, want, weight in (
        (((A,), (B, C)), (1.0, 0.25), {}, 1 + 0.25 * 2, 0.25),
        (((A, B), (C,)), (1.0, 0.5), {A: 0.25, B: 0.75}, 0.25 + 0.75 * 2, 0.75),
    ):
        own = 1 if head_scale == "plain" else weight
        how = ("sum", "sum")
        train_step, state = toy.soup(levels, MODO, how, weights, inner, **options)
        after, _ = jax.jit(train_step)(state, batch)
        assert float(after.params["pair"]["value"]) / 1e-2 == pytest.approx(want, rel=1e-5)
        head = after.params[f"{B}_head"]["value"]
        np.testing.assert_allclose(100 * head, own * batch[B]["rows"][:, 0].mean(), atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.25, 4.0])
def test_a_loss_of_next_to_no_weight_is_divided_by_one(share):
    """As of a batch in which nothing was masked: no NaN, and no more than its own gradient."""

    def light(params, extras, batch, rng):
        losses, aux = toy.upper(params, extras, batch, rng)
        loss, weight = losses["f"]
        return {"f": (share * loss / weight, jnp.float32(share))}, aux

    phase = toy.phase("finetune")
    whole = toy.recipe([phase])
    upper = dataclasses.replace(whole.objectives[0], apply=light)
    r = dataclasses.replace(whole, objectives=(upper, whole.objectives[1]))
    opt = toy.sgd(r.combiner, 1.0)
    state = step.init_state(r, opt, seed=0)
    groups = group_of_parameters(state.params, r.groups)
    after, means = step.make_train_step(r, (phase,), opt, groups, 0)(state, toy.BATCH)
    assert float(means["train/skipped"][0]) == 0
    down = state.params["f_head"]["phi"] - after.params["f_head"]["phi"]
    slope = 2 * (0.25 - 0.5) + 2 * (0.25 - 3)
    assert float(down) == pytest.approx(min(share, 1) * slope, rel=1e-6)


def test_nan_in_a_level_of_weight_zero_is_not_seen():
    """Neither by the shared parameters nor by the level's weights, which keep their last finite
    values. The poison is kept from the head, whose plain gradient would end the step."""
    batch = toy.soup_batch(noise=1.0)
    poisoned = {**batch, C: {**batch[C], "rows": batch[C]["rows"].at[0, 1:].set(jnp.nan)}}
    poisoned[B] = {**batch[B], "rows": 2 * batch[B]["rows"]}
    for conflict in (MGDA, Conflict("modo", normalise="norm", threshold=0.0)):
        train_step, state = toy.soup(((A,), (B, C)), conflict, weights=(1.0, 0.0))
        train_step = jax.jit(train_step)
        state, _ = train_step(state, batch)
        one, two = train_step(state, batch)[0], train_step(state, poisoned)[0]
        jax.tree.map(np.testing.assert_array_equal, one.params["encoder"], two.params["encoder"])
        jax.tree.map(np.testing.assert_array_equal, level_of(two, (B, C)), level_of(state, (B, C)))


def test_nan_in_a_level_of_weight_zero_does_not_reach_its_heads():
    """Where heads have the weight of their level."""
    batch = toy.soup_batch(noise=1.0)
    poisoned = {**batch, C: {**batch[C], "rows": jnp.full_like(batch[C]["rows"], jnp.nan)}}
    levels, how = ((A,), (B, C)), ("sum", "sum")
    train_step, state = toy.soup(levels, MODO, how, (1.0, 0.0), head_scale="penalised")
    after, means = jax.jit(train_step)(state, poisoned)
    assert float(means["train/skipped"][0]) == 0
    for name in (B, C):
        np.testing.assert_array_equal(after.params[f"{name}_head"]["value"], 0)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after.params["encoder"]))


def test_a_loss_of_weight_zero_in_its_level_adds_nothing_even_if_not_finite():
    """Weights are exact numbers in phases, and traced ones in a loop over objectives."""
    grads = {"theta": jnp.array([jnp.nan, jnp.inf, 1.0])}
    for weight in (0, 0.0, jnp.float32(0)):
        np.testing.assert_array_equal(alike._weighted(grads, weight)["theta"], np.zeros(3))
    np.testing.assert_array_equal(alike._weighted(grads, 2)["theta"][2], 2)


def test_a_batch_depends_on_the_gradient_before_it_without_changing():
    """A norm is never negative, which the compiler does not know."""
    batch = {"audio": jnp.array([[3, -4]], jnp.int16), "ids": jnp.array([7], jnp.uint32)}
    same = _depend_on(jnp.float32(2.5), batch)
    jax.tree.map(np.testing.assert_array_equal, same, batch)
    assert jax.tree.map(lambda x: x.dtype, same) == jax.tree.map(lambda x: x.dtype, batch)
    other = _depend_on(jnp.float32(-1), batch)
    assert all(np.all(a != b) for a, b in zip(*map(jax.tree.leaves, (other, batch)), strict=True))


def test_a_step_that_is_not_finite_leaves_the_weights_alone():
    train_step, state = toy.soup(ALL, MODO)
    batch = toy.soup_batch(noise=1.0)
    train_step = jax.jit(train_step)
    state, _ = train_step(state, batch)
    batch[A]["rows"] = batch[A]["rows"].at[0, 0].set(jnp.nan)
    after, metrics = train_step(state, batch)
    assert float(metrics["train/skipped"][0]) == 1
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, state.opt_state)


@pytest.mark.parametrize("method", METHODS)
def test_one_program_whatever_the_step(compiled, method):
    """The state keeps structure, types and placement, so that it can be donated."""
    conflict = Conflict(method, normalise="norm", threshold=0.0, every=2)
    train_step, state = toy.soup(((A, B), (C,)), conflict)
    structure = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state)
    train_step = jax.jit(train_step, donate_argnums=0)
    batches = [toy.soup_batch(noise=1.0, seed=n) for n in range(3)]
    for batch in batches:
        state, _ = train_step(state, batch)
    assert compiled.count("jit(train_step)") <= 1
    assert train_step._cache_size() == 1
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state) == structure


def test_the_weights_are_in_the_checkpoint(tmp_path):
    train_step, state = toy.soup(((A, B), (C,)), Conflict("modo", threshold=0.0))
    state, _ = jax.jit(train_step)(state, toy.soup_batch(noise=1.0))
    folder = Checkpoints(tmp_path, keep=1)
    folder.save(1, state, state.weights, {})
    folder.close()
    again = Checkpoints(tmp_path, keep=1)
    restored = again.restore_newest(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    )
    again.close()
    jax.tree.map(np.testing.assert_array_equal, restored.state, state)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_on_a_mesh_the_same_step(method):
    """Rows over eight devices, parameters split over two of them, weights on each."""
    conflict = Conflict(method, rate=0.02)
    train_step, state = toy.soup(ALL, conflict)
    batch = toy.soup_batch(rows=16, noise=1.0)
    want, _ = jax.jit(train_step)(state, batch)
    mesh = make_mesh(4, 2)
    placed = state_sharding(state, mesh)
    kernel, lam = placed.params["encoder"]["blocks"]["kernel"], level_of(placed).lam
    assert not kernel.is_fully_replicated
    assert lam.is_fully_replicated
    step = jax.jit(train_step, out_shardings=(placed, None))
    got, _ = step(jax.device_put(state, placed), put_batch(batch, mesh))
    # sums of 16 rows in another order
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), got, want)


@pytest.mark.daily("modo")
@pytest.mark.parametrize("method", METHODS)
def test_over_micro_batches_the_same_step(method):
    """MoDo's halves are parted each."""
    conflict = Conflict(method, rate=0.02)
    batch = toy.soup_batch(rows=16, noise=1.0)
    (want, said), (got, same) = (
        jax.jit(train_step)(state, batch)
        for train_step, state in (toy.soup(ALL, conflict, accumulate=n) for n in (1, 4))
    )
    # sums of 16 rows in another order
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), got, want)
    loss = f"train/{A}/loss"
    np.testing.assert_allclose(same[loss], said[loss], rtol=1e-6)


class TestRefusals:
    def test_an_odd_number_of_rows(self):
        train_step, state = toy.soup(ALL, MODO)
        with pytest.raises(ValueError, match=rf"stream {A}: 3 rows cannot be split into 2 parts"):
            train_step(state, toy.soup_batch(rows=3))

    def test_one_backward_pass_over_a_dynamic_level(self):
        train_step, state = toy.soup(((A, B), (C,)), MODO, gradients="fused")
        with pytest.raises(ValueError, match=r"fused.*asr/a\+asr/b.*separate"):
            train_step(state, toy.soup_batch())

    def test_a_method_that_is_not_the_combiner_s(self):
        train_step, state = toy.soup(ALL, MODO, ("mgda",))
        with pytest.raises(ValueError, match="modo takes 2"):
            train_step(state, toy.soup_batch())
