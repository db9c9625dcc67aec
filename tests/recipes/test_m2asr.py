"""The recipe of M2ASR and the Objective Soups: its levels, their weights, and its identities."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from bljust_jax import recipes
from bljust_jax.bilevel import step
from bljust_jax.bilevel.multi_objective import level_name
from bljust_jax.bilevel.optimizer import group_of_parameters, make_optimizer
from bljust_jax.common import trees
from bljust_jax.common.errors import UserError
from bljust_jax.inference import measures
from bljust_jax.objectives import ctc
from bljust_jax.recipes import m2asr as m2asr_recipe
from configs import m2asr
from tests.helpers import toy
from tests.helpers.systems import FACTS, all_streams, begin, config_for

ASR, ST, SSL = ("asr/ar", "asr/en"), ("st/ar-en",), ("cpc",)


def small(preset, head="attention", **moo):
    config = config_for("m2asr")
    config.method, config.decoder.kind = preset, head
    config.phases.supervised = 8.0
    del config.data.streams["st/en-ar"]
    config.moo.update(**moo)
    config.specaugment.update(freq_masks=0, time_masks=0)
    return config


def build(config):
    return recipes.load(config.recipe)(config, FACTS)


@functools.cache
def compiled(preset, changes=(), **moo):
    """(recipe, state, step): SGD of rate 1 in the joint phase, with `changes` to its fields."""
    recipe = build(small(preset, **moo))
    phase = next(p for p in recipe.phases if p.name == "joint")
    phase = dataclasses.replace(phase, **dict(changes))
    optimizer = toy.sgd(recipe.combiner, 1.0)
    state = begin(recipe, optimizer)
    groups = group_of_parameters(state.params, recipe.groups)
    return recipe, state, jax.jit(step.make_train_step(recipe, (phase,), optimizer, groups, 0))


def moved(preset, changes=(), **moo):
    """(what a step subtracted from the parameters, the mean of each metric, the new state)."""
    recipe, state, train_step = compiled(preset, changes, **moo)
    after, means = train_step(state, all_streams(recipe))
    change = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, after.params)
    return change, {k: float(s) / float(w) for k, (s, w) in means.items() if float(w)}, after


def assert_same(one, other):
    """But for the rounding of two compiled programs."""
    apart = jax.tree.map(lambda a, b: a - b, one, other)
    assert float(trees.norm(apart)) <= 1e-6 * float(trees.norm(one))


@pytest.mark.parametrize(
    ("method", "levels", "combine"),
    [
        ("vs", (ASR + ST + SSL,), ("modo",)),
        ("vc", (ASR + ST, SSL), ("modo", "sum")),
        ("vm_uas", (ASR, ST, SSL), ("modo", "sum", "sum")),
        ("vm_usa", (ST, ASR, SSL), ("sum", "modo", "sum")),
        ("joint", (ASR + ST, SSL), ("sum", "sum")),
    ],
)
def test_the_levels_of_each_method(method, levels, combine):
    phases = {p.name: p for p in build(small(method)).phases}
    assert list(phases) == ["explore", "supervised", "joint", "finetune"]
    assert phases["explore"].levels == (SSL,)
    assert phases["joint"].levels == levels
    assert phases["joint"].combine == combine
    for name in ("supervised", "finetune"):
        assert phases[name].levels == (levels[0:-1] if method != "vs" else (ASR + ST,))
        assert phases[name].combine == (combine[0:-1] if method != "vs" else combine)
    for phase in phases.values():
        assert len(phase.weights(0)) == len(phase.levels) == len(phase.combine)


def test_two_stage_training_takes_as_many_gradients():
    """Its phases hold the explore, joint and finetune steps of the others, one level a phase."""
    ours, theirs = (build(small(method)) for method in ("vc", "two_stage"))

    def gradients(recipe):
        return sum(p.steps * len(p.losses) for p in recipe.phases)

    assert gradients(ours) == gradients(theirs)
    assert [p.levels for p in theirs.phases] == [(SSL,), (ASR + ST,)]
    assert theirs.phases[1].inner == dict.fromkeys(ASR + ST, 1 / 3)


def test_conventional_multilingual_training_has_no_self_supervised_loss():
    """All streams at equal fixed weights, at the FLOPs of the others, whose labelled losses it
    takes in every step."""
    ours, theirs = (build(small(method)) for method in ("supervised", "vc"))
    (phase,) = ours.phases
    assert (phase.name, phase.levels, phase.combine) == ("supervised", (ASR + ST,), ("sum",))
    assert phase.inner == dict.fromkeys(ASR + ST, 1 / 3)
    assert not {o.name for o in ours.active(phase)} & set(SSL)

    def total(recipe, config):
        spent = recipes.step_flops(config, FACTS, recipe.objectives)
        return sum(p.steps * spent(p.losses) for p in recipe.phases)

    config = small("vc")
    assert total(ours, config) == pytest.approx(total(theirs, config), rel=0.02)
    assert phase.steps > sum(p.steps for p in theirs.phases if p.losses & set(ASR))


def test_dynamic_weights_are_equal_at_the_start_of_the_supervised_phase():
    config = small("vc")
    table = build(config).phases
    before = sum(p.steps for p in table[:1])
    assert [p.name for p in table[:2]] == ["explore", "supervised"]
    assert (
        m2asr_recipe.conflict(config, "^encoder/", table).equal_until == before + config.moo.warmup
    )


@pytest.mark.slow
def test_a_linear_head_translates_by_ctc():
    """Linear + softmax on the encoder's output: recognition's objective, measured by BLEU."""
    config = small("vc")
    config.decoder.kind = "linear"
    recipe = build(config)
    objective = next(o for o in recipe.objectives if o.name == "st/ar-en")
    task = next(t for t in recipe.tasks if t.name == "st/ar-en")
    assert isinstance(objective, ctc.Ctc)
    assert (task.measure, task.translate, task.head) == ("bleu", None, "st_ar-en_head")
    measures.check(task)
    shapes = jax.eval_shape(lambda: recipe.init(jax.random.key(0)))[0]
    assert {k: v.shape for k, v in shapes["st_ar-en_head"].items()} == {
        "kernel": (config.model.dim, FACTS.vocab_sizes["st/ar-en"]),
        "bias": (FACTS.vocab_sizes["st/ar-en"],),
    }
    _, means, _ = moved("vc", head="linear")
    assert np.isfinite(means["train/st/ar-en/loss"])
    check_logged(means, (*ASR, *ST))


def test_a_rate_of_weights_that_is_not_stable_is_refused():
    config = small("vc", rate=2.0)
    with pytest.raises(UserError, match=r"config\.moo: rate=2\.0 .* not stable"):
        build(config)
    config.moo.relative = False
    build(config)


def test_penalties_rise_from_the_start_to_their_caps():
    config = small("vm_uas")
    config.task_penalty.update(start=0.1, slope=0.1, cap=1.0)
    config.penalty.update(start=0.0, slope=0.2, cap=0.5)
    weights = next(p for p in build(config).phases if p.name == "joint").weights
    np.testing.assert_allclose(weights(0), (1, 0.1, 0))
    np.testing.assert_allclose(weights(2), (1, 0.3, 0.3 * 0.4), rtol=1e-6)
    np.testing.assert_allclose(weights(100), (1, 1.0, 0.5))
    config.method = "vc"
    weights = next(p for p in build(config).phases if p.name == "joint").weights
    np.testing.assert_allclose(weights(2), (1, 0.4), rtol=1e-6)


def check_logged(means, level):
    weights = [means[f"moo/weight/{name}"] for name in level]
    assert sum(weights) == pytest.approx(1, abs=1e-5)
    assert min(weights) >= 0
    first, second = level[:2]
    for layer in ("", "/encoder/blocks/0", "/encoder/blocks/1", "/encoder/frontend"):
        assert -1 <= means[f"moo/cos/{first}|{second}{layer}"] <= 1
    assert {f"moo/norm/{name}" for name in level} <= means.keys()


def test_modo_weighs_one_level_and_the_penalties_the_others():
    _, means, _ = moved("vm_uas")
    check_logged(means, ASR)
    assert {"penalty/1", "penalty/2", "train/st/ar-en/loss", "train/cpc/loss"} <= means.keys()
    assert "moo/weight/cpc" not in means


@pytest.mark.slow
def test_mgda_worsens_no_loss_and_leaves_heads_their_own_gradient():
    change, means, after = moved("vs", method="mgda", normalise="none")
    level = (*ASR, *ST, *SSL)
    check_logged(means, level)
    state = after.opt_state[0].levels[level_name(level)]
    n = len(level)
    total = sum(np.asarray(k).reshape(-1, n, n).sum(axis=0) for k in state.grams.values())
    assert (total @ np.asarray(state.lam)).min() >= -1e-6 * np.trace(total) / n
    one = (("levels", (("asr/ar",),)), ("combine", ("sum",)))
    alone, _, _ = moved("vs", one)
    assert_same(alone["asr_ar_head"], change["asr_ar_head"])
    apart = jax.tree.map(lambda a, b: a - b, alone["encoder"], change["encoder"])
    assert float(trees.norm(apart)) > 0.1 * float(trees.norm(change["encoder"]))


@pytest.mark.slow
def test_all_weight_on_one_loss_is_training_it_alone():
    chosen = {name: float(name == "asr/ar") for name in (*ASR, *ST, *SSL)}
    vector, _, _ = moved("vs", (("combine", ("sum",)), ("inner", Weights(chosen))))
    alone, _, _ = moved("vs", (("levels", (("asr/ar",),)), ("combine", ("sum",))))
    assert_same(alone["encoder"], vector["encoder"])
    assert_same(alone["asr_ar_head"], vector["asr_ar_head"])


@pytest.mark.slow
def test_one_loss_a_level_is_bl_just():
    """VM-MSP of two levels of one loss each, in the same program: the penalised sum of BL-JUST."""
    levels = (("levels", (("asr/ar",), SSL)), ("weights", half))
    as_vm, _, _ = moved("vm_uas", (*levels, ("combine", ("modo", "sum"))))
    as_sum, _, _ = moved("vm_uas", (*levels, ("combine", ("sum", "sum"))))
    for a, b in zip(*map(jax.tree.leaves, (as_vm, as_sum)), strict=True):
        assert a.tobytes() == b.tobytes()


def half(k):
    return 1.0, 0.5


class Weights(dict):
    """A hashable mapping, for `functools.cache`."""

    def __hash__(self):
        return hash(tuple(sorted(self.items())))


def test_streams_that_no_method_can_use_are_refused():
    config = m2asr.get_config("smoke,vm_uas")
    facts = recipes.Facts(
        {"asr/en": 9, "asr/zh": 9}, dict.fromkeys(("asr/en", "asr/zh", "unlabelled"), 4)
    )
    with pytest.raises(UserError, match="has asr/en, asr/zh alone: take vc"):
        recipes.load(config.recipe)(config, facts)
    for name in ("words", "st/en", "asr/en/us"):
        config.data.streams[name] = config.data.streams["asr/en"]
        with pytest.raises(UserError, match=f"'{name}' is neither asr/LANG nor st/SRC-TGT"):
            recipes.load(config.recipe)(config, facts)
        del config.data.streams[name]


def test_batch_norm_is_refused():
    config = small("vc")
    config.model.norm = "batch"
    with pytest.raises(UserError, match=r'config.model.norm="batch"'):
        build(config)


def test_batches_that_modo_cannot_halve_are_refused():
    config = small("vc")
    config.data.rows_multiple = 3
    with pytest.raises(UserError, match="rows_multiple=3: MoDo halves each batch"):
        build(config)
    config.moo.method = "mgda"
    build(config)
    config.update(method="joint", moo={"method": "modo"})
    build(config)


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["all", "conflicting"])
def test_a_frozen_part_has_no_part_in_the_weights(layers):
    config = small("vc", layers=layers)
    config.freeze = ("frontend",)
    recipe = build(config)
    phase = next(p for p in recipe.phases if p.name == "joint")
    optimizer = make_optimizer(recipe.combiner, recipe.groups)
    state = jax.eval_shape(lambda: step.init_state(recipe, optimizer, seed=0))
    groups = group_of_parameters(state.params, recipe.groups)
    train_step = step.make_train_step(recipe, (phase,), optimizer, groups, 0)
    after, _ = jax.eval_shape(train_step, state, all_streams(recipe))
    level = after.opt_state[0].levels[level_name(ASR + ST)]
    assert set(level.grams) == set(level.selected) == {"encoder/blocks"}
