"""A comparison from its first trial to its page, with children that do not train."""

import json
import os
import signal

import pytest

from bljust_jax.common.errors import Preempted, UserError
from bljust_jax.comparison import grid as grids
from bljust_jax.comparison import page, processes, rows, study
from bljust_jax.comparison.processes import Slot
from tests.helpers import comparisons
from tests.helpers.comparisons import TUNE, Child

ONE = [Slot("", {})]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "POLL", 0.001)
    return comparisons.corpus(tmp_path)


class Starts:
    """Starts `Child`s; `of` is what to change by name; `names` are those started."""

    def __init__(self, of=None, **given):
        self.names, self.slots, self._of, self._given = [], [], of or {}, given

    def __call__(self, job, slot):
        self.names.append(job.run.name)
        self.slots.append(slot)
        return Child(job, slot, **self._given, **self._of.get(job.run.name, {}))


def make(folder, starts, where=ONE, place="a", results="x.jsonl", **changes):
    grid = comparisons.grid(folder, **changes)
    return study.Study(grid, study.Place(folder / place, folder / results), where, starts)


def test_a_grid_is_trained_once_and_goes_on_from_its_rows_anywhere(folder):
    starts = Starts()
    own = make(folder, starts)
    runs = own.run({})
    assert starts.names == [run.name for run in runs]
    assert len(starts.names) == 4
    first = (folder / "x.jsonl").read_bytes()
    again = Starts()
    make(folder, again, place="another machine").run({})
    assert again.names == []
    assert (folder / "x.jsonl").read_bytes() == first


def test_only_what_lacks_a_row_is_trained_and_finished_workdirs_are_not_trained_again(folder):
    make(folder, Starts()).run({})
    path = folder / "x.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]))
    elsewhere = Starts()
    make(folder, elsewhere, place="b").run({})
    assert elsewhere.names == [json.loads(line)["name"] for line in lines[2:]]
    path.write_text(lines[0])
    here = Starts()
    make(folder, here).run({})  # its workdirs are finished: killed before the rows
    assert here.names == []
    found = rows.read(path).by_name
    for line in lines:
        row = json.loads(line)
        assert rows.same_results(found[row["name"]], row)


def test_a_failed_child_ends_the_comparison_with_its_last_line(folder):
    failing = grids.runs(comparisons.grid(folder), {})[1].name
    starts = Starts({failing: {"code": 2}})
    with pytest.raises(UserError, match=rf"{failing} ended with code 2: configured wrongly \(log"):
        make(folder, starts).run({})
    assert len(rows.read(folder / "x.jsonl").by_name) == 1


def test_a_child_without_final_metrics_is_no_row(folder):
    starts = Starts(edit=lambda final: final.pop("final"))
    with pytest.raises(UserError, match="ended without its final metrics"):
        make(folder, starts).run({})
    assert not (folder / "x.jsonl").exists()


def test_a_preempted_child_ends_the_comparison_as_a_signal(folder):
    with pytest.raises(Preempted):
        make(folder, Starts(code=75)).run({})


def test_sigterm_ends_all_children_and_the_comparison(folder):
    children = []

    def start(job, slot):
        children.append(Child(job, slot, code=None))
        if len(children) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return children[-1]

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="SIGTERM"):
        make(folder, start, where=ONE * 2).run({})
    assert signal.getsignal(signal.SIGTERM) == before
    assert [child.signals for child in children] in ([[signal.SIGTERM]] * 2, [[signal.SIGTERM], []])


def test_jobs_run_at_once_each_in_a_slot_of_its_own(folder):
    slots = [Slot("0", {}), Slot("1", {})]
    starts = Starts()
    make(folder, starts, where=slots).run({})
    assert starts.slots[:2] == slots


def test_trials_are_trained_first_and_the_best_sets_the_fields_of_the_runs(folder):
    starts = Starts()
    own = make(folder, starts, tune=TUNE)
    with pytest.raises(UserError, match=r"4 of 4 trials have no row in .*add --tune"):
        own.tune(allowed=False)
    tuned = own.tune(allowed=True)
    trials = grids.trials(own.grid)
    assert starts.names == [run.name for run in trials]
    for method in own.grid.methods:
        mine = [run for run in trials if run.method == method]
        wers = [own.rows.by_name[run.name]["wer"] for run in mine]
        assert tuned[method] == grids.points(TUNE, method)[wers.index(min(wers))]
        assert all("utterances" not in own.rows.by_name[run.name] for run in mine)
    for run in own.run(tuned):
        assert tuned[run.method].items() <= run.fields.items()
        assert own.rows.by_name[run.name]["fields"] == run.fields
    again = Starts()
    later = make(folder, again, place="b", tune=TUNE)
    later.run(later.tune(allowed=False))
    assert again.names == []


def test_other_trials_refuse_the_rows_of_runs(folder):
    own = make(folder, Starts(), tune=TUNE)
    tuned = own.tune(allowed=True)
    own.run(tuned)
    other = {**tuned, "supervised": {"lr.supervised.peak": 0.5}}
    message = r"supervised-2-.* is of another config \(lr.supervised.peak .* -> 0.5\)"
    with pytest.raises(UserError, match=message):
        own.run(other)


def test_a_trial_that_diverges_counts_as_wrong_and_a_run_does_not(folder):
    trials = grids.trials(comparisons.grid(folder, tune=TUNE))

    def start(job, slot):
        bad = job.run.name == trials[0].name or job.run.kind == "run"
        child = Child(job, slot, code=2 if bad else 0)
        if bad:
            (job.workdir / "not_finite.json").write_text("{}")
        return child

    own = make(folder, start, tune=TUNE)
    tuned = own.tune(allowed=True)
    assert own.rows.by_name[trials[0].name]["wer"] == rows.DIVERGED
    assert tuned["supervised"] == grids.points(TUNE, "supervised")[1]
    with pytest.raises(UserError, match="ended with code 2"):
        own.run(tuned)


def test_the_status_names_progress_and_time_left(folder):
    own = make(folder, Starts())
    run = grids.runs(own.grid, {})[0]
    job = processes.Job(run, [], folder / "a" / "b")
    assert processes.describe([job], 2, 4, 0.0) == f"1 of 4 runs done; {run.name} 0%"
    comparisons.write_run(job.workdir, run, run.tflop / 2)
    assert processes.progress(job) == pytest.approx(0.5)
    text = processes.describe([job], 2, 4, 24000.0)  # 48 s per run
    assert text == f"1 of 4 runs done; {run.name} 50%; 2.0 min left"


@pytest.mark.parametrize("jobs", [1, 2])
def test_slots_share_the_cores(jobs, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    found = [slot.cores for slot in processes.slots(jobs)]
    assert found == ([""] if jobs == 1 else ["0,1", "2,3"])
    with pytest.raises(UserError, match="--jobs 6: there are 5 cores"):
        processes.slots(6)


def test_each_gpu_is_a_slot(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(processes.shutil, "which", lambda _: "/bin/nvidia-smi")
    found = [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in processes.slots(2)]
    assert found == ["3", "5"]
    with pytest.raises(UserError, match="--jobs 3: there are 2 GPUs"):
        processes.slots(3)


def test_the_page_has_a_table_answers_and_pictures(folder):
    own = make(folder, Starts(), tflops=(0.002, 0.004), amounts=(1, 2))
    runs = own.run({})
    lines = page.write(own.grid, runs, own.rows.by_name, folder / "x.jsonl")
    assert lines[2] == "16 of 16 runs."
    written = (folder / "x.md").read_text()
    pictures = sorted(path.name for path in folder.glob("x-*.png"))
    assert pictures == [
        *("x-compute-1.png", "x-compute-2.png"),
        *(f"x-differences-{n}.png" for n in range(1, 5)),
        *("x-labels-0.002.png", "x-labels-0.004.png"),
        *(f"x-runs-{n}.png" for n in range(1, 5)),
    ]
    assert all(f"![{name}]({name})" in written for name in pictures)
    few = [run for run in runs if run.draw == 0]
    some = {run.name: own.rows.by_name[run.name] for run in few}
    assert page.write(own.grid, runs, some, folder / "y.jsonl")[2] == "8 of 16 runs. Unfinished."
