"""HuBERT against a loop over frames: which frames count, which label each has, what is scored."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.bilevel.types import Extras
from bljust_jax.common.errors import UserError
from bljust_jax.models import encoders
from bljust_jax.objectives import hubert
from tests.helpers import systems

KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def system():
    """(objective, parameters, extras, batch)."""
    recipe = systems.build("hubert")
    objective = recipe.objectives[1]
    params, frozen, stats = jax.jit(recipe.init)(jax.random.key(0))
    extras = Extras(jnp.int32(0), frozen, stats, params, {"hubert": 1.0})
    batch = systems.make_batch()
    short = np.array(batch["frame_label_lengths"])
    short[3] -= 20  # labels that end before the audio
    return objective, params, extras, batch | {"frame_label_lengths": jnp.asarray(short)}


def apply(objective, params, extras, batch):
    return objective.apply(params, extras, {"unlabelled": batch}, KEY)


def by_loop(objective, params, extras, batch):
    """(sum of nats, weight, hits, masked frames, count of each class) frame by frame."""
    _, _, mask, encoded = objective.masking.encode(objective.encoder, params, extras, batch, KEY)
    head = params["hubert_head"]
    kernel, bias = (np.asarray(head["project"][k], np.float64) for k in ("kernel", "bias"))
    e = np.asarray(head["embeddings"], np.float64)
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    total = weight = hits = count = 0
    used = np.zeros(objective.classes)
    for row in range(len(mask)):
        for t in range(int(encoded.lengths[row])):
            at = int((t + 0.5) * 640 / 16000 * 50)
            if at >= batch["frame_label_lengths"][row]:
                continue
            label = int(batch["frame_labels"][row, at])
            a = np.asarray(encoded.output[row, t], np.float64) @ kernel + bias
            scores = e @ a / np.linalg.norm(a) / 0.1
            nats = np.log(np.exp(scores).sum()) - scores[label]
            own = 1 if mask[row, t] else objective.unmasked_weight
            total, weight = total + own * nats, weight + own
            if mask[row, t]:
                count, hits = count + 1, hits + (scores.argmax() == label)
                used[label] += 1
    return total, weight, hits, count, used


@pytest.mark.parametrize("unmasked", [0.0, 0.25])
def test_loss_and_metrics_are_those_of_a_loop(system, unmasked):
    objective, params, extras, batch = system
    objective = dataclasses.replace(objective, unmasked_weight=unmasked)
    losses, aux = apply(objective, params, extras, batch)
    total, weight, hits, count, used = by_loop(objective, params, extras, batch)
    assert count > 20
    np.testing.assert_allclose(losses["hubert"], (total, weight), rtol=1e-4)
    assert aux.metrics["hubert/accuracy"] == (hits, count)
    assert aux.metrics["hubert/majority"] == (used.max(), count)
    assert aux.metrics["hubert/masked_share"][0] == count


def test_the_label_of_a_frame_is_that_at_its_middle(system):
    """Of a frame of 40 ms from 80 t/2 ms on, at 50 and at 100 labels per second."""
    objective, *_ = system
    data = {
        "frame_labels": jnp.arange(20)[None, :] % 20,
        "frame_label_lengths": jnp.array([17]),
    }
    labels, known = objective.targets(data, 10)
    np.testing.assert_array_equal(labels[0], [1, 3, 5, 7, 9, 11, 13, 15, 17, 19])
    np.testing.assert_array_equal(known[0], [True] * 8 + [False] * 2)
    labels, known = dataclasses.replace(objective, label_rate=100.0).targets(data, 4)
    np.testing.assert_array_equal(labels[0], [2, 6, 10, 14])
    assert known.all()


def test_rows_without_labels_change_nothing(system):
    objective, params, extras, batch = system
    whole = apply(objective, params, extras, batch)[0]["hubert"]
    lengths = batch["frame_label_lengths"].at[0].set(0)
    less = apply(objective, params, extras, batch | {"frame_label_lengths": lengths})[0]["hubert"]
    others = jax.tree.map(lambda x: x[1:], batch)
    alone = apply(objective, params, extras, others)[0]["hubert"]
    np.testing.assert_allclose(less, alone, rtol=1e-5)
    assert less[1] < whole[1]


def test_without_labels_it_says_how_to_make_them():
    config = systems.config_for("hubert")
    config.data.frame_labels = ""
    encoder = encoders.load(config.encoder)(config)
    with pytest.raises(UserError, match=r"frame_labels is empty.*prepare --labels"):
        hubert.build(config, encoder)


def test_its_classes_are_those_that_data_are_checked_against(system):
    objective, *_ = system
    assert objective.frame_classes == (100, "config.hubert.classes")
