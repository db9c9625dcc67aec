"""CTC and attention in one level: gradients, heads, the head that is scored."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax import recipes
from bljust_jax.bilevel.types import Extras
from bljust_jax.common import trees
from bljust_jax.common.errors import UserError
from bljust_jax.inference.decode_split import greedy_decoder
from tests.helpers import systems

KEY = jax.random.key(5)
BOTH = "ctc+attention"


@functools.cache
def bound():
    """(recipe, objective, parameters, extras, batch) without SpecAugment."""
    recipe = recipes.load("bljust")(systems.undisturbed("hybrid"), systems.FACTS)
    objective = recipe.objectives[0]
    params, frozen, stats = jax.jit(recipe.init)(jax.random.key(0))
    scale = dict.fromkeys(recipe.losses, 1.0)
    return recipe, objective, params, Extras(jnp.int32(0), frozen, stats, params, scale), None


def gradient(objective, scale=1.0):
    """(gradient of the sum of its losses' means, {loss: (sum, weight)})."""
    _, _, params, extras, _ = bound()
    extras = extras._replace(scale=dict.fromkeys(extras.scale, scale))

    def loss(params):
        losses, _ = objective.apply(params, extras, {"labelled": systems.make_batch()}, KEY)
        return sum(s / w for s, w in losses.values()), losses

    grads, losses = jax.jit(jax.grad(loss, has_aux=True))(params)
    return grads, losses


def test_encoder_gradient_is_the_weighted_sum_and_heads_have_their_own():
    """0.3 and 0.7 of the gradients of the parts alone, times the scale of the level."""
    _, objective, *_ = bound()
    assert objective.name == BOTH
    # dropout of the decoder draws from the last of three keys in both
    grads, losses = gradient(objective, scale=0.5)
    attention, own = gradient(objective.attention)
    ctc, theirs = gradient(dataclasses.replace(objective, ctc_weight=1.0))
    np.testing.assert_allclose(losses["attention"], own["attention"], rtol=1e-5)
    np.testing.assert_allclose(losses["ctc"], theirs["ctc"], rtol=1e-5)
    systems.assert_close_leaf_by_leaf(grads["attention_head"], attention["attention_head"], 1e-4)
    systems.assert_close_leaf_by_leaf(grads["ctc_head"], ctc["ctc_head"], 1e-5)
    expected = jax.tree.map(
        lambda a, b: 0.5 * (0.3 * a + 0.7 * b), ctc["encoder"], attention["encoder"]
    )
    systems.assert_close_leaf_by_leaf(grads["encoder"], expected, 1e-4)
    assert float(trees.norm(ctc["encoder"])) > 0


def test_both_losses_are_on_the_upper_level_of_every_phase_with_labels():
    recipe, *_ = bound()
    levels = {phase.name: phase.levels for phase in recipe.phases}
    assert levels["joint"] == (("ctc", "attention"), ("cpc",))
    assert levels["finetune"] == (("ctc", "attention"),)
    owners = {group.name: group.owners for group in recipe.groups}
    assert owners["attention_head"] == {"attention"}
    assert owners["ctc_head"] == {"ctc"}


def test_cost_is_one_pass_of_the_encoder_and_both_heads():
    _, objective, *_ = bound()
    own = frozenset(objective.losses)
    assert objective.cost(own, 2.0) == objective.ctc.cost(own, 2.0)
    parts = objective.ctc, objective.attention
    assert objective.head_cost(own, 2.0) == sum(part.head_cost(own, 2.0) for part in parts)


def test_attention_can_be_the_head_that_is_scored():
    recipe, _, params, extras, _ = bound()
    (task,) = recipe.tasks
    assert (task.head, task.translate, list(task.losses)) == ("ctc_head", None, ["ctc"])
    config = systems.config_for("hybrid")
    config.hybrid.decode = "attention"
    (task,) = recipes.load("bljust")(config, systems.FACTS).tasks
    assert (task.head, task.predict, task.name, task.measure) == ("attention_head", None, "", "wer")
    batch = systems.make_batch()
    found = jax.jit(greedy_decoder(task))((params, extras.stats), batch)
    assert found.shape[0] == 4
    assert np.all(np.asarray(found)[1] == -1), "a row without audio"


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"method": "mpl"}, "leave out the variant hybrid"), ({"share_forward": True}, "augmented")],
)
def test_what_goes_with_ctc_alone_is_refused(changes, said):
    config = systems.config_for("hybrid")
    config.update(changes)
    with pytest.raises(UserError, match=said):
        recipes.load("bljust")(config, systems.FACTS)
