"""`config.budget`: one number for the length of a run."""

import pytest

from bljust_jax import recipes
from bljust_jax.common.errors import UserError
from bljust_jax.train import budget, dry_run, phase_table
from configs import birq, librispeech, m2asr, quickstart, wav2vec2_just
from tests.helpers import shipped

CASES = [
    (quickstart, "", ""),
    (quickstart, "ptft", ""),
    (librispeech, "", "alternating"),
    (birq, "tiny", ""),
    (m2asr, "digits", ""),
    (wav2vec2_just, "digits", ""),
]


def table(config, facts):
    recipe = recipes.load(config.recipe)(config, facts)
    return phase_table.phase_table(config, recipe, facts)


@pytest.mark.parametrize(("module", "variant", "method"), CASES)
@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_each_schedule_has_the_same_course_at_another_length(module, variant, method, factor):
    """Steps, warm-ups and intervals times the factor, to the rounding of one step or interval;
    rates and level weights at the start, middle and end as before."""
    config = shipped.config(module, variant, method)
    facts = shipped.facts(config)
    config.budget = factor * budget.length(config, facts)
    made, lines = budget.scale(config, facts)
    assert f"times {factor:g}" in lines[0]
    assert budget.length(made, facts) == pytest.approx(config.budget, rel=0.02)
    for was, now in zip(table(config, facts), table(made, facts), strict=True):
        assert (was.name, was.levels) == (now.name, now.levels)
        assert now.steps == pytest.approx(factor * was.steps, rel=0.02, abs=1)
        assert now.warmup == pytest.approx(factor * was.warmup, abs=1)
        for kind, rate in was.rates.items():
            assert now.rates[kind].most == pytest.approx(rate.most, rel=0.05)
        for before, after in zip(was.weights, now.weights, strict=True):
            assert after.end == pytest.approx(before.end, rel=0.05, abs=1e-3)
    for name in budget.INTERVALS:
        assert made[name] == max(1, round(factor * config[name]))
    assert config.budget == budget.scale(config, facts)[0].budget
    assert made.phases.unit == config.phases.unit


def test_epochs_are_passes_of_the_labelled_data():
    config = shipped.config(librispeech, "", "supervised")
    facts = shipped.facts(config)
    config.update(budget=10.0, budget_unit="epoch")
    made, _ = budget.scale(config, facts)
    assert sum(row.steps for row in table(made, facts)) == pytest.approx(
        10 * facts.steps_per_epoch["labelled"], rel=0.01
    )


def test_without_a_budget_a_config_is_itself():
    config = quickstart.get_config()
    assert budget.scale(config, shipped.facts(config)) == (config, [])


def test_a_budget_without_a_step_for_a_phase_is_one_line():
    config = quickstart.get_config()
    config.budget = 2.0
    with pytest.raises(UserError, match=r"config\.budget leaves a phase without a step: raise it"):
        budget.scale(config, shipped.facts(config))


def test_the_dry_run_shows_the_result_and_warns_of_long_warmups():
    config = quickstart.get_config()
    config.budget = 600.0
    config.lr.joint.update(warmup=0.5, warmup_unit="share")
    lines = dry_run.describe(config)
    assert any(line.startswith("config.budget=600 encoder gradients: ") for line in lines)
    said = "warning: phase joint: the learning rate rises for "
    assert [line[: len(said)] for line in lines if line.startswith("warning: ")] == [said]
    assert not any("warning" in line for line in dry_run.describe(quickstart.get_config()))
