"""`config.freeze`: parts of the encoder keep their initial values bit for bit."""

import re

import jax
import numpy as np
import pytest

from bljust_jax import recipes
from bljust_jax.bilevel import step
from bljust_jax.bilevel.optimizer import make_optimizer
from bljust_jax.common import trees
from bljust_jax.common.errors import UserError
from bljust_jax.train import system
from tests.helpers.systems import FACTS, begin, config_for, make_batch


def build(*parts, gradients="separate"):
    config = config_for("bljust")
    config.update(freeze=parts, gradients=gradients)
    return recipes.load(config.recipe)(config, FACTS)


@pytest.mark.slow
@pytest.mark.parametrize("gradients", ["separate", "fused"])
def test_a_frozen_part_does_not_move_and_the_rest_does(gradients):
    recipe = build("frontend", "blocks/ff2", gradients=gradients)
    optimizer = make_optimizer(recipe.combiner, recipe.groups)
    state = begin(recipe, optimizer)
    groups = system.assign_groups(recipe, state.params)
    phase = next(p for p in recipe.phases if p.name == "finetune")
    train_step = jax.jit(step.make_train_step(recipe, (phase,), optimizer, groups, 0))
    after, _ = train_step(state, {"labelled": make_batch()})
    same = jax.tree.map(
        lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), state.params, after.params
    )
    assert all(jax.tree.leaves([same["encoder"]["frontend"], same["encoder"]["blocks"]["ff2"]]))
    assert not any(jax.tree.leaves(same["encoder"]["blocks"]["ff1"]))


@pytest.mark.parametrize("part", ["feature_extractor", "front", "front("])
def test_a_part_that_is_not_there_is_refused(part):
    """Beside one that is there, too."""
    recipe = build("frontend", part)
    params, _, _ = jax.eval_shape(recipe.init, jax.random.key(0))
    with pytest.raises(UserError, match=rf"config\.freeze: group frozen {re.escape(part)}: no"):
        system.assign_groups(recipe, params)


def test_what_is_frozen_has_no_moments():
    recipe = build("frontend")
    optimizer = make_optimizer(recipe.combiner, recipe.groups)
    state = jax.eval_shape(lambda: step.init_state(recipe, optimizer, 0))
    paths = [path for path, _ in trees.named_leaves(state.opt_state)]
    assert any("encoder/blocks" in path for path in paths)
    assert not any("encoder/frontend" in path for path in paths)
