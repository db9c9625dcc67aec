"""One forward pass for two losses: the same direction as two passes over the same audio."""

import jax
import numpy as np
import pytest

from bljust_jax import recipes
from bljust_jax.bilevel import step
from bljust_jax.bilevel.optimizer import group_of_parameters, make_optimizer
from bljust_jax.bilevel.types import Phase
from bljust_jax.common.errors import UserError
from tests.helpers import toy
from tests.helpers.systems import FACTS, assert_close_leaf_by_leaf, begin, config_for, make_batch


def shareable(share=True):
    config = config_for("bljust")
    config.update(gradients="fused" if share else "separate", share_forward=share)
    config.ctc.context = "causal"
    config.cpc.negatives = 0
    config.specaugment.update(freq_masks=0, time_masks=0)
    return config


def direction(config, batch):
    """The change of SGD with rate 1 in the joint phase at penalty 0.5, and the mean losses."""
    recipe = recipes.load("bljust")(config, FACTS)
    phase = next(p for p in recipe.phases if len(p.levels) > 1)
    phase = Phase(**{**vars(phase), "weights": lambda k: (1.0, 0.5)})
    optimizer = toy.sgd(recipe.combiner, 1.0)
    state = begin(recipe, optimizer)
    groups = group_of_parameters(state.params, recipe.groups)
    after, means = jax.jit(step.make_train_step(recipe, (phase,), optimizer, groups, 0))(
        state, batch
    )
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, after.params)
    return moved, {k: float(s) / float(w) for k, (s, w) in means.items() if "loss" in k}


@pytest.mark.slow
def test_one_pass_gives_the_direction_of_two():
    """Encoder and heads agree with two objectives of their own on the same batch: the same sum in
    another order of float32 additions."""
    data = make_batch(8)
    shared, losses = direction(shareable(), {"labelled": data})
    apart, others = direction(shareable(False), {"labelled": data, "unlabelled": data})
    assert losses == pytest.approx(others, rel=1e-5)
    assert_close_leaf_by_leaf(apart, shared, 2e-5)


def test_one_pass_costs_half_and_is_counted_once():
    recipe, apart = (recipes.load("bljust")(shareable(s), FACTS) for s in (True, False))
    (objective,) = recipe.objectives
    together = recipe.cost(frozenset(objective.losses), 3.0)
    two = sum(apart.cost(frozenset(o.losses), 3.0) for o in apart.objectives)
    assert together == pytest.approx(two / 2)
    assert objective.streams == ("labelled",)


@pytest.mark.slow
def test_a_phase_reads_only_its_own_losses():
    recipe = recipes.load("bljust")(shareable(), FACTS)
    optimizer = make_optimizer(recipe.combiner, recipe.groups)
    state = jax.eval_shape(lambda: step.init_state(recipe, optimizer, seed=0))
    groups = group_of_parameters(state.params, recipe.groups)
    computed = {}
    for phase in recipe.phases:
        train_step = step.make_train_step(recipe, (phase,), optimizer, groups, 0)
        _, means = jax.eval_shape(train_step, state, {"labelled": make_batch()})
        computed[phase.name] = {name.split("/")[0] for name in means} & {"ctc", "cpc"}
    assert computed == {"explore": {"cpc"}, "joint": {"ctc", "cpc"}, "finetune": {"ctc"}}


def test_an_epoch_of_exploration_is_one_of_the_audio_that_it_hears():
    config = shareable()
    config.phases.update(unit="epoch", explore=2, joint=3, finetune=1)
    facts = recipes.Facts({"labelled": 9}, steps_per_epoch={"labelled": 5, "unlabelled": 7})
    recipe = recipes.load("bljust")(config, facts)
    assert [p.steps for p in recipe.phases] == [10, 15, 5]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gradients": "separate"}, "fused"),
        ({"ctc.context": "full"}, "future"),
        ({"cpc.context": "chunked"}, "windows"),
        ({"specaugment.time_masks": 1}, "unmasked"),
        ({"data.unlabelled": "more.jsonl"}, "data.unlabelled"),
        ({"data.labelled_fraction": 0.5}, "labelled"),
    ],
)
def test_refused_with_the_reason_where_one_pass_cannot_serve(change, reason):
    config = shareable()
    config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=reason):
        recipes.load("bljust")(config, FACTS)
