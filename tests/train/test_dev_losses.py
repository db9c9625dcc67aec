"""Evaluation of phases that train no head that is scored: self-supervised losses of dev."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax import recipes
from bljust_jax.bilevel.types import TrainState
from bljust_jax.monitoring import goodput, metrics
from bljust_jax.parallel.mesh import make_mesh
from bljust_jax.train import loop
from bljust_jax.train.compile_pool import CompilePool
from bljust_jax.train.dev_losses import DevLosses, head_has_trained, sums
from bljust_jax.train.timeline import Timeline
from tests.helpers import corpora
from tests.helpers.systems import FACTS, config_for


def recipe_of(name, method):
    config = config_for(name)
    config.method = method
    config.phases.update(unit="step", explore=4, joint=4, finetune=4)
    config.data.sample_rate = corpora.RATE
    return recipes.load(config.recipe)(config, FACTS)


@pytest.mark.parametrize(
    ("name", "method", "first"),
    [("bljust", "bljust", 4), ("bljust", "supervised", 0), ("bljust", "ptft", None)],
)
def test_a_head_has_trained_from_the_first_step_of_its_loss(name, method, first):
    recipe = recipe_of(name, method)
    if first is None:  # half of the run
        first = recipe.phases[0].steps
    timeline = Timeline(recipe)
    trained = [head_has_trained(recipe, timeline, n) for n in range(timeline.total + 1)]
    assert trained == [n > first for n in range(timeline.total + 1)]


def test_losses_are_means_over_dev_and_the_same_each_time(tmp_path):
    """Against the sums of each batch by hand."""
    corpus = corpora.load(corpora.noise(tmp_path), eval_batch_seconds=6.0)
    recipe = recipe_of("bljust", "ptft")
    params, frozen, stats = jax.jit(recipe.init)(jax.random.key(0))
    state = TrainState(jnp.int32(0), params, (), params, frozen, stats)
    mesh = make_mesh(1)
    pool = CompilePool(mesh, 1, str, goodput.Clock())
    evaluate = DevLosses(recipe, corpus, mesh, pool)
    found = evaluate(state, frozenset({"cpc"}))
    objective = next(o for o in recipe.objectives if o.name == "cpc")
    totals = {"cpc/loss": np.zeros(2), "cpc/accuracy": np.zeros(2)}
    for n, (batch, _) in enumerate(corpus.eval_batches("dev")):
        rows = jax.tree.map(jnp.asarray, batch)
        for name, pair in sums(objective, state, rows, jax.random.key(n)).items():
            totals[name] += np.array([float(x) for x in pair])
    assert n > 0, "several batches"
    means = {f"dev/{name}": pytest.approx(s / w, rel=1e-4) for name, (s, w) in totals.items()}
    assert found == means
    assert evaluate(state, frozenset({"cpc"})) == found
    assert evaluate(state, frozenset({"ctc"})) == {}, "a loss that needs labels"


@pytest.mark.slow
def test_a_loss_of_frame_labels_is_of_the_utterances_that_have_some(tmp_path):
    """Those of dev need none: a loss without any is not reported."""
    folder = corpora.noise(tmp_path)
    plain = corpora.load(folder, eval_batch_seconds=6.0)
    names = {u.id: u for part in ("unlabelled", "dev") for u in plain.utterances(part)}
    lines = [f"{name}\t{'3 ' * round(u.duration * 50)}\n" for name, u in names.items()]
    (tmp_path / "all.km").write_text("".join(lines))
    given = {"frame_labels": str(tmp_path / "all.km"), **corpora.PLAIN, "join": (1, 1)}
    corpus = corpora.load(folder, eval_batch_seconds=6.0, **given)
    recipe = recipe_of("hubert", "ptft")
    params, frozen, stats = jax.jit(recipe.init)(jax.random.key(0))
    state = TrainState(jnp.int32(0), params, (), params, frozen, stats)
    mesh = make_mesh(1)
    pool = CompilePool(mesh, 1, str, goodput.Clock())
    found = DevLosses(recipe, corpus, mesh, pool)(state, frozenset({"hubert"}))
    assert set(found) == {f"dev/hubert/{name}" for name in ("loss", "accuracy", "majority")}
    assert found["dev/hubert/majority"] == 1, "all labels are 3"
    assert np.isfinite(found["dev/hubert/loss"])
    rows = json.loads("[" + ",".join((folder / "dev.jsonl").read_text().splitlines()) + "]")
    dev = corpora.write(folder, "other", [row | {"id": f"x{n}"} for n, row in enumerate(rows)])
    corpus = corpora.load(folder, eval_batch_seconds=6.0, **given, dev=dev)
    assert DevLosses(recipe, corpus, mesh, pool)(state, frozenset({"hubert"})) == {}


@pytest.mark.slow
def test_a_run_reports_them_until_its_head_trains(tmp_path):
    config = config_for("bljust")
    config.method = "ptft"
    config.data = corpora.settings(corpora.noise(tmp_path), buckets=(1.5,), **corpora.PLAIN)
    config.phases.update(unit="step", explore=2, joint=2, finetune=2)
    config.update(eval_every=2, save_every=100, log_every=2, compile_cache="")
    loop.run(config, tmp_path / "run")
    rows = metrics.read(tmp_path / "run" / "metrics.jsonl")
    trained = min(row["step"] for row in rows if "train/ctc/loss" in row)
    lower = [row["step"] for row in rows if "dev/cpc/loss" in row]
    scored = [row["step"] for row in rows if "dev/wer" in row and "final" not in row]
    assert lower
    assert max(lower) < trained <= min(scored)
    assert all(np.isfinite(row["dev/cpc/loss"]) for row in rows if "dev/cpc/loss" in row)
