"""Laws that every objective on every encoder obeys. A recipe, encoder or objective whose file no
system of `tests/systems.py` uses fails the first of them."""

import functools
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax import bilevel, encoders, objectives, optim, recipes, step, system
from tests.systems import (
    CONFIGS,
    FACTS,
    RATE,
    ROWS,
    SECONDS,
    assert_close_leaf_by_leaf,
    build,
    compiled_step,
    config_for,
    gradient,
    make_batch,
    two_streams,
)

# systems whose joint phase takes a gradient an objective
BILEVEL = ("bljust", pytest.param("wav2vec2_just", marks=pytest.mark.slow))


def cases():
    """(system, objective), each objective once on each model."""
    found = {}
    for name in CONFIGS:
        model = config_for(name).model.to_json()
        for objective in build(name).objectives:
            found.setdefault((model, objective.name), (name, objective.name))
    nightly = ("lstm", "parakeet")
    return [
        pytest.param(*case, marks=pytest.mark.slow if case[0] in nightly else ())
        for case in found.values()
    ]


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


def test_every_file_is_in_a_system():
    """A plug-in that no system uses would escape these laws."""
    used = [config_for(name) for name in CONFIGS]
    modules = {
        package: {m.name for m in pkgutil.iter_modules(package.__path__)}
        for package in (recipes, encoders, objectives)
    }
    assert {c.recipe for c in used} == modules[recipes]
    assert {c.encoder for c in used} == modules[encoders]
    # CTC is in all, birq is its recipe's own, and shared has tests of its own
    assert {c.get("ssl", "birq") for c in used} | {"ctc", "birq", "shared"} == modules[objectives]


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


@pytest.mark.parametrize("recipe", ["bljust", "wav2vec2_just"])
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


@pytest.mark.parametrize("recipe", BILEVEL)
def test_eight_devices_give_the_step_of_one(recipe):
    """config.mesh = {data: 4, fsdp: 2}: loss and gradients of one device to 1e-5."""
    one, means = gradient(recipe, "joint", (1.0, 0.5))
    eight, others = gradient(recipe, "joint", (1.0, 0.5), mesh_shape=(4, 2))
    for name in means:
        if name.endswith("/loss"):
            assert others[name] == pytest.approx(means[name], rel=1e-5)
    assert_close_leaf_by_leaf(one, eight, 1e-5)


@pytest.mark.parametrize("recipe", BILEVEL)
def test_fused_gradients_are_the_separate_ones(recipe):
    """The same sum in another order of float32 additions."""
    separate, _ = gradient(recipe, "joint", (1.0, 0.5))
    fused, _ = gradient(recipe, "joint", (1.0, 0.5), gradients="fused")
    assert_close_leaf_by_leaf(separate, fused, 2e-5)


@pytest.mark.parametrize("recipe", BILEVEL)
def test_direction_of_the_whole_recipe_against_finite_differences(recipe):
    """Law 4 on the real model: along the gradient of f + 0.5 g, and along that of g alone, the
    penalised objective, in float64, changes as the step's float32 direction says."""
    weights = (1.0, 0.5)
    total, _ = gradient(recipe, "joint", weights, head_scale="penalised")
    lower, _ = gradient(recipe, "explore", (1.0,))
    state, _ = compiled_step(recipe, "joint", weights, head_scale="penalised")
    batch = two_streams()
    with jax.enable_x64(True):
        config = config_for(recipe, dtype="float64")
        config.specaugment.update(freq_masks=0, time_masks=0)
        r = recipes.load(config.recipe)(config, FACTS)
        phase = next(p for p in r.phases if len(p.levels) > 1)
        ones = dict.fromkeys(r.losses, 1.0)
        extras = system.Extras(state.step, state.frozen, state.stats, state.ema, ones)
        params, total, lower = (
            jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), tree)
            for tree in (state.params, total, lower)
        )

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
            eps = 1e-6 / norm(direction)
            plus, minus = (
                jax.tree.map(lambda p, g, e=e: p + e * g, params, direction) for e in (eps, -eps)
            )
            slope = float(objective(plus) - objective(minus)) / (2 * eps)
            # rounding of the float32 step; without g the error would be 30 %
            scale = norm(total) * norm(direction)
            assert slope == pytest.approx(vdot(total, direction), abs=1e-3 * scale)


def vdot(a, b):
    return sum(float(np.vdot(x, y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def norm(a):
    return vdot(a, a) ** 0.5
