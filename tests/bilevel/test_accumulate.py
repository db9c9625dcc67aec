"""A step over micro-batches equals the step of the whole batch, in less memory."""

import functools

import jax
import numpy as np
import pytest

from bljust_jax.bilevel import step
from bljust_jax.bilevel.optimizer import group_of_parameters
from tests.helpers import toy
from tests.helpers.systems import (
    CONFIGS,
    all_streams,
    assert_close_leaf_by_leaf,
    begin,
    one_phase,
    undisturbed,
)

# Its batch norm has the moments of a part, as everywhere.
OF_ONE_BATCH = {"parakeet"}


@functools.cache
def run(name, accumulate, phase="joint", **options):
    """(what a step of SGD of rate 1 took from the parameters, the mean of each metric, bytes of
    temporaries) of a phase, by default the first of several levels."""
    config = undisturbed(name, **options)
    if "wav2vec2" in config:
        config.wav2vec2.update(diversity=0.0, feature_penalty=0.0)  # means over a part
    if "birq" in config:
        config.birq.label_entropy = 0.0  # of the mean label of a part
    recipe, phase = one_phase(config, phase)
    optimizer = toy.sgd(recipe.combiner, 1.0)
    state = begin(recipe, optimizer)
    groups = group_of_parameters(state.params, recipe.groups)
    train_step = step.make_train_step(recipe, (phase,), optimizer, groups, 0, accumulate)
    batch = all_streams(recipe, 8)
    program = jax.jit(train_step).lower(state, batch).compile()
    after, means = program(state, batch)
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, after.params)
    means = {k: float(s) / float(w) for k, (s, w) in means.items() if float(w)}
    return moved, means, program.memory_analysis().temp_size_in_bytes


def assert_same(name, parts, **options):
    """Sums of float32 in another order; rows of unequal length, one of them empty."""
    moved, means, memory = run(name, 1, **options)
    others, same, less = run(name, parts, **options)
    for metric, value in means.items():
        if metric.endswith("/loss"):
            assert same[metric] == pytest.approx(value, rel=1e-5)
    assert_close_leaf_by_leaf(moved, others, 1e-5)
    assert less < 0.8 * memory


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CONFIGS if n not in OF_ONE_BATCH])
def test_two_parts_give_the_step_of_the_whole(name):
    assert_same(name, 2)


def test_so_they_do_in_a_phase_of_one_level():
    assert_same("bljust", 2, phase="finetune")


@pytest.mark.slow
def test_so_they_do_in_one_backward_pass():
    assert_same("bljust", 2, gradients="fused")


def test_rows_that_cannot_be_parted_are_named():
    with pytest.raises(ValueError, match=r"8 rows cannot be split into 3 parts.*accumulate"):
        run("bljust", 3)
