"""Laws that every objective on every encoder obeys. A recipe, encoder or objective whose file no
system of `tests/helpers/systems.py` uses fails the first of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax import objectives, recipes
from bljust_jax.bilevel.optimizer import group_of_parameters
from bljust_jax.bilevel.rng import stream_key
from bljust_jax.bilevel.types import Extras
from tests.helpers import systems
from tests.helpers.laws import CASES, DAILY, bind_objective, lengthen, mean_loss
from tests.helpers.systems import (
    CONFIGS,
    FACTS,
    WEIGHTS,
    assert_close_leaf_by_leaf,
    compiled_step,
    gradient,
    make_batch,
    missing,
    two_streams,
    undisturbed,
)

# systems whose joint phase takes a gradient an objective
BILEVEL = ("bljust", "wav2vec2_just")


def test_every_file_is_in_a_system():
    """A plug-in that no system uses would escape these laws."""
    found = missing()
    assert not found, "\n\n".join(["", *found])


def test_the_message_for_a_file_in_no_system_has_the_lines_to_add(add_module, monkeypatch):
    """Followed, they put the file into a system."""
    add_module(objectives, "apc", "FIELDS = {}\ndef build(config, encoder):\n    pass\n")
    (told,) = missing()
    assert told.startswith("objectives/apc.py is in no system")
    line = next(line for line in told.splitlines() if "lambda" in line).strip()
    assert line == '"apc": lambda: with_loss("apc"),'
    added = eval("{" + line + "}", {"with_loss": systems.with_loss})
    monkeypatch.setattr(systems, "CONFIGS", CONFIGS | added)
    assert missing() == []


def test_the_message_for_a_field_without_a_default_names_it(add_module, monkeypatch):
    source = (
        "from bljust_jax.common.config_schema.field import Field\nFIELDS = {'a': Field(int, 'x')}"
    )
    add_module(objectives, "own", source)
    monkeypatch.setattr(systems, "CONFIGS", CONFIGS | {"own": lambda: systems.with_loss("own")})
    (told,) = missing()
    assert told.startswith("objectives/own.py: config.own.a has no default")
    assert "FIELDS['a'] = Field(int, 'x', default=...)" in told


@DAILY
@pytest.mark.parametrize(("recipe", "objective"), CASES)
class TestObjective:
    def test_gradient_is_finite_and_zero_on_heads_of_others(self, recipe, objective):
        """Law 2, on the raw gradient over the full tree; an empty row does no harm."""
        bound = bind_objective(recipe, objective)
        found = bound.lower(bound.params, make_batch())
        assert np.isfinite(found.loss)
        assert bool(found.finite)
        groups = group_of_parameters(bound.params, bound.recipe.groups)
        own = next(o.losses for o in bound.recipe.objectives if o.name == objective)
        for group, g in zip(*map(jax.tree.leaves, (groups, found.gradient)), strict=True):
            if not group.owners & set(own):
                assert not np.any(np.asarray(g)), group.name
        assert float(found.of_encoder) > 0

    def test_same_seed_same_bits_and_rows_may_be_permuted(self, recipe, objective):
        bound = bind_objective(recipe, objective)
        batch, order = make_batch(), np.array([2, 0, 3, 1])
        one, again = (bound.lower(bound.params, batch).loss for _ in range(2))
        assert float(one) == float(again)
        permuted = jax.tree.map(lambda x: x[order], batch)
        # draws follow the utterance's id; only the order of the sum over rows differs
        other = bound.lower(bound.params, permuted).loss
        np.testing.assert_allclose(other, one, rtol=1e-5)

    def test_padding_does_not_matter(self, recipe, objective):
        """A longer bucket, with garbage behind each utterance, gives the same loss."""
        bound, batch = bind_objective(recipe, objective), make_batch()
        one = bound.lower(bound.params, batch).loss
        other = mean_loss(bound.sums(lengthen(batch)))
        # SpecAugment and negatives are drawn a row from its own length; float32 sums differ in
        # shape
        np.testing.assert_allclose(other, one, rtol=1e-4)

    @pytest.mark.daily("bljust-cpc")
    def test_finite_in_bfloat16(self, recipe, objective):
        bound = bind_objective(recipe, objective, dtype="bfloat16")
        found = bound.lower(bound.params, make_batch())
        assert np.isfinite(found.loss)
        assert bool(found.finite)

    def test_loss_falls_on_one_batch(self, recipe, objective):
        bound = bind_objective(recipe, objective)
        params, batch, losses = bound.params, make_batch(), []
        for _ in range(12):
            found = bound.lower(params, batch)
            losses.append(float(found.loss))
            params = found.params
        assert min(losses[-3:]) < losses[0]


@pytest.mark.daily("bljust")
@pytest.mark.parametrize("recipe", BILEVEL)
def test_penalty_zero_is_supervised_training(recipe):
    """Law 3: in one compiled joint step another lower batch changes no bit of what the upper level
    trains; the separately compiled supervised step agrees to 1e-6 of the gradient's size."""
    state, train_step = compiled_step(recipe, "joint")
    zero = WEIGHTS.index((1.0, 0.0))
    state = state._replace(step=state.step + zero)
    one, _ = train_step(state, two_streams(seed=3))
    two, _ = train_step(state, two_streams(seed=4))
    for part in ("encoder", "ctc_head"):
        for a, b in zip(*(jax.tree.leaves(s.params[part]) for s in (one, two)), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    joint, _ = gradient(recipe, "joint", zero)
    alone, _ = gradient(recipe, "finetune", zero)
    for part in ("encoder", "ctc_head"):
        size = norm(joint[part])
        apart = jax.tree.map(lambda a, b: a - b, joint[part], alone[part])
        assert norm(apart) <= 1e-6 * size


@pytest.mark.slow
@pytest.mark.parametrize("recipe", BILEVEL)
def test_fused_gradients_are_the_separate_ones(recipe):
    """The same sum in another order of float32 additions."""
    separate, _ = gradient(recipe, "joint")
    fused, _ = gradient(recipe, "joint", gradients="fused")
    assert_close_leaf_by_leaf(separate, fused, 2e-5)


@pytest.mark.daily("bljust")
@pytest.mark.parametrize("recipe", BILEVEL)
def test_direction_of_the_whole_recipe_against_finite_differences(recipe):
    """Law 4 on the real model: along the gradient of f + 0.5 g, and along that of g alone, the
    penalised objective, in float64, changes as the step's float32 direction predicts."""
    weights = WEIGHTS[0]
    total, _ = gradient(recipe, "joint")
    lower, _ = gradient(recipe, "joint", WEIGHTS.index((0.0, 1.0)))
    state, _ = compiled_step(recipe, "joint")
    batch = two_streams()
    with jax.enable_x64(True):
        config = undisturbed(recipe)
        config.model.dtype = "float64"
        r = recipes.load(config.recipe)(config, FACTS)
        phase = next(p for p in r.phases if len(p.levels) > 1)
        ones = dict.fromkeys(r.losses, 1.0)
        extras = Extras(state.step, state.frozen, state.stats, state.ema, ones)
        params, total, lower = (
            jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), tree)
            for tree in (state.params, total, lower)
        )

        @jax.jit
        def objective(params):
            value = 0.0
            for o in r.objectives:
                streams = {s: batch[s] for s in o.streams}
                losses, _ = o.apply(params, extras, streams, stream_key(0, o.name, 0))
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
