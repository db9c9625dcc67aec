"""The training step: gradients reach the right parameters, idle groups stay, one clock."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bljust_jax.bilevel import step
from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.levels import Grads, combine_levels
from bljust_jax.bilevel.multi_objective import Conflict
from bljust_jax.bilevel.optimizer import Optimizer, group_of_parameters, make_optimizer
from bljust_jax.bilevel.rng import row_keys, stream_key
from bljust_jax.bilevel.schedules import SHAPES, LearningRate, position
from bljust_jax.bilevel.shared_phases import PhaseTable
from bljust_jax.bilevel.types import Aux, Extras, Group, Recipe
from bljust_jax.checkpoint.manager import Checkpoints
from configs import defaults
from tests.helpers import toy


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", ["explore", "finetune"])
def test_idle_groups_keep_parameters_and_moments_bit_for_bit(name):
    """Law 5; -0.0 is the value that an added +0.0 would change."""
    joint, phase = toy.phase("joint", 3), toy.phase(name, 5)
    r, opt, groups, state = toy.start([joint, phase])
    state, _ = step.make_train_step(r, (joint,), opt, groups, seed=0)(state, toy.BATCH)
    idle, busy = ("f_head", "g_head") if name == "explore" else ("g_head", "f_head")
    negative_zero = jax.tree.map(lambda x: jnp.full_like(x, -0.0), state.params[idle])
    before = state._replace(params={**state.params, idle: negative_zero})
    after, _ = step.make_train_step(r, (phase,), opt, groups, seed=0)(before, toy.BATCH)
    assert bits(after.params[idle]) == bits(before.params[idle])
    moments = [s.opt_state[1].inner_states[idle] for s in (before, after)]
    assert any(np.asarray(m).any() for m in jax.tree.leaves(moments[0]))
    assert bits(moments[0]) == bits(moments[1])
    assert bits(after.params[busy]) != bits(before.params[busy])


def test_frozen_arrays_are_in_the_checkpoint_and_in_no_gradient(tmp_path):
    """Law 5, second half: all six fields of the state come back bit for bit."""
    phase = toy.phase("joint")
    r, opt, groups, state = toy.start([phase])
    after, _ = step.make_train_step(r, (phase,), opt, groups, seed=0)(state, toy.BATCH)
    assert bits(after.frozen) == bits(state.frozen)
    assert "codebook" not in str(jax.tree.structure(after.params))
    folder = Checkpoints(tmp_path, keep=1)
    folder.save(1, after, after.weights, {"note": [1.5]})
    folder.close()
    again = Checkpoints(tmp_path, keep=1)

    def abstract(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

    _, found, best, meta = again.restore_newest(jax.tree.map(abstract, after))
    again.close()
    assert bits(found) == bits(after)
    assert bits(best) == bits(after.weights)
    assert meta == {"note": [1.5]}


def test_a_phase_leaves_out_the_other_objective():
    """Exploration never evaluates f: its batch need not be there, and nothing is reported of it."""
    phase = toy.phase("explore")
    r, opt, groups, state = toy.start([phase])
    _, means = step.make_train_step(r, (phase,), opt, groups, seed=0)(
        state, {"unlabelled": toy.BATCH["unlabelled"]}
    )
    assert "train/g/loss" in means
    assert "train/f/loss" not in means
    assert not any(name.startswith("penalty/") for name in means)


def test_joint_metrics():
    phase = toy.phase("joint", gamma=lambda k: 0.25)
    r, opt, groups, state = toy.start([phase])
    _, means = step.make_train_step(r, (phase,), opt, groups, seed=0)(state, toy.BATCH)
    mean = {k: float(s) / float(w) for k, (s, w) in means.items()}
    assert mean["penalty/1"] == 0.25
    assert mean["train/f/loss"] == pytest.approx(0.25**2 + 2.75**2 + 9.0)
    assert mean["moo/norm/f"] == pytest.approx(np.hypot(2 * 0.25, 2 * -3.0))
    assert -1 <= mean["moo/cos/f|g"] <= 1
    assert mean["train/skipped"] == 0.0


@pytest.mark.daily("joint-0.5-0.3-*", "explore-0.5-0-plain")
@pytest.mark.parametrize("head_scale", ["plain", "penalised"])
@pytest.mark.parametrize(
    ("name", "top", "gamma"), [("joint", 1, 0), ("joint", 0.5, 0.3), ("explore", 0.5, 0)]
)
def test_fused_equals_separate(name, top, gamma, head_scale):
    """One backward pass over the sum, with scaled hidden states, takes the same step as two
    passes."""
    after = {}
    for gradients in ("separate", "fused"):
        phase = toy.phase(name, gamma=lambda k: gamma, top=top)
        options = {"gradients": gradients, "head_scale": head_scale}
        r = toy.recipe([phase], **options)
        r, opt, groups, state = toy.start([phase], toy.sgd(r.combiner, 0.01), **options)
        train_step = jax.jit(step.make_train_step(r, (phase,), opt, groups, seed=0))
        for _ in range(3):
            state, _ = train_step(state, toy.BATCH)
        after[gradients] = state.params
    # the same real-number computation in another order of float32 operations
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        after["separate"],
        after["fused"],
    )


def test_a_step_that_is_not_finite_changes_only_the_step_counter():
    phase = toy.phase("joint")
    r, opt, groups, state = toy.start([phase])
    train_step = jax.jit(step.make_train_step(r, (phase,), opt, groups, seed=0))
    state, _ = train_step(state, toy.BATCH)
    poisoned = {**toy.BATCH, "unlabelled": {"x": jnp.array([-1, 0], jnp.int32)}}
    after, means = train_step(state, poisoned)
    assert bits(after._replace(step=state.step)) == bits(state)
    assert int(after.step) == int(state.step) + 1
    assert float(means["train/skipped"][0]) == 1.0


@pytest.mark.parametrize("phases", [("explore",), ("explore", "finetune")])
def test_a_gradient_of_an_idle_group_skips_no_step(phases):
    """Neither where the program serves one phase nor where the group's activity is traced."""
    phases = tuple(toy.phase(name, 5) for name in phases)
    r, opt, groups, state = toy.start(phases)
    now = PhaseTable(r, phases).at(state.step)
    owned = {**jax.tree.map(jnp.zeros_like, state.params), "encoder": {"theta": None}}
    owned["f_head"] = {"phi": jnp.full_like(state.params["f_head"]["phi"], jnp.nan)}
    level = {"encoder": state.params["encoder"], "f_head": {"phi": None}, "g_head": {"psi": None}}
    grads = Grads(owned, (level,))
    after, _, _, ok = step.apply_gradients(
        *(opt, groups, now, state, grads, (jnp.float32(1),), {}, {})
    )
    assert bool(ok)
    assert bits(after.params["f_head"]) == bits(state.params["f_head"])
    assert bits(after.params["encoder"]) != bits(state.params["encoder"])


def test_ownership_on_the_raw_gradient():
    """Law 2 on the toy: an objective's gradient on a head that it does not own is exactly zero."""
    r, _, groups, state = toy.start([toy.phase("joint")])
    extras = Extras(0, {}, {}, {}, {"f": 1.0, "g": 1.0})
    for objective in r.objectives:

        def loss(p, objective=objective):
            losses, _ = objective.apply(p, extras, toy.BATCH, None)
            return sum(s / w for s, w in losses.values())

        grads = jax.grad(loss)(state.params)
        for group, grad in zip(*map(jax.tree.leaves, (groups, grads)), strict=True):
            if not group.owners & set(objective.losses):
                assert not np.any(np.asarray(grad))


def test_clock_counts_steps_in_phases_of_one_name():
    phases = tuple(
        toy.phase(name, n)
        for name, n in [("explore", 2), ("joint", 3), ("explore", 2), ("joint", 4)]
    )
    want = {"explore": [0, 1, 2, 2, 2, 2, 3, 4, 4], "joint": [0, 0, 0, 1, 2, 3, 3, 3, 4]}
    for name, positions in want.items():
        assert [int(position(phases, name, s)) for s in range(9)] == positions


@pytest.mark.parametrize("gradients", ["separate", "fused"])
def test_an_objective_counts_the_steps_of_its_losses(gradients):
    """The clock of a Gumbel temperature: not the global step, and one over all phases."""
    lengths = {"finetune": 3, "explore": 2, "joint": 2}
    phases = tuple(toy.phase(name, n) for name, n in [*lengths.items()] * 2)
    at_step = [phase for phase in phases for _ in range(phase.steps)]

    def counting(objective):
        def apply(params, extras, batch, rng):
            losses, aux = objective.apply(params, extras, batch, rng)
            return losses, Aux({f"{objective.name}/k": (extras.step, 1.0)}, aux.stats)

        return dataclasses.replace(objective, apply=apply)

    r, opt, groups, state = toy.start(phases, gradients=gradients)
    r = dataclasses.replace(r, objectives=tuple(map(counting, r.objectives)))
    run = jax.jit(step.make_train_step(r, phases[:3], opt, groups, seed=0))
    for at in range(len(at_step)):
        _, means = run(state._replace(step=jnp.int32(at)), toy.BATCH)
        found = {name[0]: int(k) for name, (k, w) in means.items() if name[1:] == "/k" and w > 0}
        want = {n: sum(n in phase.losses for phase in at_step[:at]) for n in at_step[at].losses}
        assert found == want


def test_streams_of_randomness_differ_by_name_step_and_row():
    streams = [(seed, name, n) for seed in (0, 1) for name in ("ctc", "cpc") for n in (0, 1)]
    keys = [stream_key(*stream) for stream in streams]
    data = {np.asarray(jax.random.key_data(k)).tobytes() for k in keys}
    assert len(data) == len(keys)
    ids = jnp.array([5, 9, 5], jnp.uint32)
    rows = np.asarray(jax.random.key_data(row_keys(keys[0], ids)))
    assert (rows[0] == rows[2]).all()
    assert (rows[0] != rows[1]).any()


def test_a_step_s_randomness_is_of_its_seed_its_step_and_the_objective():
    """Each objective reports a number that it drew: all differ, and a repeated step repeats it."""
    drawn = {}
    for seed in (0, 1):
        train_step, state = toy.soup((toy.SOUP,), Conflict("mgda"), ("sum",), seed=seed)
        train_step = jax.jit(train_step)
        for n in (0, 1, 0):
            _, means = train_step(state._replace(step=jnp.int32(n)), toy.soup_batch())
            found = [float(means[f"{name}/drawn"][0]) for name in toy.SOUP]
            assert drawn.setdefault((seed, n), found) == found
    assert len({x for found in drawn.values() for x in found}) == 4 * len(toy.SOUP)


def test_the_first_parameters_are_those_of_the_seed():
    def first(seed):
        r = toy.recipe([toy.phase("joint")])
        r = dataclasses.replace(r, init=lambda rng: (jax.random.uniform(rng), {}, {}))
        nothing = optax.with_extra_args_support(optax.identity())
        return float(step.init_state(r, Optimizer(nothing, nothing), seed).params)

    assert first(0) == first(0) != first(1)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("gradients", ["separate", "fused"])
def test_statistics_of_a_batch_are_in_the_state_after_its_step(gradients, accumulate):
    """Statistics of micro-batches are averaged; those that no objective returns stay."""

    def heard(params, extras, batch, rng):
        losses, aux = toy.upper(params, extras, batch, rng)
        return losses, aux._replace(stats={"encoder": jnp.mean(batch["labelled"]["x"] * 1.0)})

    phase = toy.phase("joint")
    whole = toy.recipe([phase])
    upper = dataclasses.replace(whole.objectives[0], apply=heard)
    options = {"objectives": (upper, whole.objectives[1]), "gradients": gradients}
    stats = {"encoder": jnp.float32(9), "features": {"mean": jnp.full(2, 7.0)}}
    r = dataclasses.replace(whole, **options, init=lambda rng: (*toy.init(rng)[:2], stats))
    opt = toy.sgd(r.combiner, 0.01)
    state = step.init_state(r, opt, seed=0)
    groups = group_of_parameters(state.params, r.groups)
    batch = {**toy.BATCH, "labelled": {"x": jnp.array([1, 4], jnp.int32)}}
    after, _ = step.make_train_step(r, (phase,), opt, groups, 0, accumulate)(state, batch)
    assert float(after.stats["encoder"]) == 2.5
    np.testing.assert_array_equal(after.stats["features"]["mean"], 7.0)
    assert float(after.weights.stats["encoder"]) == 2.5, "what recognises has them too"


def test_scale_gradient_selects_at_zero():
    def loss(x, s):
        return jnp.sum(jnp.log(scale_gradient(x, s)))

    x = jnp.array([0.0, 2.0])
    np.testing.assert_array_equal(jax.grad(loss)(x, 0.0), [0.0, 0.0])
    np.testing.assert_allclose(jax.grad(loss)(jnp.array([1.0, 2.0]), 0.5), [0.5, 0.25])


def test_separate_refuses_a_forward_shared_across_levels():
    def both(params, extras, batch, rng):
        return {"f": (jnp.float32(1), 1.0), "g": (jnp.float32(1), 1.0)}, Aux({}, {})

    phase = toy.phase("joint")
    r, opt, groups, state = toy.start([phase])
    shared = toy.Objective(("f", "g"), ("labelled",), both)
    r = Recipe(**{**vars(r), "objectives": (shared,)})
    with pytest.raises(ValueError, match="fused"):
        step.make_train_step(r, (phase,), opt, groups, seed=0)(state, toy.BATCH)


def is_adam(state):
    return isinstance(state, optax.ScaleByAdamState)


class TestOptim:
    def test_every_parameter_matches_one_group(self):
        params = {"encoder": {"kernel": jnp.zeros(2)}, "stray": jnp.zeros(1)}
        with pytest.raises(ValueError, match="stray"):
            group_of_parameters(params, toy.GROUPS)

    def test_clip_is_a_group_s_own(self):
        """A gradient above the clip in one group gives the step of one at the clip, however large
        it is, and leaves the step of another group, below its clip, untouched."""
        groups = tuple(Group(n, f"^{n}", frozenset({n}), clip=1.0, weight_decay=0.0) for n in "ab")
        tx = make_optimizer(combine_levels(), groups, eps=1.0)
        params = {"a": jnp.ones(2), "b": jnp.ones(2)}

        def step(scale):
            """Of a gradient of norm `scale` in group a."""
            grads = Grads(
                {"a": scale * jnp.array([0.6, 0.8]), "b": jnp.full(2, 0.1)},
                ({"a": None, "b": None},),
            )
            updates, _ = tx.update(
                grads,
                tx.init(params),
                params,
                level_weights=(jnp.float32(1),),
                lr={"a": jnp.float32(1), "b": jnp.float32(1)},
                active={"a": True, "b": True},
            )
            return updates

        at, above, below = step(1.0), step(1e6), step(0.5)
        np.testing.assert_allclose(above["a"], at["a"], rtol=1e-6)
        assert np.all(np.abs(below["a"]) < 0.9 * np.abs(at["a"]))
        np.testing.assert_array_equal(above["b"], at["b"])

    @pytest.mark.parametrize(("size", "norm"), [(1e3, 0.5), (1e-3, 5e-3)])
    def test_what_enters_adam_is_no_longer_than_the_clip(self, size, norm):
        """A first step of Adam is g / (|g| + eps), and -g where eps and the rate are alike and
        huge: what it moves by is then the gradient that came in. Two leaves share the norm."""
        group = Group("all", "", frozenset({"f"}), clip=0.5, weight_decay=0.0)
        tx = make_optimizer(combine_levels(), (group,), eps=1e8)
        params = {"a": jnp.ones(2), "b": jnp.ones(1)}
        owned = {"a": size * jnp.array([3.0, 0.0]), "b": size * jnp.array([-4.0])}
        updates, _ = tx.update(
            Grads(owned, ({"a": None, "b": None},)),
            tx.init(params),
            params,
            level_weights=(jnp.float32(1),),
            lr={"all": jnp.float32(1e8)},
            active={"all": True},
        )
        # float32 leaves 1 + 1e-6 of g / (|g| + 1e8)
        np.testing.assert_allclose(updates["a"], [-0.6 * norm, 0.0], rtol=1e-5)
        np.testing.assert_allclose(updates["b"], [0.8 * norm], rtol=1e-5)

    def test_moments_forget_at_their_defaults(self):
        """After one step from 0 they hold 1 - b1 = 0.1 of g and 1 - b2 = 0.02 of g^2."""
        group = Group("all", "", frozenset({"f"}), clip=1e9, weight_decay=0.0)
        tx = make_optimizer(combine_levels(), (group,))
        params = {"a": jnp.ones(2)}
        _, state = tx.update(
            Grads({"a": jnp.array([2.0, -3.0])}, ({"a": None},)),
            tx.init(params),
            params,
            level_weights=(jnp.float32(1),),
            lr={"all": jnp.float32(1)},
            active={"all": True},
        )
        (adam,) = (s for s in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(s))
        np.testing.assert_allclose(adam.mu["a"], [0.2, -0.3], rtol=1e-6)
        np.testing.assert_allclose(adam.nu["a"], [0.02 * 4, 0.02 * 9], rtol=1e-5)
        assert (defaults.base().optim.b1, defaults.base().optim.b2) == (0.9, 0.98)

    def test_decay_reaches_kernels_alone(self):
        groups = (Group("all", "", frozenset({"f"}), clip=1.0, weight_decay=0.5),)
        tx = make_optimizer(combine_levels(), groups)
        params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
        grads = Grads(jax.tree.map(jnp.zeros_like, params), ({"kernel": None, "bias": None},))
        updates, _ = tx.update(
            grads,
            tx.init(params),
            params,
            level_weights=(jnp.float32(1),),
            lr={"all": jnp.float32(0.1)},
            active={"all": True},
        )
        np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
        np.testing.assert_array_equal(updates["bias"], 0.0)

    @pytest.mark.parametrize("shape", sorted(SHAPES))
    def test_schedules_rise_to_their_peak_and_fall_as_they_say(self, shape):
        rate = LearningRate(shape, 0.5, 10, 110)
        values = np.array([float(rate(k)) for k in range(111)])
        np.testing.assert_allclose(values[:10], 0.05 * np.arange(1, 11), rtol=1e-6)
        half = {"constant": 0.5, "cosine": 0.25, "linear": 0.25, "hold": 0.5 * 0.05**0.1}[shape]
        end = {"constant": 0.5, "hold": 0.025}.get(shape, 0.0)
        np.testing.assert_allclose([values[60], values[110]], [half, end], atol=1e-7)
