"""Grids of comparisons: equal compute and trials for all methods, and no dev in tuning."""

import pathlib
import re

import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.comparison import fingerprint, table
from bljust_jax.comparison import grid as grids
from bljust_jax.data import corpus as corpora_of
from bljust_jax.train import budget
from tests.helpers import comparisons, shipped
from tests.helpers.comparisons import SPACE, TUNE
from tests.helpers.documents import ROOT
from tests.helpers.processes import run_command

SHIPPED = sorted((ROOT / "configs" / "compare").glob("*.py"))
by_file = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)


def every_run(grid):
    return [*grids.trials(grid), *grids.runs(grid, {})]


@by_file
def test_each_run_of_a_shipped_grid_is_a_config_that_trains(path):
    """All fields exist, in type and range; runs of one setting have the same budget; names and
    fingerprints differ."""
    grid = grids.load(path)
    runs = every_run(grid)
    made = {run.name: fingerprint.config_of(grid, run) for run in runs}
    assert len(made) == len(runs)
    assert len({*map(fingerprint.fingerprint, made.values())}) == len(runs)
    for run in runs:
        config = made[run.name]
        assert config.budget == run.tflop
        assert config.budget_unit == "tflop"
        assert config.eval_every >= 10**9
        assert config.stop.to_dict() == {"patience": 0, "perfect": 0}
        assert config.data.labelled_draw == run.draw


@by_file
def test_all_methods_of_a_shipped_grid_have_the_same_compute(path):
    """With the phases of each trial and run, to less than the tolerance of the table."""
    grid = grids.load(path)
    made = {}
    for run in every_run(grid):
        if run.kind == "trial" or run.draw == grid.draws[0]:
            config = fingerprint.config_of(grid, run)
            facts = shipped.facts(config)
            made[run.name] = budget.length(budget.scale(config, facts)[0], facts) / run.tflop
    assert len(made) >= len(grid.methods)
    off = {name: share for name, share in made.items() if abs(share - 1) > table.TOLERANCE}
    assert not off


PARSED = """
import sys
from bljust_jax import main
from bljust_jax.comparison.fingerprint import fingerprint
print(fingerprint(main.parse(sys.argv)[0]))
"""


@pytest.mark.parametrize("name", ["tune-slimipl-1", "tune-bljust-1"])
def test_the_command_of_a_run_has_the_config_of_its_fingerprint(name, tmp_path):
    """Tuples, names of methods, fields of pseudo-labels: as the training command parses them."""
    grid = grids.load(ROOT / "configs" / "compare" / "pilot.py")
    run = next(run for run in every_run(grid) if run.name == name)
    done = run_command(*grids.flags(grid, run, tmp_path), code=PARSED)
    expected = fingerprint.fingerprint(fingerprint.config_of(grid, run))
    assert (done.stdout.strip(), done.returncode) == (expected, 0), done.stderr


@by_file
def test_dev_never_decides_a_setting_of_a_shipped_grid(path):
    """A trial names neither the reported dev nor test, scores speakers held back from training,
    and each method has as many trials."""
    grid = grids.load(path)
    reported = {grid.fields.get("data.dev", ""), grid.fields.get("data.test", "")} - {""}
    trials = grids.trials(grid)
    for run in trials:
        data = fingerprint.config_of(grid, run).data
        assert data.held_back_speakers >= 1
        assert data.dev not in reported
        assert data.test == ""
    counts = [sum(run.method == method for run in trials) for method in grid.methods]
    assert len(set(counts)) == 1
    for run in grids.runs(grid, {}):
        assert fingerprint.config_of(grid, run).data.held_back_speakers == 0


@by_file
def test_trials_of_real_speech_score_speakers_of_training_alone(path, speech):
    """The utterances themselves: those scored in tuning are of the training data, and share
    neither a speaker nor a recording with what the trial trains on, nor with the reported dev."""
    grid = grids.load(path)
    if not grid.tune:
        return
    grid = grid._replace(fields={**grid.fields, "data.root": str(speech)})
    trial, run = grids.trials(grid)[0], grids.runs(grid, {})[0]

    def speakers(made, split):
        config = fingerprint.config_of(grid, made)
        loaded = corpora_of.load_corpus(config.data, seed=config.seed, phases=config.phases)
        return {u.speaker for u in loaded.utterances(split)}

    tuned, trained = speakers(trial, "dev"), speakers(trial, "unlabelled")
    assert len(tuned) == grid.tune.held_back
    assert not tuned & trained
    assert not tuned & speakers(run, "dev")
    assert tuned | trained == speakers(run, "unlabelled")
    assert len(speakers(run, "labelled")) == run.amount


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dev": "./dev.jsonl"}, "tune.dev=./dev.jsonl is the reported set"),
        ({"held_back": 0}, "tune.held_back must be 1 or more"),
        ({"trials": 4}, "supervised has 3 points for 4 trials"),
        ({"space": {"bljust": SPACE["bljust"]}}, "must have the same methods"),
        (
            {"space": SPACE | {"supervised": {"data.dev": ("a", "b", "c")}}},
            "data.dev names data, which are not tuned",
        ),
        (
            {"space": SPACE | {"supervised": {"eval_every": (1, 2, 3)}}},
            "eval_every is set by the comparison",
        ),
    ],
)
def test_tuning_that_is_unfair_or_reads_dev_is_refused(changes, message):
    grid = comparisons.grid(".", tune=TUNE._replace(**changes))
    with pytest.raises(UserError, match=re.escape(message)):
        grids.check(grid)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": {"eval_every": 5}}, "fields: eval_every is set by the comparison"),
        ({"methods": {"bljust": {"budget": 1.0}}}, "bljust: budget is set by the comparison"),
        ({"fields": {"data.labelled_speakers": 5}}, "data.labelled_speakers is set"),
        ({"draws": (0, 0)}, "draws must have one value or more, each once"),
        ({"tflops": ()}, "tflops must have one value or more"),
        ({"references": ("ptft",)}, "references: 'ptft' is none of methods"),
    ],
)
def test_a_grid_of_unequal_runs_is_refused(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        grids.check(comparisons.grid(".")._replace(**changes))


def test_trials_are_distinct_points_and_the_same_number_per_method():
    grids.check(comparisons.grid(".", tune=TUNE))
    for method in SPACE:
        chosen = grids.points(TUNE, method)
        assert len(chosen) == TUNE.trials
        assert len({str(point) for point in chosen}) == TUNE.trials
        assert chosen == grids.points(TUNE, method)
        first = {k: values[0] for k, values in SPACE[method].items() if "," not in k}
        assert first.items() <= chosen[0].items()
    rates = [point["lr.joint.peak"] for point in grids.points(TUNE, "bljust")]
    assert sorted(rates) == [1e-3, 2e-3]  # each value as often as possible
    everything = grids.points(TUNE._replace(trials=4), "bljust")
    assert {(p["lr.joint.peak"], p["penalty.cap"], p["penalty.slope"]) for p in everything} == {
        *((rate, *pair) for rate in (1e-3, 2e-3) for pair in ((0.3, 0.1), (1.0, 0.3)))
    }


def test_a_label_beyond_plus_is_the_same_method_with_other_fields():
    methods = {"bljust": {}, "bljust+best_rq": {"ssl": "best_rq"}, "supervised": {}}
    grid = comparisons.grid(".", methods=methods)
    run = next(run for run in grids.runs(grid, {}) if run.method == "bljust+best_rq")
    config = fingerprint.config_of(grid, run)
    assert (config.method, config.ssl) == ("bljust", "best_rq")
    assert "--config=quickstart:smoke,bljust" in grids.flags(grid, run, pathlib.Path("W"))


def test_the_fingerprint_is_of_what_changes_results():
    grid = comparisons.grid(".")
    first, second = grids.runs(grid, {})[:2]

    def of(run=first, **fields):
        made = run._replace(fields={**run.fields, **fields})
        return fingerprint.fingerprint(fingerprint.config_of(grid, made))

    assert of() == of(**{"data.root": "/elsewhere", "compile_cache": "", "data.num_threads": 7})
    others = [of(second), of(seed=1), of(**{"lr.supervised.peak": 0.1}), of(**{"data.dev": "x"})]
    assert len({of(), *others}) == 5


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.jion", (1, 2), "config.data.jion: no such field, did you mean 'join'"),
        ("dat.join", (1, 2), "config.dat.join: no such field"),
        ("data.join", "x", "config.data.join='x'"),
        ("ema_decay", 2.0, "config.ema_decay=2.0 must be"),
    ],
)
def test_a_wrong_field_is_one_line(field, value, message):
    grid = comparisons.grid(".")
    run = grids.runs(grid, {})[0]
    with pytest.raises(UserError, match=re.escape(message)):
        fingerprint.config_of(grid, run._replace(fields={field: value}))


def test_a_file_that_is_no_grid_is_one_line(tmp_path):
    path = tmp_path / "pilto.py"
    with pytest.raises(UserError, match=r"pilto.py: no such file"):
        grids.load(path)
    path.write_text("def get_grid():\n    return {'confg': 1}\n")
    with pytest.raises(UserError, match=r"pilto.py: no grid: .*confg"):
        grids.load(pathlib.Path(path))
