"""The loop over objectives that are alike takes the step of one pass after another."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax import recipes
from bljust_jax.bilevel import step
from bljust_jax.bilevel.alike import group_alike
from bljust_jax.bilevel.multi_objective import Conflict
from bljust_jax.bilevel.optimizer import group_of_parameters
from bljust_jax.bilevel.shared_phases import PhaseTable
from bljust_jax.bilevel.types import TrainState
from bljust_jax.common import trees
from bljust_jax.objectives.cross_entropy import CrossEntropy
from bljust_jax.objectives.ctc import Ctc
from tests.helpers import toy
from tests.helpers.systems import FACTS, all_streams, begin, config_for

A, B, C = toy.SOUP
SAME = ("drawn",) * 3
INNER = {A: 0.25, B: 0.75, C: 0.0}
CASES = {
    "mgda": ((toy.SOUP,), Conflict("mgda"), (), {}),
    "modo": ((toy.SOUP,), Conflict("modo", rate=0.02), (), {}),
    "two of a level": (((A, B), (C,)), Conflict("modo", rate=0.02), (), {}),
    "summed": ((toy.SOUP,), Conflict("modo"), ("sum",), {}),
    "weighed": ((toy.SOUP,), Conflict("modo"), ("sum",), INNER),
}


def close(one, other, atol=2e-6):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=atol), one, other)


@pytest.mark.daily("mgda-1", "two of a level-2", "weighed-2")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_the_loop_takes_the_same_step(case, accumulate):
    """Parameters, level weights, metrics; drawn numbers are those of each objective's own key."""
    levels, conflict, combine, inner = CASES[case]
    batch = toy.soup_batch(rows=8, noise=1.0)
    weights = (1.0, 0.5)[: len(levels)]
    results = []
    for kinds in (SAME, (None,) * 3):
        options = {"inner": inner, "accumulate": accumulate, "kinds": kinds}
        train_step, state = toy.soup(levels, conflict, combine, weights, **options)
        train_step = jax.jit(train_step)
        state, _ = train_step(state, batch)
        results.append(train_step(state, batch))
    close(*results)
    state, metrics = results[0]
    assert float(metrics["train/skipped"][0]) == 0
    assert len({float(metrics[f"{name}/drawn"][0]) for name in toy.SOUP}) == 3


@pytest.mark.parametrize("case", CASES)
def test_alike_objectives_are_traced_once(monkeypatch, case):
    levels, conflict, combine, inner = CASES[case]
    traced, drawn_to = [], toy.drawn_to

    def counted(n, *args):
        traced.append(n)
        return drawn_to(n, *args)

    monkeypatch.setattr(toy, "drawn_to", counted)
    train_step, state = toy.soup(levels, conflict, combine, inner=inner, kinds=SAME)
    jax.eval_shape(train_step, state, toy.soup_batch())
    assert traced == ([0, 2] if case == "two of a level" else [0])


def test_a_gradient_of_weight_zero_is_not_seen():
    """Neither NaN nor the value, as without the loop."""
    inner = {A: 0.25, B: 0.75, C: 0.0}
    options = {"inner": inner, "kinds": SAME}
    train_step, state = toy.soup((toy.SOUP,), Conflict("modo"), ("sum",), (1.0,), **options)
    batch, rows = toy.soup_batch(noise=1.0), toy.soup_batch()[C]["rows"]
    want, _ = jax.jit(train_step)(state, batch)
    batch[C] = {**batch[C], "rows": rows.at[0, 1:].set(jnp.nan)}
    got, _ = jax.jit(train_step)(state, batch)
    jax.tree.map(np.testing.assert_array_equal, got.params["encoder"], want.params["encoder"])


@pytest.mark.slow
def test_recognition_and_translation_in_loops(monkeypatch):
    """M2ASR with two tasks of each kind, with dropout, augmentation and MoDo's halves: what SGD
    subtracts from the parameters, and each metric."""
    config = config_for("m2asr", dropout=0.1)
    config.method, config.decoder.dropout = "vc", 0.1
    results = []
    for looped in (True, False):
        if not looped:
            for kind in (Ctc, CrossEntropy):
                monkeypatch.setattr(kind, "kind", None)
        recipe = recipes.load(config.recipe)(config, FACTS)
        phase = next(p for p in recipe.phases if p.name == "joint")
        optimizer = toy.sgd(recipe.combiner, 1.0)
        state, batch = begin(recipe, optimizer), all_streams(recipe)
        groups = group_of_parameters(state.params, recipe.groups)
        table = PhaseTable(recipe, (phase,))
        owners = jax.tree.map(lambda g: g.owners, groups)
        counts = [len(group) for group in group_alike(table, owners, state, batch)]
        assert counts == ([2, 2, 1] if looped else [1] * 5)
        train_step = step.make_train_step(recipe, (phase,), optimizer, groups, 0)
        after, metrics = jax.jit(train_step)(state, batch)
        moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, after.params)
        results.append((moved, metrics))
    (one, metrics), (other, same) = results
    for name, part in one.items():
        apart = jax.tree.map(np.subtract, part, other[name])
        assert float(trees.norm(apart)) <= 1e-6 * float(trees.norm(part)), name
    close(metrics, same, atol=1e-5)


def groups(levels, combine, kinds=SAME, batch=None, heads=None, phases=1, shared_head=False):
    """Names in each group of `group_alike`."""
    phase = dataclasses.replace(
        toy.phase("joint"), levels=levels, combine=combine, weights=lambda k: (1.0,) * len(levels)
    )
    first = dataclasses.replace(phase, name="first", levels=((A, B),), combine=("sum",))
    objectives = tuple(
        toy.Objective((name,), (name,), functools.partial(toy.drawn_to, n), kinds[n])
        for n, name in enumerate(toy.SOUP)
    )
    recipe = dataclasses.replace(
        toy.recipe((first, phase)[2 - phases :]), objectives=objectives, groups=()
    )
    params = {"encoder": {}} | {f"{n}_head": {"value": jnp.zeros(())} for n in toy.SOUP}
    params |= heads or {}
    owners = {f"{n}_head": {"value": frozenset({n})} for n in toy.SOUP}
    if shared_head:
        owners[f"{A}_head"] = {"value": frozenset({A, B})}
    state = TrainState(jnp.int32(0), params, {}, params, {}, {})
    table = PhaseTable(recipe, (phase,))
    made = group_alike(table, owners, state, batch or toy.soup_batch())
    return [[o.name for o in group] for group in made]


class TestGroups:
    def test_of_one_kind_and_level(self):
        assert groups((toy.SOUP,), ("mgda",)) == [[A, B, C]]
        assert groups(((A, C), (B,)), ("mgda", "sum")) == [[A, C], [B]]

    def test_two_of_a_summed_level_are_apart(self):
        """Their cosine is logged."""
        assert groups(((A, B), (C,)), ("sum", "sum")) == [[A], [B], [C]]
        assert groups((toy.SOUP,), ("sum",)) == [[A, B, C]]

    def test_kinds(self):
        assert groups((toy.SOUP,), ("mgda",), ("x", "y", "x")) == [[A, C], [B]]
        assert groups((toy.SOUP,), ("mgda",), ("x", None, None)) == [[A], [B], [C]]

    def test_shapes(self):
        head = {f"{A}_head": {"value": jnp.zeros(2)}}
        assert groups((toy.SOUP,), ("mgda",), heads=head) == [[A], [B, C]]
        batch = toy.soup_batch() | {B: toy.soup_batch(rows=6)[B]}
        assert groups((toy.SOUP,), ("mgda",), batch=batch) == [[A, C], [B]]

    def test_other_phases(self):
        """Their clocks differ."""
        assert groups((toy.SOUP,), ("mgda",), phases=2) == [[A, B], [C]]

    def test_a_head_of_two_losses(self):
        assert groups((toy.SOUP,), ("mgda",), shared_head=True) == [[A], [B, C]]
