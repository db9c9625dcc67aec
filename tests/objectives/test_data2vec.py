"""data2vec: targets against numpy, the teacher's average in closed form, no gradient to it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax import objectives, recipes
from bljust_jax.bilevel import step
from bljust_jax.bilevel.optimizer import group_of_parameters
from bljust_jax.bilevel.types import Extras
from bljust_jax.common import trees
from bljust_jax.common.errors import UserError
from bljust_jax.models import encoders
from bljust_jax.objectives import data2vec
from tests.helpers import systems, toy

KEY = jax.random.key(5)


@functools.cache
def system():
    """(objective, parameters, extras with a teacher that differs, batch)."""
    recipe = systems.build("data2vec")
    objective = recipe.objectives[1]
    params, frozen, stats = jax.jit(recipe.init)(jax.random.key(0))
    other, _, _ = jax.jit(recipe.init)(jax.random.key(1))
    frozen = frozen | {"data2vec": other["encoder"]}
    extras = Extras(jnp.int32(0), frozen, stats, params, {"data2vec": 1.0})
    return objective, params, extras, systems.make_batch()


def test_targets_and_loss_are_those_of_a_loop():
    objective, params, extras, batch = system()
    objective = dataclasses.replace(objective, top=2)
    losses, aux = objective.apply(params, extras, {"unlabelled": batch}, KEY)
    passed = objective.masking.encode(objective.encoder, params, extras, batch, KEY)
    teacher = {"encoder": extras.frozen["data2vec"]}
    options = {"context": "full", "input_mask": None, "train": False}
    targets = 0
    for depth in (1, 2):
        blocks, lengths, _, _ = objective.encoder.encode(
            teacher, extras.stats, passed.x, passed.frames, depth=depth, **options
        )
        normal = np.zeros(blocks.shape)
        for row, length in enumerate(np.asarray(lengths)):
            own = np.asarray(blocks[row, :length], np.float64)
            if length:
                normal[row, :length] = (own - own.mean(0)) / np.sqrt(own.var(0) + 1e-5)
        targets = targets + normal / 2
    np.testing.assert_allclose(objective.targets(extras, passed), targets, atol=2e-4)
    head = jax.tree.map(np.asarray, params["data2vec_head"])
    predicted = np.asarray(passed.encoded.output) @ head["kernel"] + head["bias"]
    mask = np.asarray(passed.mask)
    errors = np.square(predicted - targets).mean(-1)[mask]
    np.testing.assert_allclose(losses["data2vec"], (errors.sum(), mask.sum()), rtol=1e-3)
    for name, values in (("target", targets), ("prediction", predicted)):
        std, weight = aux.metrics[f"data2vec/{name}_std"]
        np.testing.assert_allclose(std, values[mask].std(0).mean(), rtol=1e-3)
        assert weight == 1


@pytest.mark.parametrize(
    ("beta", "expected"), [(0.0, [0.0, 0.01, 4.0]), (0.5, [0.0, 0.01, 1.75]), (2.0, [0, 0.0025, 1])]
)
def test_the_error_is_squared_up_to_beta_and_linear_after(beta, expected):
    d = jnp.array([0.0, -0.1, 2.0])[None, None, :]
    np.testing.assert_allclose(data2vec.penalty(d, beta)[0, 0], expected, rtol=1e-6)


def test_no_gradient_reaches_the_teacher():
    objective, params, extras, batch = system()

    def loss(params, frozen):
        given = extras._replace(frozen=frozen)
        return objective.apply(params, given, {"unlabelled": batch}, KEY)[0]["data2vec"][0]

    own, teacher = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, extras.frozen)
    assert float(trees.norm(own)) > 0
    assert not any(np.any(x) for x in jax.tree.leaves(teacher))


def test_the_decay_rises_linearly_and_then_stays():
    objective, *_ = system()
    objective = dataclasses.replace(objective, tau_start=0.5, tau_end=0.9, tau_steps=4)
    found = [float(objective.decay(k)) for k in (0, 1, 4, 9)]
    np.testing.assert_allclose(found, [0.5, 0.6, 0.9, 0.9], rtol=1e-6)


# The teacher in a training step


@functools.cache
def stepped():
    """(recipe, first state, step) whose two phases share a program: explore, then finetune, in
    which only CTC is active. `batch["unlabelled"]` may be broken."""
    config = systems.config_for("data2vec")
    config.data2vec.update(tau_start=0.5, tau_end=0.9, tau_steps=4)
    recipe = recipes.load(config.recipe)(config, systems.FACTS)
    named = {p.name: p for p in recipe.phases}
    phases = tuple(dataclasses.replace(named[n], steps=3) for n in ("explore", "joint", "finetune"))
    recipe = dataclasses.replace(recipe, phases=phases)
    optimizer = toy.sgd(recipe.combiner, 0.05)
    state = systems.begin(recipe, optimizer)
    groups = group_of_parameters(state.params, recipe.groups)
    return state, jax.jit(step.make_train_step(recipe, phases, optimizer, groups, 0))


def encoder_of(state):
    return jax.tree.map(np.asarray, state.params["encoder"])


def teacher_of(state):
    return jax.tree.map(np.asarray, state.frozen["data2vec"])


def test_the_teacher_is_the_average_of_the_encoders_before_each_step_of_its_loss():
    """t_0 = p_0, t_k = d_k t_(k-1) + (1 - d_k) p_k; bit-unchanged where its loss is not active."""
    state, take = stepped()
    assert trees.digest(teacher_of(state)) == trees.digest(encoder_of(state))
    expected = encoder_of(state)
    zeros = jax.tree.map(jnp.zeros_like, state.frozen["data2vec"])  # as if params were replaced
    state = state._replace(frozen=state.frozen | {"data2vec": zeros})
    for k in range(6):  # explore and joint
        if k:
            d = 0.5 + 0.4 * min(k / 4, 1)
            expected = jax.tree.map(
                lambda t, p, d=d: d * t + (1 - d) * p, expected, encoder_of(state)
            )
        state, _ = take(state, systems.two_streams())
        for a, b in zip(*map(jax.tree.leaves, (teacher_of(state), expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    kept = teacher_of(state)
    for _ in range(2):  # finetune
        before = encoder_of(state)
        state, _ = take(state, systems.two_streams())
        assert trees.digest(encoder_of(state)) != trees.digest(before)
        assert trees.digest(teacher_of(state)) == trees.digest(kept)


def test_a_step_that_is_not_finite_leaves_the_teacher():
    state, take = stepped()
    state, _ = take(state, systems.two_streams())
    broken = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), state.params["data2vec_head"])
    state = state._replace(params=state.params | {"data2vec_head": broken})
    after, means = take(state, systems.two_streams())
    assert means["train/skipped"][0] == 1
    assert trees.digest(teacher_of(after)) == trees.digest(teacher_of(state))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data2vec.top": 3}, r"config\.data2vec\.top=3 must be 1 \.\. 2, or 0"),
        ({"model.norm": "batch"}, r"running statistics.*config\.model\.norm='layer'"),
    ],
)
def test_what_it_cannot_train_is_refused(changes, said):
    config = systems.config_for("data2vec")
    config.update_from_flattened_dict(changes)
    encoder = encoders.load(config.encoder)(config)
    build = objectives.load("data2vec")
    with pytest.raises(UserError, match=said):
        build(config, encoder)
    apart = dataclasses.replace(encoder, block_dim=0)
    with pytest.raises(UserError, match="has no outputs of blocks; take a Conformer"):
        build(config, apart)
