"""`bljust compare`: grids by file, runs by folder, and real runs of the smallest grid."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from bljust_jax import compare
from bljust_jax.comparison import grid as grids
from bljust_jax.comparison import rows, study
from bljust_jax.comparison.processes import Slot
from tests.helpers import compile_cache
from tests.helpers.documents import ROOT
from tests.helpers.processes import run_command
from tests.helpers.reported_runs import make_run

SMOKE = ROOT / "configs" / "compare" / "smoke.py"
CHILD = "import sys\nfrom bljust_jax import main\nsys.exit(main.main())\n"


def smallest():
    """The grid of `--smoke`, with the programs that tests keep."""
    grid = grids.load(SMOKE)
    return grid._replace(fields={**grid.fields, "compile_cache": str(compile_cache.folder() or "")})


class Finished:
    """A run trained to its end in a forked process."""

    def __init__(self, job, slot):
        del slot
        done = run_command(*job.flags, code=CHILD)
        job.log.write_text(done.stderr)
        self._code = done.returncode

    def poll(self):
        return self._code


@pytest.mark.slow
def test_a_run_made_again_elsewhere_gives_the_same_row(tmp_path):
    """The run itself, in another workdir, by its own command: all but times are equal."""
    grid = smallest()._replace(methods={"bljust": {}}, draws=(1,), references=())
    found = []
    for name in ("a", "b"):
        place = study.Place(tmp_path / name, tmp_path / f"{name}.jsonl")
        own = study.Study(grid, place, [Slot("", {})], Finished)
        (run,) = own.run({})
        found.append(own.rows.by_name[run.name])
    assert rows.same_results(*found)
    assert found[0]["tflop"] == pytest.approx(run.tflop, rel=0.02)
    assert found[0]["updates"].keys() == {"ctc", "cpc"}
    assert len(found[0]["utterances"]) > 0


def start(tmp_path, runs):
    """`bljust compare` of the smallest grid with one method: two runs."""
    path = tmp_path / "smoke.py"
    one = SMOKE.read_text().replace(', "bljust": {}', "").replace('("supervised",)', "()")
    path.write_text(one)
    folders = [f"--runs={tmp_path / runs}", f"--results={tmp_path}"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "bljust_jax.compare", path, *folders],
        env=env,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(process, met):
    until = time.monotonic() + 300
    while not met():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_comparison_goes_on_from_its_rows_on_another_machine(tmp_path, number):
    """Ended in the second run, then continued with other workdirs: the rows of an unbroken one."""
    path = tmp_path / "smoke.jsonl"

    def second_run_logs():
        done = path.is_file() and path.read_bytes().count(b"\n") == 1
        return done and len(list((tmp_path / "a" / "smoke").glob("*/metrics.jsonl"))) == 2

    process = start(tmp_path, "a")
    wait_for(process, second_run_logs)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (75 if number == signal.SIGTERM else -9)
    first = path.read_text().splitlines()
    assert len(first) == 1
    process = start(tmp_path, "another machine")
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    broken = rows.read(path).by_name
    assert json.loads(first[0]) in broken.values()
    assert len(broken) == 2

    path.rename(tmp_path / "broken.jsonl")
    process = start(tmp_path, "whole")
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    for name, row in rows.read(path).by_name.items():
        assert rows.same_results(row, broken[name])
    page = (tmp_path / "smoke.md").read_text()
    assert "2 of 2 runs." in page


def test_folders_are_compared_as_by_report(tmp_path, capsys):
    runs = [str(make_run(tmp_path / name)) for name in ("a", "b")]
    assert compare.main([*runs, "--out", str(tmp_path / "out")]) == 0
    assert "| a" in capsys.readouterr().out
    assert (tmp_path / "out" / "comparison.md").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: RUN, or several to compare"),
        (["run", "--tune"], "--tune and --collect are for a grid: name GRID.py"),
        (["a.py", "b.py"], "a.py is a grid: name it alone"),
        (["none.py"], "none.py: no such file"),
        (["a.py", "--smoke"], "--smoke trains a grid of its own"),
        (["a.py", "--jobs=0"], "--jobs 0 must be 1 or above"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    assert compare.main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_collect_trains_nothing(tmp_path, capsys):
    flags = ["--collect", f"--results={tmp_path}", f"--runs={tmp_path}"]
    assert compare.main([str(SMOKE), *flags]) == 0
    assert "0 of 4 runs. Unfinished." in capsys.readouterr().out
    assert [path.name for path in pathlib.Path(tmp_path).iterdir()] == ["smoke.md"]
