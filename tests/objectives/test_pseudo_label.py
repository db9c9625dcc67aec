"""Pseudo-labels: labels as `evaluate` makes them, a teacher without gradient, weight 0."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax import recipes
from bljust_jax.bilevel import step
from bljust_jax.bilevel.optimizer import group_of_parameters
from bljust_jax.bilevel.types import Extras, Weights
from bljust_jax.common import trees
from bljust_jax.common.errors import UserError
from bljust_jax.decoding import greedy
from bljust_jax.inference.decode_split import greedy_decoder
from bljust_jax.objectives import pseudo_label
from tests.helpers import systems, toy

KEY = jax.random.key(5)
OWN = frozenset({"pseudo_label"})
ENCODERS = pytest.mark.parametrize(
    "system",
    ["mpl", pytest.param("mpl_lstm", marks=pytest.mark.slow)]
    + [pytest.param("mpl_wav2vec2", marks=pytest.mark.slow)],
)


@functools.cache
def bound(system="mpl"):
    """(recipe, objective, parameters, extras with a teacher that differs, batch)."""
    recipe = systems.build(system)
    # room for a label per frame of any encoder
    objective = dataclasses.replace(recipe.objectives[1], labels_per_second=100)
    draw = jax.jit(recipe.init)
    params, frozen, stats = draw(jax.random.key(0))
    other, _, _ = draw(jax.random.key(1))
    # heads far from 0, so that greedy paths vary
    teacher = {key: other[part] for key, part in objective.parts.items()}
    teacher["teacher_ctc_head"] = jax.tree.map(lambda x: 30 * x, teacher["teacher_ctc_head"])
    scale = dict.fromkeys(recipe.losses, 1.0)
    extras = Extras(jnp.int32(0), frozen | teacher, stats, params, scale)
    return recipe, objective, params, extras, systems.make_batch()


def teacher_params(objective, extras):
    return {part: extras.frozen[key] for key, part in objective.parts.items()}


@ENCODERS
def test_labels_are_the_hypotheses_of_evaluate(system):
    recipe, objective, params, extras, batch = bound(system)
    found, *_ = jax.jit(objective.teach)(params, extras, batch)
    weights = Weights(teacher_params(objective, extras), extras.stats)
    (task,) = recipe.tasks
    decode = greedy_decoder(dataclasses.replace(task, losses={}))
    paths = np.asarray(jax.jit(decode)(weights, batch)["path"])
    counts = np.asarray(found.label_lengths)
    assert counts[0] > 3, "too short a text to compare"
    for row, path in enumerate(paths):
        labels = greedy.collapse(path)
        assert list(np.asarray(found.labels)[row, : counts[row]]) == labels
        assert counts[row] == len(labels)
    assert counts[1] == 0, "a row without audio"


def test_confidence_is_the_geometric_mean_at_the_frames_of_labels():
    _, objective, params, extras, batch = bound()
    found, *_ = objective.teach(params, extras, batch)
    logits, frames = objective.ctc.predict(teacher_params(objective, extras), extras.stats, batch)
    for row, length in enumerate(np.asarray(frames)):
        probabilities = np.asarray(jax.nn.softmax(logits[row, :length]), np.float64)
        best = probabilities.max(-1)[probabilities.argmax(-1) > 0]
        expected = np.exp(np.log(best).mean()) if len(best) else 0.0
        np.testing.assert_allclose(found.confidence[row], expected, rtol=1e-5)


@ENCODERS
def test_loss_is_that_of_ctc_with_these_labels(system):
    """Value, weight and gradient: so no gradient passes through the labels."""
    _, objective, params, extras, batch = bound(system)
    found, *_ = objective.teach(params, extras, batch)
    labelled = {**batch, "labels": found.labels, "label_lengths": found.label_lengths}
    extras = extras._replace(scale=dict.fromkeys(extras.scale, 0.5))

    def pseudo(params):
        return objective.apply(params, extras, {"unlabelled": batch}, KEY)[0]["pseudo_label"]

    def supervised(params):
        return objective.ctc.apply(params, extras, {"labelled": labelled}, KEY)[0]["ctc"]

    (one, weight), grads = jax.jit(jax.value_and_grad(pseudo, has_aux=True))(params)
    (other, same), expected = jax.jit(jax.value_and_grad(supervised, has_aux=True))(params)
    np.testing.assert_allclose((one, weight), (other, same), rtol=1e-6)
    # the scale of a loss applies to the head as well, which both losses own
    expected["ctc_head"] = jax.tree.map(lambda g: 0.5 * g, expected["ctc_head"])
    systems.assert_close_leaf_by_leaf(grads, expected, 1e-5)


def test_no_gradient_reaches_the_teacher():
    _, objective, params, extras, batch = bound()

    def loss(params, frozen):
        given = extras._replace(frozen=frozen)
        return objective.apply(params, given, {"unlabelled": batch}, KEY)[0]["pseudo_label"][0]

    own, teacher = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, extras.frozen)
    assert float(trees.norm(own)) > 0
    assert not any(np.any(x) for x in jax.tree.leaves(teacher))


def metrics_of(objective, params, extras, batch):
    """({metric: sum / weight}, weight of the loss)."""
    losses, aux = objective.apply(params, extras, {"unlabelled": batch}, KEY)
    means = {k: float(s) / max(float(w), 1e-9) for k, (s, w) in aux.metrics.items()}
    return means, float(losses["pseudo_label"][1])


def test_rows_without_labels_or_with_too_many_are_masked_and_counted():
    _, objective, params, extras, batch = bound()
    found, *_ = objective.teach(params, extras, batch)
    counts, seconds = np.asarray(found.label_lengths), np.asarray(batch["audio_lengths"]) / 16000
    rate = float(np.sort(counts / np.maximum(seconds, 1e-9))[-2]) + 1e-3  # one row is denser
    narrow = dataclasses.replace(objective, labels_per_second=rate)
    means, weight = metrics_of(narrow, params, extras, batch)
    densest = np.argmax(counts / np.maximum(seconds, 1e-9))
    assert weight == counts.sum() - counts[densest]
    assert means["pseudo_label/masked"] == pytest.approx(1 / 3)  # one of four rows has no audio
    assert means["pseudo_label/empty"] == 0
    # a blank that always wins
    head = extras.frozen["teacher_ctc_head"]
    blank = {**head, "bias": head["bias"].at[0].set(1e4)}
    extras = extras._replace(frozen=extras.frozen | {"teacher_ctc_head": blank})
    means, weight = metrics_of(objective, params, extras, batch)
    assert weight == 0
    assert means["pseudo_label/empty"] == 1
    assert means["pseudo_label/masked"] == means["pseudo_label/confidence"] == 0


def test_rows_below_the_confidence_are_masked():
    _, objective, params, extras, batch = bound()
    found, *_ = objective.teach(params, extras, batch)
    counts, confidence = np.asarray(found.label_lengths), np.asarray(found.confidence)
    least = float(np.sort(confidence)[-2])  # two rows of three
    strict = dataclasses.replace(objective, min_confidence=least)
    means, weight = metrics_of(strict, params, extras, batch)
    assert weight == counts[confidence >= least].sum()
    assert means["pseudo_label/masked"] == pytest.approx(1 / 3)


def test_half_life_of_the_teacher():
    config = systems.config_for("mpl")
    recipe = recipes.load("bljust")(config, systems.FACTS)
    epoch = systems.FACTS.steps_per_epoch["unlabelled"]
    assert recipe.objectives[1].decay ** epoch == pytest.approx(0.5)
    with config.unlocked():
        config.pseudo_label = {"half_life": 7}
    recipe = recipes.load("bljust")(config, systems.FACTS)
    assert recipe.objectives[1].decay ** 7 == pytest.approx(0.5)
    assert {t.decay(3) for t in recipe.teachers.values()} == {recipe.objectives[1].decay}


@functools.cache
def joint_program(system="mpl"):
    """(state, step) of SGD in one program of two phases: step 0 is supervised, steps 1 and 2 have
    the pseudo-labels at weights 0 and 1."""
    recipe = recipes.load("bljust")(systems.undisturbed(system), systems.FACTS)
    supervised, joint = recipe.phases
    weights = jnp.array([0.0, 1.0])
    phases = (
        dataclasses.replace(supervised, steps=1),
        dataclasses.replace(joint, steps=2, weights=lambda k: (1.0, weights[k])),
    )
    recipe = dataclasses.replace(recipe, phases=phases)
    optimizer = toy.sgd(recipe.combiner, 1.0)
    state = systems.begin(recipe, optimizer)
    groups = group_of_parameters(state.params, recipe.groups)
    return state, jax.jit(step.make_train_step(recipe, phases, optimizer, groups, 0))


def test_weight_zero_is_supervised_training_bit_for_bit():
    """In one program; at weight 1 the pseudo-labels change the parameters."""
    state, train_step = joint_program()
    after = [
        train_step(state._replace(step=jnp.int32(now)), systems.two_streams())[0].params
        for now in range(3)
    ]
    supervised, zero, one = map(jax.tree.leaves, after)
    for a, b in zip(supervised, zero, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(zero, one, strict=True))


def test_the_teacher_follows_the_student_after_the_supervised_phase():
    state, train_step = joint_program()
    decay = recipes.load("bljust")(systems.undisturbed("mpl"), systems.FACTS).objectives[1].decay
    expected, batch = None, systems.two_streams()
    for now in range(3):
        student = jax.tree.map(np.asarray, state.params)
        state, _ = train_step(state, batch)
        if now == 0:
            continue
        for key, part in (("teacher_encoder", "encoder"), ("teacher_ctc_head", "ctc_head")):
            own = student[part] if now == 1 else expected[part]
            moved = jax.tree.map(lambda t, s: decay * t + (1 - decay) * s, own, student[part])
            for a, b in zip(*map(jax.tree.leaves, (state.frozen[key], moved)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
        expected = {
            part: jax.tree.map(np.asarray, state.frozen[key])
            for key, part in (("teacher_encoder", "encoder"), ("teacher_ctc_head", "ctc_head"))
        }


def test_cost_has_the_pass_of_the_teacher():
    _, objective, *_ = bound()
    assert objective.cost(OWN, 2.0) == objective.ctc.cost(OWN, 2.0) * 4 / 3
    expected = objective.ctc.head_cost(OWN, 2.0) * 4 / 3
    assert objective.head_cost(OWN, 2.0) == expected


def test_batch_norm_is_warned_of():
    config = systems.config_for("mpl")
    assert pseudo_label.warnings(config) == ()
    config.model.norm = "batch"
    (line,) = pseudo_label.warnings(config)
    assert "2110.04948" in line


# The cache of slimIPL


@functools.cache
def cached():
    """(objective, parameters, extras with a head far from 0, batch)."""
    recipe = systems.build("slimipl")
    objective = dataclasses.replace(recipe.objectives[1], slots=3)
    params, _, stats = jax.jit(recipe.init)(jax.random.key(1))
    _, frozen = objective.init(None)
    params = {**params, "ctc_head": jax.tree.map(lambda x: 30 * x, params["ctc_head"])}
    scale = dict.fromkeys(recipe.losses, 1.0)
    extras = Extras(jnp.int32(0), frozen, stats, params, scale)
    return objective, params, extras, systems.make_batch()


def drawn(batch, slot, fresh):
    rows = len(batch["ids"])
    flags = {"cache_slot": slot, "cache_fresh": int(fresh)}
    return batch | {key: jnp.full(rows, value, jnp.int32) for key, value in flags.items()}


def test_a_fresh_batch_is_labelled_by_the_student_and_its_labels_are_drawn_again():
    """Another batch in another slot leaves them; later parameters do not label anew."""
    objective, params, extras, batch = cached()
    teach = jax.jit(objective.teach)
    extras = extras._replace(step=jnp.int32(3))
    first, moved, metrics = teach(params, extras, drawn(batch, 1, fresh=True))
    student = jax.jit(objective.recognise)(params, extras.stats, batch)
    for a, b in zip(first, student, strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(first.label_lengths[0]) > 3
    assert float(metrics["pseudo_label/age"][0]) == 0
    other = jax.tree.map(lambda x: x[::-1], batch)
    extras = extras._replace(frozen=extras.frozen | moved, step=jnp.int32(4))
    second, moved, _ = teach(params, extras, drawn(other, 0, fresh=True))
    assert not np.array_equal(second.labels, first.labels)
    extras = extras._replace(frozen=extras.frozen | moved, step=jnp.int32(9))
    later = jax.tree.map(lambda x: -x, params)
    again, moved, metrics = teach(later, extras, drawn(batch, 1, fresh=False))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(metrics["pseudo_label/age"][0]) == 6
    for a, b in zip(*map(jax.tree.leaves, (moved, extras.frozen)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_cache_fits_the_batches_of_every_bucket():
    """Rows times room of the largest, in the smallest kind of integer that has the classes."""
    config = systems.config_for("slimipl")
    upper = systems.build("slimipl").objectives[0]
    with config.unlocked():
        config.pseudo_label = {"cache": 7, "replace": 0.1, "half_life": 0}
    shapes = [(40, 1.0), (8, 4.0), (3, 8.0)]
    made = pseudo_label.build_loss(config, upper, 1, shapes)
    frames = upper.encoder.frames
    room = {s: min(frames(16000 * s), int(25 * s)) for s in (1, 4, 8)}
    assert (made.rows, made.space) == (40, max(40 * room[1], 8 * room[4], 3 * room[8]))
    _, frozen = made.init(None)
    assert frozen["pseudo_label_cache"]["labels"].shape == (7, made.space)
    assert frozen["pseudo_label_cache"]["labels"].dtype == jnp.int16
    config.accumulate = 2
    with pytest.raises(UserError, match="keeps labels of whole batches"):
        pseudo_label.build_loss(config, upper, 1, shapes)


@pytest.mark.parametrize(
    ("given", "steps", "slots"), [(0, 10**6, 100), (0, 1000, 10), (0, 5, 1), (1000, 5, 1000)]
)
def test_a_short_run_has_a_small_cache(given, steps, slots):
    objective = dataclasses.replace(cached()[0], slots=given, replace=0.1)
    assert objective.sized_for(steps).slots == slots


def test_cost_of_the_cache_is_that_of_its_fresh_batches():
    objective, *_ = cached()
    expected = objective.ctc.cost(OWN, 2.0) * (1 + 0.1 / 3)
    assert objective.cost(OWN, 2.0) == pytest.approx(expected)


@functools.cache
def turns():
    """(recipe, state, {phase name: step}) of SGD: a supervised step, then turns."""
    recipe = recipes.load("bljust")(systems.undisturbed("slimipl"), systems.FACTS)
    optimizer = toy.sgd(recipe.combiner, 1.0)
    state = systems.begin(recipe, optimizer)
    groups = group_of_parameters(state.params, recipe.groups)
    steps = {
        phase.name: jax.jit(step.make_train_step(recipe, (phase,), optimizer, groups, 0))
        for phase in recipe.phases[:3]
    }
    return recipe, state, steps


def test_a_turn_on_labels_reads_no_cache_and_one_on_pseudo_labels_fills_it():
    recipe, state, steps = turns()
    start = recipe.phases[0].steps
    batch = systems.two_streams()
    state = state._replace(step=jnp.int32(start))
    filled = jax.tree.map(lambda x: x + 1, state.frozen)
    on_labels = [
        steps["turn_ctc"](state._replace(frozen=f), batch)[0] for f in (filled, state.frozen)
    ]
    for a, b in zip(*(jax.tree.leaves(s.params) for s in on_labels), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert int(on_labels[0].frozen["pseudo_label_cache"]["labels"][0, 0]) == 1
    fresh = {"unlabelled": drawn(batch["unlabelled"], 0, fresh=True)}
    after, means = steps["turn_pseudo"](state._replace(step=jnp.int32(start + 1)), fresh)
    assert float(means["pseudo_label/age"][1]) == 1
    _, moved, _ = recipe.objectives[1].teach(
        state.params,
        Extras(jnp.int32(0), state.frozen, state.stats, state.ema, {}),
        fresh["unlabelled"],
    )
    np.testing.assert_array_equal(
        after.frozen["pseudo_label_cache"]["label_lengths"],
        moved["pseudo_label_cache"]["label_lengths"],
    )


def test_turns_have_the_published_ratio_and_the_order_of_the_data():
    recipe, *_ = turns()
    names = [(p.name, p.steps) for p in recipe.phases]
    assert names[1:5] == [("turn_ctc", 1), ("turn_pseudo", 4)] * 2
    assert all(p.turn for p in recipe.phases[1:])
    assert not recipe.phases[0].turn
    assert recipe.replay.size == recipe.objectives[1].slots
    assert recipe.cache == "pseudo_label_cache"
