"""The BiRQ system: its config's sizes, phases, owners, costs, and one step of its two levels."""

import functools
import pathlib

import jax
import numpy as np
import pytest

from bljust_jax import recipes
from bljust_jax.benchmarks import birq as bench_birq
from bljust_jax.benchmarks import step as bench_step
from bljust_jax.bilevel import step
from bljust_jax.bilevel.optimizer import group_of_parameters
from bljust_jax.bilevel.types import Extras
from bljust_jax.common import config_schema
from bljust_jax.common.errors import UserError
from bljust_jax.inference import trained_run
from bljust_jax.models import encoders
from bljust_jax.train import initial_state, loop
from configs import birq
from tests.helpers import toy
from tests.helpers.systems import begin

KEY = jax.random.key(0)
FACTS = recipes.Facts({"labelled": 9}, steps_per_epoch={"labelled": 10, "unlabelled": 40})


def small(variants="smoke", **fields):
    config = birq.get_config(variants)
    config.model.update(dim=16, layers=2, heads=2, kernel=5, channels=8)
    config.best_rq.codes = 32
    config.update_from_flattened_dict(fields)
    return config


def make_batch():
    """Two utterances of noise, of 2 s and 1.5 s."""
    audio = np.random.default_rng(0).integers(-3000, 3000, (2, 32000)).astype(np.int16)
    lengths = np.array([32000, 24000], np.int32)
    return {"audio": audio, "audio_lengths": lengths, "ids": np.arange(2, dtype=np.uint32)}


def build(config):
    return recipes.load("birq")(config, FACTS)


@pytest.mark.parametrize(("variant", "millions"), [("librispeech", 155), ("yodas", 275)])
def test_encoders_have_the_size_of_the_paper(variant, millions):
    """Within 2 %: the paper gives depth and total, not the widths."""
    config = birq.get_config(variant)
    encoder = encoders.load(config.encoder)(config)
    params, _ = jax.eval_shape(encoder.init, jax.random.key(0))
    size = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
    assert size == pytest.approx(millions, rel=0.02)
    assert encoder.blocks == 10


@pytest.mark.parametrize("variant", ["librispeech", "yodas"])
def test_cost_of_a_step_over_best_rq(variant):
    """Encoder FLOPs of 12 s: 1.73-1.87 times with the label gradient, 1.24-1.29 without."""
    config = birq.get_config(variant)
    both, anchor = frozenset({"enhanced", "anchor"}), frozenset({"anchor"})
    for gradient, least, most in ((True, 1.73, 1.87), (False, 1.24, 1.29)):
        config.birq.label_gradient = gradient
        recipe = build(config)
        assert least < recipe.cost(both, 12.0) / recipe.cost(anchor, 12.0) < most
    assert recipe.cost(frozenset({"ctc"}), 12.0) == recipe.cost(anchor, 12.0)


def test_methods_are_phase_tables():
    tables = {
        "birq": [("pretrain", 4000, "enhanced > anchor"), ("finetune", 300, "ctc")],
        # at the FLOPs of birq
        "best_rq": [("pretrain", 7100, "anchor"), ("finetune", 300, "ctc")],
        "relabel": [("pretrain", 5643, "enhanced"), ("finetune", 300, "ctc")],
        "supervised": [("supervised", 300, "ctc")],
    }
    for method, table in tables.items():
        config = birq.get_config(method)
        config.teacher_from = "runs/first"
        recipe = build(config)
        assert recipe.phase_table == table
        assert recipe.borrow == ({"teacher": "runs/first"} if method == "relabel" else {})
    weights = build(birq.get_config()).phases[0].weights(0)
    assert weights == (0.1, 2.4)


def check_and_build(config):
    config_schema.check(config)
    return build(config)


def test_what_cannot_be_is_refused_in_one_line():
    for fields, complaint in (
        ({"method": "relabel"}, "config.teacher_from"),
        ({"method": "ptft"}, "config.method='ptft'"),
        ({"birq.layer": 3}, r"config.birq.layer=3 must be 1 .. 2"),
        ({"birq.tau_end": 0.0}, "config.birq.tau_end=0.0 must be above 0"),
        ({"birq.score": "dot"}, "config.birq.score='dot'"),
        ({"birq.head": "none"}, "config.birq.head='none'"),
    ):
        with pytest.raises(UserError, match=complaint):
            check_and_build(small(**fields))


def test_frozen_arrays_and_owners():
    """No quantiser among the parameters; one codebook or two; a teacher of the encoder's shapes."""
    recipe = build(small(method="relabel", teacher_from="somewhere"))
    params, frozen, stats = jax.eval_shape(recipe.init, jax.random.key(0))
    assert set(params) == {"encoder", "ctc_head", "label_head"}
    assert frozen["teacher"] == ({"encoder": params["encoder"]}, stats)
    assert set(frozen["birq"]["enhanced"]) == {"projection"}
    recipe = build(small(**{"birq.head": "separate", "birq.codebook": "separate"}))
    params, frozen, _ = jax.eval_shape(recipe.init, jax.random.key(0))
    assert set(frozen["birq"]["enhanced"]) == {"projection", "codebook"}
    owners = {g.name: set(g.owners) for g in recipe.groups}
    assert owners == {
        "encoder": {"enhanced", "anchor", "ctc"},
        "ctc_head": {"ctc"},
        "enhanced_head": {"enhanced"},
        "anchor_head": {"anchor"},
    }
    group_of_parameters(params, recipe.groups)


@functools.cache
def after_one_step():
    recipe = build(small())
    optimizer = toy.sgd(recipe.combiner, 1e-3)
    state = begin(recipe, optimizer)
    groups = group_of_parameters(state.params, recipe.groups)
    phase = recipe.phases[0]
    run = jax.jit(step.make_train_step(recipe, (phase,), optimizer, groups, 0))
    return state, *run(state, {"unlabelled": make_batch()})


def test_a_step_moves_encoder_and_label_head_alone():
    state, after, _ = after_one_step()
    idle = (jax.tree.leaves(s.params["ctc_head"]) for s in (state, after))
    for a, b in zip(*idle, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    for name in ("encoder", "label_head"):
        kernels = zip(*(jax.tree.leaves(s.params[name]) for s in (state, after)), strict=True)
        assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in kernels)
    for a, b in zip(*(jax.tree.leaves(s.frozen) for s in (state, after)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_moments_of_batch_norm_move_with_the_masked_pass():
    """The pass that makes labels reads them: unmoved, it would be that of another network."""
    recipe = build(small("parakeet,smoke"))
    params, frozen, stats = jax.jit(recipe.init)(jax.random.key(0))
    extras = Extras(0, frozen, stats, None, {"enhanced": 1.0, "anchor": 1.0})
    apply = jax.jit(lambda batch: recipe.objectives[0].apply(params, extras, batch, KEY)[1].stats)
    moved = apply({"unlabelled": make_batch()})["encoder"]
    assert jax.tree.map(np.shape, moved) == jax.tree.map(np.shape, stats["encoder"])
    assert not np.any(np.asarray(moved["mean"]) == np.asarray(stats["encoder"]["mean"]))


def test_a_teacher_of_another_function_is_refused():
    """Heads and norm leave no trace in the shapes of parameters; dropout is no matter."""
    config, other = small(), small(**{"model.heads": 4, "model.norm": "batch"})
    config.model.dropout = 0.5
    opened = trained_run.TrainedRun(pathlib.Path("runs/x"), small(), *[None] * 5)
    initial_state.check_same_encoder(config, opened, "teacher")
    with pytest.raises(
        UserError, match=r"give both the same config.model.heads, config.model.norm"
    ):
        initial_state.check_same_encoder(other, opened, "teacher")


def test_a_step_reports_both_codebooks():
    _, _, metrics = after_one_step()
    figures = {name: float(s) / float(w) for name, (s, w) in metrics.items()}
    for name in ("anchor", "enhanced"):
        for figure in ("perplexity", "share", "unused", "entropy"):
            assert f"codebook/{name}/{figure}" in figures
        assert 1 < figures[f"codebook/{name}/perplexity"] <= 32
        assert 0 <= figures[f"{name}/accuracy"] <= 1
        assert np.isfinite(figures[f"train/{name}/loss"])
    assert 0 <= figures["birq/agreement"] <= 1
    assert figures["penalty/1"] == pytest.approx(2.4)
    assert figures["train/enhanced/loss"] > figures["enhanced/entropy"]


def test_the_benchmark_compares_the_three_steps(monkeypatch):
    compiled = []

    def compile_step(config, phase, batch, log):
        compiled.append((config.method, config.birq.label_gradient, phase, config.model.layers))
        metrics = {"train/skipped": (0.0, 1.0)}
        return bench_step.Program(lambda: metrics, 2**20, 2**20, float(len(compiled)), 10)

    def interleave(runs, rounds, log):
        return {n: {"min_s": float(k), "median_s": 1.0} for k, n in enumerate(runs, start=1)}

    monkeypatch.setattr(bench_step, "compile_step", compile_step)
    monkeypatch.setattr(bench_step, "interleave", interleave)
    how = {"dtype": "float32", "rounds": 1, "log": lambda line: None}
    result = bench_birq.measure(bench_step.Shape(1, 1, 16, 4), **how)
    assert compiled == [
        ("best_rq", True, "pretrain", 4),
        ("birq", True, "pretrain", 4),
        ("birq", False, "pretrain", 4),
    ]
    over = result["over"]
    assert over["birq"] == {"min": 2.0, "median": 1.0, "flops": 2.0}
    assert over["fixed labels"] == {"min": 3.0, "median": 1.0, "flops": 3.0}
    lines = "\n".join(bench_birq.describe(result)).splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert any(line.startswith("time of birq / best_rq: 2.000 by minima") for line in lines)


@pytest.mark.slow
def test_a_finished_run_labels_for_the_next(tmp_path):
    """relabel end to end: the teacher in `frozen` is the first run's best encoder, and stays."""
    first = small(**{"phases.pretrain": 10, "phases.finetune": 2})
    loop.run(first, tmp_path / "first")
    config = small(**{"method": "relabel", "phases.pretrain": 10, "phases.finetune": 2})
    config.teacher_from = str(tmp_path / "first")
    final = loop.run(config, tmp_path / "second")
    # one length of batch: the FLOPs of a step are those without data
    assert final["step"] == sum(n for _, n, _ in build(config).phase_table) > 12
    config.model.dim = 24
    with pytest.raises(UserError, match="another encoder than the teacher"):
        loop.run(config, tmp_path / "third")
