"""The pass of BiRQ that computes labels, on an encoder that records its calls."""

import jax
import jax.numpy as jnp
import pytest

from bljust_jax.bilevel.types import Extras
from bljust_jax.objectives.birq import SelfLabels
from tests.helpers.batches import ToyEncoder


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("student", "own", False)),
        ({"label_dropout": True}, ("student", "own", True)),
        ({"teacher": True}, ("teacher", "teacher's", False)),
        ({"teacher": True, "label_dropout": True}, ("teacher", "teacher's", False)),
    ],
)
def test_labels_have_the_parameters_statistics_and_dropout_of_their_pass(settings, expected):
    passes = []

    def listen(params, x, lengths, *, stats, train, depth, **options):
        assert depth == 2
        passes.append((params, stats, train))
        return x, lengths, {}, {}

    labels = SelfLabels(layer=2, **settings)
    extras = Extras(0, {"teacher": ("teacher", "teacher's")}, "own", None, {})
    x, frames = jnp.ones((1, 4, 3)), jnp.array([4])
    labels.hidden(ToyEncoder(listen, listen), "student", extras, x, frames, jax.random.key(0))
    assert passes == [expected]
