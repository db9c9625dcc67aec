"""One program for several phases: which phases share one, and that the run is that of one program
per phase."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax import recipes
from bljust_jax.bilevel import step
from bljust_jax.bilevel.optimizer import group_of_parameters, make_optimizer
from bljust_jax.bilevel.shared_phases import PhaseTable, group_phases
from bljust_jax.bilevel.types import Aux
from tests.helpers import toy
from tests.helpers.systems import CONFIGS, FACTS, all_streams, begin, config_for


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def names(groups):
    return [[phase.name for phase in group] for group in groups]


# Grouping


@pytest.mark.parametrize(
    ("method", "want"),
    [
        ("bljust", [["explore", "joint", "finetune"]]),
        ("weighted_sum", [["explore", "joint", "finetune"]]),
        ("ptft", [["pretrain"], ["supervised"]]),
        ("supervised", [["supervised"]]),
        ("alternating", [["explore", "turn_ssl"], ["turn_ctc", "finetune"]]),
    ],
)
def test_phases_with_a_common_objective_share_a_program(method, want):
    config = config_for("bljust")
    config.method = method
    config.phases.explore_when = "every_epoch"
    recipe = recipes.load(config.recipe)(config, FACTS)
    assert names(group_phases(recipe)) == want


def test_phases_of_one_objective_with_other_losses_stay_apart():
    """The shared forward pass computes one, both or the other loss."""
    config = config_for("bljust")
    config.update(share_forward=True, gradients="fused")
    config.ctc.context = "causal"
    config.data.update(labelled_fraction=1.0, unlabelled="")
    config.specaugment.update(freq_masks=0, time_masks=0)
    recipe = recipes.load(config.recipe)(config, FACTS)
    assert names(group_phases(recipe)) == [["explore"], ["joint"], ["finetune"]]


@pytest.mark.parametrize(
    ("method", "want"),
    [
        ("joint", [["explore", "joint", "finetune"]]),
        ("two_stage", [["pretrain"], ["supervised"]]),
        ("vc", [["explore"], ["joint"], ["finetune"]]),
    ],
)
def test_dynamic_levels_have_programs_of_their_own(method, want):
    config = config_for("m2asr")
    config.method = method
    config.phases.explore = max(config.phases.explore, 1)
    assert names(group_phases(recipes.load(config.recipe)(config, FACTS))) == want


def test_another_weight_within_the_level_keeps_phases_apart():
    joint, finetune = toy.phase("joint"), toy.phase("finetune")
    weighed = dataclasses.replace(finetune, inner={"f": 0.5})
    assert names(group_phases(toy.recipe([joint, finetune]))) == [["joint", "finetune"]]
    assert names(group_phases(toy.recipe([joint, weighed]))) == [["joint"], ["finetune"]]


# Equality with one program per phase

STEPS = (("explore", 2), ("joint", 3), ("explore", 1), ("joint", 1), ("finetune", 2))


def noisy(name, apply):
    """The objective with a draw of its random key in its gradient and its metrics, and a statistic
    that counts its evaluations."""

    def drawing(params, extras, batch, rng):
        losses, aux = apply(params, extras, batch, rng)
        drawn = jax.random.uniform(rng)
        losses = {n: (s * (1 + drawn), w) for n, (s, w) in losses.items()}
        metrics = aux.metrics | {f"{name}/drawn": (drawn, 1.0)}
        return losses, Aux(metrics, {f"count {name}": extras.stats[f"count {name}"] + 1})

    return drawing


def system(gradients, head_scale):
    """(recipe, optimizer, groups, initial state)"""
    phases = [
        toy.phase(name, n, gamma=lambda k: 0.1 * k, lr=lambda k, n=n: 0.01 * (k + n))
        for name, n in STEPS
    ]
    base = toy.recipe(phases, gradients=gradients, head_scale=head_scale)
    objectives = tuple(
        dataclasses.replace(o, apply=noisy(o.name, o.apply)) for o in base.objectives
    )
    counts = {f"count {o.name}": jnp.int32(0) for o in objectives}
    recipe = dataclasses.replace(
        base, objectives=objectives, init=lambda rng: (*toy.init(rng)[:2], counts)
    )
    optimizer = make_optimizer(recipe.combiner, recipe.groups)
    state = step.init_state(recipe, optimizer, seed=0)
    return recipe, optimizer, group_of_parameters(state.params, recipe.groups), state


def run(recipe, optimizer, groups, state, tables, batch):
    """(states before each step and at the end, means of each step) with the program of each phase
    in `tables`."""
    program = {}
    for table in tables:
        made = jax.jit(step.make_train_step(recipe, table, optimizer, groups, 0))
        program |= {phase.name: made for phase in table}
    states, means = [state], []
    for phase in recipe.phases:
        for _ in range(phase.steps):
            state, found = program[phase.name](state, batch)
            states.append(state)
            means.append({k: (float(s), float(w)) for k, (s, w) in found.items()})
    return states, means


def logged(means):
    """The metrics with a mean."""
    return [{k: s / w for k, (s, w) in found.items() if w} for found in means]


@pytest.mark.daily("separate-plain", "fused-penalised")
@pytest.mark.parametrize("head_scale", ["plain", "penalised"])
@pytest.mark.parametrize("gradients", ["separate", "fused"])
def test_a_run_by_one_program_is_that_by_one_program_per_phase(gradients, head_scale):
    made = system(gradients, head_scale)
    recipe = made[0]
    (shared,) = group_phases(recipe)
    one, many = (run(*made, tables, toy.BATCH) for tables in ([shared], [(p,) for p in shared]))
    for a, b in zip(logged(one[1]), logged(many[1]), strict=True):
        assert a.keys() == b.keys()
        assert {k: v for k, v in a.items() if "drawn" in k} == {
            k: v for k, v in b.items() if "drawn" in k
        }
        for name, value in a.items():
            np.testing.assert_allclose(value, b[name], rtol=1e-5, atol=1e-6, err_msg=name)
    for a, b in zip(one[0], many[0], strict=True):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    assert {k: int(v) for k, v in one[0][-1].stats.items()} == {"count f": 6, "count g": 7}


@pytest.mark.parametrize("gradients", ["separate", "fused"])
def test_an_idle_group_keeps_its_bits_through_a_shared_program(gradients):
    """Law 5 with a traced phase, before and after the group has moments."""
    recipe, optimizer, groups, state = system(gradients, "plain")
    negative_zero = jax.tree.map(lambda x: jnp.full_like(x, -0.0), state.params["f_head"])
    state = state._replace(params={**state.params, "f_head": negative_zero})
    states, _ = run(recipe, optimizer, groups, state, [group_phases(recipe)[0]], toy.BATCH)
    at = 0
    for phase in recipe.phases:
        for before, after in zip(states[at : at + phase.steps], states[at + 1 :], strict=False):
            for group in recipe.groups:
                own = [
                    (s.params[group.name], s.opt_state[1].inner_states[group.name])
                    for s in (before, after)
                ]
                idle = group.name not in recipe.active_groups(phase)
                assert (bits(own[0]) == bits(own[1])) == idle, (phase.name, group.name)
        at += phase.steps


@pytest.mark.parametrize("gradients", ["separate", "fused"])
def test_an_objective_out_of_force_reads_no_batch_and_is_not_computed(gradients):
    """Its batch may hold anything; its statistics stay; its metrics have weight 0."""
    recipe, optimizer, groups, state = system(gradients, "plain")
    train_step = jax.jit(
        step.make_train_step(recipe, group_phases(recipe)[0], optimizer, groups, 0)
    )
    poisoned = {**toy.BATCH, "unlabelled": {"x": jnp.array([-1, 0], jnp.int32)}}
    finetune = state._replace(step=jnp.int32(sum(n for _, n in STEPS) - 1))
    (one, means), (other, same) = (train_step(finetune, b) for b in (toy.BATCH, poisoned))
    assert bits(one) == bits(other)
    assert bits(means) == bits(same)
    assert int(one.stats["count g"]) == 0
    for name in ("train/g/loss", "g/drawn", "lr/g_head", "penalty/1"):
        assert float(means[name][1]) == 0.0, name
    joint = state._replace(step=jnp.int32(3))
    _, means = train_step(joint, poisoned)
    assert float(means["train/skipped"][0]) == 1.0, "in force, it is read"


def test_no_batch_decides_which_objectives_are_computed():
    """One conditional per objective, and none that depends on the batch."""
    recipe, optimizer, groups, state = system("separate", "plain")
    train_step = step.make_train_step(recipe, group_phases(recipe)[0], optimizer, groups, 0)
    jaxpr = jax.make_jaxpr(train_step)(state, toy.BATCH).jaxpr
    reading = set(jaxpr.invars[len(jax.tree.leaves(state)) :])
    predicates = []
    for equation in jaxpr.eqns:
        inputs = [x for x in equation.invars if isinstance(x, jax.extend.core.Var)]
        if equation.primitive.name == "cond":
            predicates.append(inputs[0] in reading)
        if reading & set(inputs):
            reading |= set(equation.outvars)
    assert predicates == [False, False]


def test_the_levels_of_a_shared_program_are_sets_of_losses_that_stay_together():
    def phase(name, *levels):
        return dataclasses.replace(toy.phase("finetune"), name=name, levels=levels)

    first = phase("one", ("a", "b"), ("c",))
    second = phase("two", ("c",), ("a", "b"))
    third = phase("three", ("a",), ("b",))
    base = toy.recipe([])
    assert PhaseTable(base, (first, second)).levels == (("a", "b"), ("c",))
    assert PhaseTable(base, (first, third)).levels == (("a",), ("b",), ("c",))
    assert PhaseTable(base, (third,)).levels == third.levels


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_system_trains_alike_by_shared_programs(name):
    """Two steps of each phase: parameters within the rounding of two programs, the same metrics,
    draws and idle groups."""
    config = config_for(name)
    whole = recipes.load(config.recipe)(config, FACTS)
    short = tuple(dataclasses.replace(p, steps=2) for p in whole.phases)
    recipe = dataclasses.replace(whole, phases=short)
    tables = group_phases(recipe)
    if all(len(table) == 1 for table in tables):
        assert name in ("birq", "m2asr", "m2asr_linear"), "the others share"
        return
    # a larger rate lets the rounding of the first steps grow in those that follow
    optimizer = toy.sgd(recipe.combiner, 2e-3)
    state = begin(recipe, optimizer)
    groups = group_of_parameters(state.params, recipe.groups)
    made = recipe, optimizer, groups, state
    apart = [(phase,) for table in tables for phase in table]
    one, many = (run(*made, kind, all_streams(recipe, 4)) for kind in (tables, apart))
    for a, b in zip(logged(one[1]), logged(many[1]), strict=True):
        assert a.keys() == b.keys()
        for metric, value in a.items():
            np.testing.assert_allclose(value, b[metric], rtol=1e-3, atol=1e-4, err_msg=metric)
    moved = [
        jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), s[0][-1].params, state.params)
        for s in (one, many)
    ]
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(moved[0]))
    for x, y in zip(*map(jax.tree.leaves, moved), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-3 * largest)
