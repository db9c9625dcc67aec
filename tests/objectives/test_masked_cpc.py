"""Masked CPC against a loop over frames; its targets on encoders of either kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.bilevel.rng import row_keys
from bljust_jax.bilevel.types import Extras
from bljust_jax.objectives.wav2vec2 import draw_negatives
from tests.helpers import systems

KEY = jax.random.key(3)


def bound(system):
    """(objective, parameters, extras, batch)."""
    recipe = systems.build(system)
    objective = recipe.objectives[1]
    params, frozen, stats = jax.jit(recipe.init)(jax.random.key(0))
    extras = Extras(jnp.int32(0), frozen, stats, params, {"masked_cpc": 1.0})
    return objective, params, extras, systems.make_batch()


def test_loss_and_accuracy_are_those_of_a_loop():
    objective, params, extras, batch = bound("masked_cpc")
    losses, aux = objective.apply(params, extras, {"unlabelled": batch}, KEY)
    pass_rng, negatives_rng = jax.random.split(KEY)
    passed = objective.masking.encode(objective.encoder, params, extras, batch, pass_rng)
    negatives = draw_negatives(row_keys(negatives_rng, batch["ids"]), passed.mask, 100)
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), params["masked_cpc_head"])

    def unit(x, part):
        x = x @ head[part]["kernel"] + head[part]["bias"]
        return x / np.linalg.norm(x)

    nats, hits, count = 0.0, 0, 0
    x, stack = np.asarray(passed.x, np.float64), objective.masking.stack
    for row, length in enumerate(np.asarray(passed.frames)):
        own = np.where(np.arange(x.shape[1])[:, None] < length, x[row], 0)
        own = np.pad(own, ((0, -len(own) % stack), (0, 0))).reshape(-1, stack * own.shape[1])
        for t in np.flatnonzero(np.asarray(passed.mask)[row]):
            p = unit(np.asarray(passed.encoded.output, np.float64)[row, t], "predict")
            places = [t, *np.asarray(negatives)[row, t]]
            scores = np.array([p @ unit(own[j], "target") for j in places]) / 0.1
            nats += np.log(np.exp(scores).sum()) - scores[0]
            hits += scores[0] > scores[1:].max()
            count += 1
    assert count > 10
    np.testing.assert_allclose(losses["masked_cpc"], (nats, count), rtol=1e-4)
    np.testing.assert_allclose(aux.metrics["masked_cpc/accuracy"], (hits, count))


@pytest.mark.slow
def test_an_encoder_that_masks_itself_gives_its_latents():
    """Before the mask: another mask changes no target."""
    objective, params, extras, batch = bound("masked_cpc_wav2vec2")
    assert objective.masking.stack == 0
    one, other = (
        objective.masking.encode(objective.encoder, params, extras, batch, jax.random.key(k))
        for k in (0, 1)
    )
    assert np.any(np.asarray(one.mask) != np.asarray(other.mask))
    np.testing.assert_array_equal(objective.targets(one), objective.targets(other))
    assert objective.targets(one).shape[-1] == objective.input_dim
