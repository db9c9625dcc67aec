"""Dry runs of the shipped configs: golden files, and a plan that is that of the run.

The files are in tests/golden/dry_run. Write them anew after a change of a config that is meant, and
read the difference before it is committed:

    BLJUST_UPDATE=1 python -m pytest tests/train/test_dry_run.py -k golden
"""

import json
import os
import pathlib
import re

import jax
import pytest

from bljust_jax import recipes
from bljust_jax.benchmarks.chips import CHIPS
from bljust_jax.common.errors import UserError
from bljust_jax.monitoring import peak_flops
from bljust_jax.train import dry_run, phase_table
from configs import birq, librispeech, m2asr, manifest, quickstart
from tests.helpers import corpora, shipped
from tests.helpers.documents import load_config
from tests.helpers.processes import run_command

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "dry_run"
BASES = (librispeech, birq, m2asr, quickstart)
CASES = [(module, variant, "") for module, variant in shipped.names()]
CASES += [
    (module, variant, method)
    for module in BASES
    for variant in ("",)
    for method in shipped.methods(shipped.config(module, variant))
    if method != shipped.config(module, variant).method
]


def name_of(module, variant, method):
    parts = filter(None, (*variant.split(","), method))
    return "-".join((shipped.label(module), *parts))


@pytest.mark.daily("librispeech", "m2asr", "quickstart")
@pytest.mark.parametrize("case", CASES, ids=lambda case: name_of(*case))
def test_golden(case):
    found = "\n".join(dry_run.describe(shipped.config(*case))) + "\n"
    path = GOLDEN / f"{name_of(*case)}.txt"
    if os.environ.get("BLJUST_UPDATE"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(found)
    assert found == path.read_text()


def test_each_golden_file_has_a_config():
    assert {path.stem for path in GOLDEN.glob("*")} == {name_of(*case) for case in CASES}


def test_the_command_prints_it_without_data_and_compiles_nothing():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name)
    )
    dry_run.describe(shipped.config(manifest, "digits", "ptft"))
    assert not [name for name in compiled if "backend_compile" in name]
    flags = ("--config=configs/librispeech.py:script", "--dry_run", "--device=v5e")
    done = run_command(
        *flags, code="import sys; from bljust_jax import main; sys.exit(main.main())"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Dry run: bljust, method bljust, encoder conformer, seed 0\n")
    assert "TPU v5e" in done.stdout
    assert done.seconds < 15, "seconds of the processor"


def test_an_unknown_device_and_a_penalty_of_0_are_one_line():
    config = quickstart.get_config()
    with pytest.raises(UserError, match="--device=h20: there is none, did you mean 'h200'"):
        dry_run.describe(config, "h20")
    config.penalty.slope = 0.0
    with pytest.raises(UserError, match="the weight of cpc stays 0"):
        dry_run.describe(config)


def test_devices_of_the_plan_have_a_peak():
    assert {chips.device for chips in CHIPS.values()} <= set(peak_flops.DEVICES.values())
    for device in peak_flops.DEVICES.values():
        assert peak_flops.flops([device.kind], "bfloat16") > 0


def unsharded():
    """(config, phase, rows per device, seconds, bytes of temporaries) of the steps in
    results/aot.json that only split the batch."""
    for row in json.loads((ROOT / "results" / "aot.json").read_text()).values():
        config, phase, _ = row["name"].split(" ", 2)
        axis, *others = row["mesh"].split(" x ")
        if not others and axis.startswith("data "):
            rows, seconds = max(re.findall(r"(\d+) x ([\d.]+) s", " ".join(row["rows"].values())))
            devices = int(axis.removeprefix("data "))
            yield config, phase, int(rows) // devices, float(seconds), row["temporaries"]


def test_memory_is_about_that_of_compiled_steps():
    """Gradients of both losses and activations of one, against a compiler's temporaries."""
    found = list(unsharded())
    assert len(found) >= 4
    for address, phase, rows, seconds, temporaries in found:
        config = load_config(f"configs/{address}")
        recipe = recipes.load(config.recipe)(config, shipped.facts(config))
        assert phase == "joint"
        params = jax.eval_shape(lambda recipe=recipe: recipe.init(jax.random.key(0))[0])
        gradients = 2 * 4 * sum(x.size for x in jax.tree.leaves(params))
        need = gradients + dry_run.activation_bytes(config, recipe, rows, seconds)
        assert 1 / 1.5 < need / temporaries < 1.5, (address, need, temporaries)


def test_hours_are_those_of_the_data_where_they_are(tmp_path):
    corpora.noise(tmp_path)
    config = librispeech.get_config("S")
    config.data.update(train=str(tmp_path / "train.jsonl"), unlabelled="", root="")
    config.data.update(batch_seconds=2.0, unlabelled_batch_seconds=4.0)
    assumed = dry_run.assume(config)
    # 40 utterances of 0.2 + 0.03 i seconds: 31.4 s
    assert assumed.facts.steps_per_epoch == {"labelled": 16, "unlabelled": 8}
    assert all("(the data)" in line for line in assumed.lines)


def test_unlabelled_hours_bound_the_steps_of_an_epoch():
    config = librispeech.get_config()
    whole = dry_run.assume(config)
    config.data.unlabelled_hours = 100.0
    for with_train, found in ((True, 200.6), (False, 100.0)):
        config.data.unlabelled_with_train = with_train
        assumed = dry_run.assume(config)
        assert assumed.facts.steps_per_epoch["labelled"] == whole.facts.steps_per_epoch["labelled"]
        seconds = config.data.unlabelled_batch_seconds
        assert assumed.facts.steps_per_epoch["unlabelled"] == round(found * 3600 / seconds)
        assert assumed.lines[1].startswith(f"unlabelled: {found:g} h, ")
        assert "data.unlabelled_hours of 860.3 h" in assumed.lines[1]


@pytest.mark.parametrize(
    ("unit", "warmup", "steps"),
    [("step", 30, 30), ("share", 0.25, 0.25 * 318), ("hour", 0.5, 0.5 * 3600 / 26.5)],
)
def test_a_warmup_is_given_in_steps_hours_or_a_share_of_its_phase(unit, warmup, steps):
    """A joint phase of 318 steps with labelled batches of 13 x 2 and 9 x 3 s, 26.5 s on average."""
    config = quickstart.get_config()
    config.lr.joint.update(warmup=warmup, warmup_unit=unit)
    facts = shipped.facts(config)
    recipe = recipes.load(config.recipe)(config, facts)
    row = phase_table.phase_table(config, recipe, facts)[1]
    assert (row.name, row.steps, row.warmup) == ("joint", 318, round(steps))
    rate = recipe.phases[1].lr["encoder"]
    peak = config.lr.joint.peak
    assert rate(row.warmup - 1) == pytest.approx(peak)
    assert rate(0) == pytest.approx(peak / round(steps))
    line = next(x for x in dry_run.describe(config) if x.startswith("Warm-up: "))
    assert f"joint {round(steps)} steps ({round(steps) / 318:.1%})" in line
    assert config.lr.joint.warmup_unit == unit, "the config stays as it was given"


@pytest.mark.parametrize(
    ("hours", "explored", "steps"),
    [(0.1, 0.1 * 3600 / 24, 0.1 * 3600 / 26.5), (0.0, 36, 105), (50.0, 36, 105)],
)
def test_an_average_in_hours_is_at_most_a_share_of_its_phase(hours, explored, steps):
    """A last phase of 420 steps with labelled batches of 13 x 2 and 9 x 3 s, 26.5 s on average, and
    exploration of 144 steps with unlabelled ones of 12 x 2 and 8 x 3 s; a quarter of each."""
    config = quickstart.get_config()
    config.ema_hours = hours
    config.data.unlabelled_batch_seconds = 24.0
    facts = shipped.facts(config)
    recipe = recipes.load(config.recipe)(config, facts)
    first, _, last = phase_table.phase_table(config, recipe, facts)
    assert (first.name, first.steps) == ("explore", 144)
    assert first.ema_steps == pytest.approx(explored)
    assert (last.name, last.steps) == ("finetune", 420)
    assert last.ema_steps == pytest.approx(steps)
    assert last.ema == pytest.approx(1 - (1 - 1 / steps) ** 420)
    line = next(x for x in dry_run.describe(config) if x.startswith("Averaged parameters: "))
    assert line.endswith(f", averaged over {steps:.0f} steps")


def test_a_warmup_of_more_than_its_phase_is_one_line():
    config = quickstart.get_config()
    config.lr.joint.update(warmup=5.0, warmup_unit="share")
    with pytest.raises(UserError, match=r"config\.lr: warmup=5 is above 1"):
        dry_run.describe(config)


def test_batches_that_vary_in_seconds_are_noted():
    config = quickstart.get_config()
    assert not any("vary by" in line for line in dry_run.describe(config))
    config.data.update(buckets=(2.0, 8.0), batch_seconds=15.0)  # 7 x 2 = 14 s, 1 x 8 s
    lines = [line for line in dry_run.describe(config) if "vary by" in line]
    assert [line.partition(" times")[0] for line in lines] == ["labelled: batches vary by 1.8"]
    config.data.num_buckets = -1
    lines = dry_run.describe(config)
    assert not any("vary by" in line for line in lines)
    assert "Batches: assumed of (2.0, 8.0) s; a run chooses lengths from its data" in lines


def test_a_course_is_that_of_its_schedule():
    tent = phase_table.course(lambda k: min(k, 100 - k), 101)
    assert tent == (0, 50, 0, 50)
    assert phase_table.course(lambda k: 3.0, 1) == (3.0, 3.0, 3.0, 3.0)


def test_the_table_adds_up_to_the_run():
    config = quickstart.get_config()
    facts = shipped.facts(config)
    recipe = recipes.load(config.recipe)(config, facts)
    rows = phase_table.phase_table(config, recipe, facts)
    assert [(row.name, row.steps) for row in rows] == [(n, s) for n, s, _ in recipe.phase_table]
    assert sum(row.share for row in rows) == pytest.approx(1)
    joint = next(row for row in rows if row.name == "joint")
    step = recipes.step_flops(config, facts, recipe.objectives)(frozenset({"ctc", "cpc"}))
    assert joint.total == pytest.approx(joint.steps * step)
    assert joint.weights[1].most == pytest.approx(config.penalty.cap)
    line = phase_table.describe_row(joint)
    assert line.startswith(f"phase joint: {joint.steps} steps of ctc > cpc, ")
    assert line.endswith("weight of cpc 0 to 0.3, at most 0.3")
