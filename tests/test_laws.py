"""Laws that every objective of every recipe obeys, found by listing folders: a new file is tested
by being there."""

import functools
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax import bilevel, objectives, optim, recipes, sharding, step, system
from configs import common
from tests import toy

RECIPES = sorted(m.name for m in pkgutil.iter_modules(recipes.__path__))
FACTS = recipes.Facts(vocab_size=9, steps_per_epoch={"labelled": 4, "unlabelled": 4})
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
    return recipes.load(name)(config_for(name, **model), FACTS)


def cases():
    return [(name, o.name) for name in RECIPES for o in build(name).objectives]


CASES = cases()


@functools.cache
def setup(recipe_name, objective, **model):
    recipe = build(recipe_name, **model)
    chosen = next(o for o in recipe.objectives if o.name == objective)
    params, frozen, stats = recipe.init(jax.random.key(1))
    scale = dict.fromkeys(recipe.losses, 1.0)
    extras = system.Extras(jnp.int32(0), frozen, stats, params, scale)

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
def small_recipe(name, gradients="separate", head_scale="plain"):
    config = config_for(name)
    config.update(gradients=gradients, head_scale=head_scale)
    config.specaugment.update(freq_masks=0, time_masks=0)
    return recipes.load(name)(config, FACTS)


def two_streams(seed=3):
    return {"labelled": make_batch(8), "unlabelled": make_batch(8, seed=seed)}


@functools.cache
def compiled_step(name, phase_name, weights, mesh_shape=(1, 1), **options):
    """(initial state, step): SGD of rate 1, so that a change is a gradient. `phase_name` "joint"
    stands for the first phase of several levels."""
    recipe = small_recipe(name, **options)
    mesh = sharding.make_mesh(*mesh_shape)
    phase = next(
        p
        for p in recipe.phases
        if (len(p.levels) > 1 if phase_name == "joint" else p.name == phase_name)
    )
    phase = system.Phase(**{**vars(phase), "weights": lambda k: weights})
    optimizer = toy.sgd(recipe.combiner, 1.0)
    state = step.init_state(recipe, optimizer, seed=0)
    groups = optim.assign(state.params, recipe.groups)
    placed = sharding.state_sharding(state, mesh, optim.path_name)
    train_step = jax.jit(
        step.make_train_step(recipe, phase, optimizer, groups, 0), out_shardings=(placed, None)
    )
    return jax.device_put(state, placed), lambda s, b: train_step(s, sharding.put_batch(b, mesh))


def gradient(name, phase_name, weights, **options):
    """(gradient tree, mean losses) of one step on the standard batch."""
    state, train_step = compiled_step(name, phase_name, weights, **options)
    after, means = train_step(state, two_streams())
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, after.params)
    return moved, {k: float(s) / float(w) for k, (s, w) in means.items() if float(w)}


def assert_close_leaf_by_leaf(one, other, relative):
    """Each leaf within `relative` of its own largest entry; leaves of rounding noise alone (under
    1e-6 of the largest of all) within that noise."""
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(one))
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, atol=max(relative * np.abs(a).max(), 1e-6 * largest))


@pytest.mark.parametrize("recipe", RECIPES)
def test_penalty_zero_is_supervised_training(recipe):
    """Law 3: in one compiled joint step another lower batch changes no bit of what the upper level
    trains; the separately compiled supervised step agrees to 1e-6 of the gradient's size."""
    state, train_step = compiled_step(recipe, "joint", (1.0, 0.0))
    one, _ = train_step(state, two_streams(seed=3))
    two, _ = train_step(state, two_streams(seed=4))
    for part in ("encoder", "ctc_head"):
        for a, b in zip(*(jax.tree.leaves(s.params[part]) for s in (one, two)), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    joint, _ = gradient(recipe, "joint", (1.0, 0.0))
    alone, _ = gradient(recipe, "finetune", (1.0,))
    for part in ("encoder", "ctc_head"):
        size = float(bilevel.norm(joint[part]))
        apart = jax.tree.map(lambda a, b: a - b, joint[part], alone[part])
        assert float(bilevel.norm(apart)) <= 1e-6 * size


@pytest.mark.parametrize("recipe", RECIPES)
def test_eight_devices_give_the_step_of_one(recipe):
    """config.mesh = {data: 4, fsdp: 2}: loss and gradients of one device to 1e-5."""
    one, means = gradient(recipe, "joint", (1.0, 0.5))
    eight, others = gradient(recipe, "joint", (1.0, 0.5), mesh_shape=(4, 2))
    for name in means:
        if name.endswith("/loss"):
            assert others[name] == pytest.approx(means[name], rel=1e-5)
    assert_close_leaf_by_leaf(one, eight, 1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_fused_gradients_are_the_separate_ones(recipe):
    """The same sum in another order of float32 additions."""
    separate, _ = gradient(recipe, "joint", (1.0, 0.5))
    fused, _ = gradient(recipe, "joint", (1.0, 0.5), gradients="fused")
    assert_close_leaf_by_leaf(separate, fused, 2e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_direction_of_the_whole_recipe_against_finite_differences(recipe):
    """Law 4 on the real model: along the gradient of f + 0.5 g, and along that of g alone, the
    penalised objective changes as its gradient says."""
    weights = (1.0, 0.5)
    total, _ = gradient(recipe, "joint", weights, head_scale="penalised")
    lower, _ = gradient(recipe, "explore", (1.0,))
    state, _ = compiled_step(recipe, "joint", weights, head_scale="penalised")
    r, batch = small_recipe(recipe, head_scale="penalised"), two_streams()
    phase = next(p for p in r.phases if len(p.levels) > 1)
    ones = dict.fromkeys(r.losses, 1.0)
    extras = system.Extras(state.step, state.frozen, state.stats, state.ema, ones)

    @jax.jit
    def objective(params):
        value = 0.0
        for o in r.objectives:
            streams = {s: batch[s] for s in o.streams}
            losses, _ = o.apply(params, extras, streams, system.stream_key(0, o.name, 0))
            for name, (s, w) in losses.items():
                value += weights[phase.level_of(name)] * s / jnp.maximum(w, 1)
        return value

    for direction in (total, lower):
        size = float(bilevel.norm(direction))
        eps = 3e-4 / size  # float32 noise of 1e-6 against changes of 1e-3 and more

        def moved(sign, direction=direction, eps=eps):
            shifted = jax.tree.map(lambda p, g: p + sign * eps * g, state.params, direction)
            return float(objective(shifted))

        slope = (moved(1) - moved(-1)) / (2 * eps)
        # ReLU's kinks make the error first order in eps, 0.6 % here; without g's part it is 30 %
        assert slope == pytest.approx(float(bilevel.dot(total, direction)), rel=2e-2)
