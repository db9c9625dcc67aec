"""Laws that every objective of every recipe obeys, found by listing folders: a new file is tested
by being there."""

import functools
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bljust_jax import bilevel, objectives, optim, recipes, sharding, step
from configs import common

RECIPES = sorted(m.name for m in pkgutil.iter_modules(recipes.__path__))
RATE, SECONDS, ROWS = 16000, 1.5, 4
SMALL = {"dim": 16, "layers": 2, "heads": 2, "kernel": 5, "channels": 8}


def config_for(recipe, **model):
    c = common.base()
    common.shrink(c)
    c.recipe = recipe
    c.model.update(**SMALL, **model)
    c.cpc.steps = 2
    return c


def make_batch(rows=ROWS, seconds=SECONDS, seed=0):
    """Noise with a pitch in it, in every stream, of unequal lengths; one row is empty."""
    rng = np.random.default_rng(seed)
    samples = int(seconds * RATE)
    time = np.arange(samples) / RATE
    pitch = rng.uniform(100, 1000, (rows, 1))
    audio = 3000 * np.sin(2 * np.pi * pitch * time[None, :]) + 300 * rng.normal(
        size=(rows, samples)
    )
    lengths = np.linspace(0.6, 1.0, rows) * samples
    lengths[1] = 0
    lengths = lengths.astype(np.int32)
    audio = np.where(np.arange(samples)[None, :] < lengths[:, None], audio, 0).astype(np.int16)
    label_lengths = np.where(lengths > 0, 4, 0).astype(np.int32)
    labels = rng.integers(1, 9, (rows, 6)).astype(np.int32)
    stream = {
        "audio": audio,
        "audio_lengths": lengths,
        "labels": labels * (np.arange(6)[None, :] < label_lengths[:, None]),
        "label_lengths": label_lengths,
        "ids": rng.integers(0, 2**32, rows, dtype=np.uint32),
    }
    return jax.tree.map(jnp.asarray, stream)


def build(name, **model):
    config = config_for(name, **model)
    facts = recipes.Facts(vocab_size=9, steps_per_epoch={"labelled": 4, "unlabelled": 4})
    return recipes.load(name)(config, facts)


def cases():
    return [(name, o.name) for name in RECIPES for o in build(name).objectives]


CASES = cases()


@functools.cache
def setup(recipe_name, objective, **model):
    recipe = build(recipe_name, **model)
    chosen = next(o for o in recipe.objectives if o.name == objective)
    params, frozen, stats = recipe.init(jax.random.key(1))
    scale = dict.fromkeys(recipe.losses, 1.0)
    extras = step.Extras(jnp.int32(0), frozen, stats, params, scale)

    def loss(params, data, rng):
        batch = dict.fromkeys(chosen.streams, data)
        losses, _ = chosen.apply(params, extras, batch, rng)
        return sum(s / jnp.maximum(w, 1) for s, w in losses.values())

    return recipe, chosen, params, jax.jit(jax.value_and_grad(loss))


def test_every_objective_file_is_in_a_recipe():
    """An objective that no recipe uses would escape these laws."""
    files = {m.name for m in pkgutil.iter_modules(objectives.__path__)}
    used = set()
    for name in RECIPES:
        source = importlib.import_module(f"bljust_jax.recipes.{name}")
        used |= {f for f in files if getattr(source, f, None) is not None}
    assert used == files


@pytest.mark.parametrize(("recipe", "objective"), CASES)
class TestObjective:
    def test_gradient_is_finite_and_zero_on_heads_of_others(self, recipe, objective):
        """Law 2, on the raw gradient over the full tree; an empty row does no harm."""
        r, chosen, params, grad = setup(recipe, objective)
        loss, grads = grad(params, make_batch(), jax.random.key(0))
        assert np.isfinite(loss)
        assert bool(step.is_finite(grads))
        groups = optim.assign(params, r.groups)
        for group, g in zip(*map(jax.tree.leaves, (groups, grads)), strict=True):
            if not group.owners & set(chosen.losses):
                assert not np.any(np.asarray(g)), group.name
        assert float(bilevel.norm(grads["encoder"])) > 0

    def test_same_seed_same_bits_and_rows_may_be_permuted(self, recipe, objective):
        _, _, params, grad = setup(recipe, objective)
        batch, order = make_batch(), np.array([2, 0, 3, 1])
        one, _ = grad(params, batch, jax.random.key(0))
        again, _ = grad(params, batch, jax.random.key(0))
        assert float(one) == float(again)
        permuted = jax.tree.map(lambda x: x[order], batch)
        # draws follow the utterance's id; only the order of the sum over rows differs
        other, _ = grad(params, permuted, jax.random.key(0))
        np.testing.assert_allclose(other, one, rtol=1e-5)

    def test_padding_does_not_matter(self, recipe, objective):
        """A longer bucket, with garbage behind each utterance, gives the same loss."""
        _, _, params, grad = setup(recipe, objective)
        batch = make_batch()
        rng = np.random.default_rng(7)
        garbage = rng.integers(-(2**15), 2**15, (ROWS, int(SECONDS * RATE) + 8000)).astype(np.int16)
        audio = jnp.asarray(garbage).at[:, : batch["audio"].shape[1]].set(batch["audio"])
        inside = jnp.arange(audio.shape[1])[None, :] < batch["audio_lengths"][:, None]
        longer = {**batch, "audio": jnp.where(inside, audio, jnp.asarray(garbage))}
        one, _ = grad(params, batch, jax.random.key(0))
        other, _ = grad(params, longer, jax.random.key(0))
        # SpecAugment and negatives are drawn a row from its own length; float32 sums differ in
        # shape
        np.testing.assert_allclose(other, one, rtol=1e-4)

    def test_finite_in_bfloat16(self, recipe, objective):
        _, _, params, grad = setup(recipe, objective, dtype="bfloat16")
        loss, grads = grad(params, make_batch(), jax.random.key(0))
        assert np.isfinite(loss)
        assert bool(step.is_finite(grads))

    def test_loss_falls_on_one_batch(self, recipe, objective):
        _, _, params, grad = setup(recipe, objective)
        batch, losses = make_batch(), []
        for _ in range(12):
            loss, grads = grad(params, batch, jax.random.key(0))
            losses.append(float(loss))
            rate = 0.05 / (bilevel.norm(grads) + 1e-6)
            params = jax.tree.map(lambda p, g, rate=rate: p - rate * g, params, grads)
        assert min(losses[-3:]) < losses[0]


@functools.cache
def joint_step(recipe_name, mesh_shape, gradients="separate"):
    """One joint step of a recipe on a mesh, from fixed parameters; SGD, so the change is the
    gradient."""
    config = config_for(recipe_name)
    config.gradients = gradients
    mesh = sharding.make_mesh(*mesh_shape)
    facts = recipes.Facts(vocab_size=9, steps_per_epoch={"labelled": 4, "unlabelled": 4})
    recipe = recipes.load(recipe_name)(config, facts)
    phase = next(p for p in recipe.phases if len(p.levels) > 1)
    phase = step.Phase(**{**vars(phase), "weights": lambda k: (1.0, 0.5)})

    def descend(updates, state, params=None, **extra):
        return jax.tree.map(lambda u: -u, updates), state

    optimizer = optax.chain(
        recipe.combiner,
        optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), descend),
    )
    state = step.init_state(recipe, optimizer, seed=0)
    groups = optim.assign(state.params, recipe.groups)
    placed = sharding.state_sharding(state, mesh, optim.path_name)
    before = state.params
    train_step = jax.jit(
        step.make_train_step(recipe, phase, optimizer, groups, 0), out_shardings=(placed, None)
    )
    batch = {"labelled": make_batch(8), "unlabelled": make_batch(8, seed=3)}
    after, means = train_step(jax.device_put(state, placed), sharding.put_batch(batch, mesh))
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), after.params, before)
    return moved, {k: float(s) / float(w) for k, (s, w) in means.items() if float(w)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_eight_devices_give_the_step_of_one(recipe):
    """config.mesh = {data: 4, fsdp: 2}: loss and gradients of one device to 1e-5 of their size."""
    one, means = joint_step(recipe, (1, 1))
    eight, others = joint_step(recipe, (4, 2))
    for name in means:
        if name.endswith("/loss"):
            assert others[name] == pytest.approx(means[name], rel=1e-5)
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(one))
    for a, b in zip(*map(jax.tree.leaves, (one, eight)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * largest)


@pytest.mark.parametrize("recipe", RECIPES)
def test_fused_gradients_are_the_separate_ones(recipe):
    separate, _ = joint_step(recipe, (1, 1))
    fused, _ = joint_step(recipe, (1, 1), gradients="fused")
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(separate))
    # the same sum in another order of float32 additions
    for a, b in zip(*map(jax.tree.leaves, (separate, fused)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * largest)


@pytest.mark.parametrize("recipe", RECIPES)
def test_direction_of_the_whole_recipe_against_finite_differences(recipe):
    """Law 4 on the real model: along the step's own direction, f + gamma g falls as the gradient
    says."""
    config = config_for(recipe)
    config.head_scale = "penalised"
    config.specaugment.update(freq_masks=0, time_masks=0)
    facts = recipes.Facts(vocab_size=9, steps_per_epoch={"labelled": 4, "unlabelled": 4})
    r = recipes.load(recipe)(config, facts)
    params, frozen, stats = r.init(jax.random.key(1))
    phase = next(p for p in r.phases if len(p.levels) > 1)
    phase = step.Phase(**{**vars(phase), "weights": lambda k: (1.0, 0.5)})
    optimizer = optax.chain(
        r.combiner,
        optax.GradientTransformationExtraArgs(
            lambda p: optax.EmptyState(), lambda u, s, p=None, **e: (u, s)
        ),
    )
    state = step.init_state(r, optimizer, seed=0)._replace(params=params, stats=stats)
    groups = optim.assign(params, r.groups)
    batch = {"labelled": make_batch(), "unlabelled": make_batch(seed=3)}
    after, _ = jax.jit(step.make_train_step(r, phase, optimizer, groups, 0))(state, batch)
    gradient = jax.tree.map(lambda a, b: a - b, after.params, params)
    extras = step.Extras(state.step, frozen, stats, params, dict.fromkeys(r.losses, 1.0))

    @jax.jit
    def objective(p):
        total = 0.0
        for o in r.objectives:
            streams = {s: batch[s] for s in o.streams}
            losses, _ = o.apply(p, extras, streams, step.stream_key(0, o.name, 0))
            for name, (s, w) in losses.items():
                total += (1.0, 0.5)[phase.level_of(name)] * s / jnp.maximum(w, 1)
        return total

    size = float(bilevel.norm(gradient))
    # moves parameters by 3e-3 in all: float32 noise 1e-6 against a change of 1e-2
    eps = 3e-3 / size

    def moved(sign):
        return float(objective(jax.tree.map(lambda p, g: p + sign * eps * g, params, gradient)))

    slope = (moved(1) - moved(-1)) / (2 * eps)
    assert slope == pytest.approx(size**2, rel=5e-3)
