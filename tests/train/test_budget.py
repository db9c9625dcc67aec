"""`config.budget`: one number for the length of a run."""

import pytest

from bljust_jax import recipes
from bljust_jax.common.errors import UserError
from bljust_jax.monitoring import peak_flops
from bljust_jax.train import budget, budget_trial, compile_only, dry_run, phase_table
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


@pytest.mark.daily("0.5-*quickstart-ptft-", "3.0-*m2asr*", "0.5-*birq*")
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


@pytest.mark.parametrize("method", ["supervised", "ptft", "bljust", "alternating"])
def test_a_budget_in_tflop_is_that_of_encoder_and_heads(method):
    """Whatever the shares of the phases: to half a step of each."""
    config = quickstart.get_config(method)
    config.phases.explore *= 3
    facts = shipped.facts(config)
    config.update(budget=2.0, budget_unit="tflop")
    made, lines = budget.scale(config, facts)
    assert "config.budget=2 TFLOP: lengths" in lines[0]
    spent = sum(row.total for row in table(made, facts)) / 1e12
    assert spent == pytest.approx(2.0, rel=0.01)
    assert spent == pytest.approx(budget.length(made, facts), rel=1e-6)


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


def timed(config, facts, evaluation=1.5, last=4.0):
    """Other seconds per step in each phase."""
    names = budget.steps_by_phase(config, facts)
    steps = {name: 0.05 * (n + 1) for n, name in enumerate(names)}
    return budget.Measured("assumed", steps, evaluation, last)


@pytest.mark.parametrize(("module", "variant", "method"), CASES)
@pytest.mark.parametrize(("number", "unit", "seconds"), [(9.0, "minute", 540), (0.4, "hour", 1440)])
def test_a_time_is_that_of_all_steps_and_evaluations(
    module, variant, method, number, unit, seconds
):
    """Steps times seconds per step, and evaluations: the budget, to a step and an evaluation."""
    config = shipped.config(module, variant, method)
    facts = shipped.facts(config)
    config.eval_every = sum(budget.steps_by_phase(config, facts).values()) // 12
    config.update(budget=number, budget_unit=unit)
    measured = timed(config, facts)
    made, lines = budget.scale(config, facts, measured)
    steps = budget.steps_by_phase(made, facts)
    training = sum(n * measured.steps[name] for name, n in steps.items())
    evaluations = -(-sum(steps.values()) // made.eval_every)
    assert evaluations == pytest.approx(12, abs=1)
    slack = 2 * sum(measured.steps.values()) + 1.5
    assert training + 1.5 * evaluations + 4.0 == pytest.approx(seconds, abs=slack)
    assert f"config.budget={number:g} {unit}s: " in lines[0]
    assert lines[1].startswith(f"seconds per step, assumed: {next(iter(steps))} 0.05")


def quickstart_of(number, unit="minute"):
    config = quickstart.get_config()
    config.update(budget=number, budget_unit=unit)
    return config


def test_a_time_that_evaluations_fill_is_refused():
    config = quickstart_of(1.0)
    facts, steps = shipped.facts(config), dict.fromkeys(("explore", "joint", "finetune"), 0.1)
    count = -(-sum(budget.steps_by_phase(config, facts).values()) // config.eval_every)
    fits = budget.Measured("assumed", steps, 30.0 / count, 0.0)
    assert budget.scale(config, facts, fits)[1][1].endswith("last scores: 30 s")
    message = (
        rf"config\.budget=1 minutes: {count} evaluations and the last scores alone take 31 s: raise"
        rf" it, or config\.eval_every above {config.eval_every}"
    )
    with pytest.raises(UserError, match=message):
        budget.scale(config, facts, fits._replace(last=1.0))


def test_a_time_is_for_one_process_and_for_a_run(monkeypatch):
    config = quickstart_of(2.0, "hour")
    budget_trial.check(config)
    with pytest.raises(UserError, match=r"a run measures its schedule, .* or tflop"):
        compile_only.compile_config(config)
    with pytest.raises(ValueError, match="depends on the machine"):
        budget.scale(config, shipped.facts(config))
    monkeypatch.setattr(budget_trial.jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"budget_unit=hour is for one process: .* or tflop"):
        budget_trial.check(config)
    config.budget_unit = "epoch"
    budget_trial.check(config)


def test_the_dry_run_estimates_a_time_by_the_device():
    """FLOPs of all phases over 22.9 % of the peak, the geometric mean of 35 and 15 %."""
    config = quickstart_of(30.0)
    config.model.dtype = "bfloat16"
    found = {}
    for device in ("h200", "v5e"):
        lines = dry_run.describe(config, device)
        (line,) = (line for line in lines if line.startswith("seconds per step, estimated for one"))
        assert "at 23% of its peak, where a run measures them on its machine" in line
        (scaled,) = (line for line in lines if line.startswith("config.budget=30 minutes: "))
        found[device] = float(scaled.split(" times ")[1].split(",")[0])
        facts = dry_run.assume(config).facts
        assumed = dry_run.estimate(config, facts, device)
        chip = peak_flops.DEVICES[device]
        peak = peak_flops.flops([chip.kind], "bfloat16")
        whole = sum(row.total for row in table(config, facts))
        assert found[device] == pytest.approx(1800 / (whole / peak / 0.229), rel=0.01)
        assert assumed.evaluation == assumed.last == 0
    assert found["h200"] > 4 * found["v5e"]
    with pytest.raises(UserError, match=r"no peak for float32 is known, which config\.budget"):
        dry_run.describe(quickstart_of(30.0), "v5e")
