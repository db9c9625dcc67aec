"""The lists of tests/mutants fit the code: each mutation can be applied, and its tests exist."""

import collections
import shlex
import subprocess
import sys

import pytest

from tests.mutants import run

ALL = [mutant for area in run.areas() for mutant in run.read(area)]


@pytest.mark.parametrize("area", run.areas())
def test_each_mutation_changes_one_place_that_still_compiles(area):
    for mutant in run.read(area):
        compile(mutant.apply(run.ROOT), mutant.file, "exec")


def test_each_mutation_has_a_name_and_tests_that_exist():
    counts = collections.Counter(mutant.id for mutant in ALL)
    assert [name for name, count in counts.items() if count > 1] == []
    for mutant in ALL:
        paths = [part for part in shlex.split(mutant.tests) if part.startswith("tests")]
        assert paths, mutant.id
        assert all((run.ROOT / path).exists() for path in paths), mutant


JUDGE = """
import pathlib, sys
from tests.mutants import run

judged = run.Judge(pathlib.Path(sys.argv[1]), 60.0)


def judge(**changes):
    fields = {"area": "", "id": "sign", "file": "sign.py", "old": "SIGN = 1", "new": "SIGN = -1"}
    mutant = run.Mutant(**{**fields, "breaks": "", **changes})
    print(judged(mutant))

judge(tests="test_sign.py::test_sign")
judge(tests="test_sign.py::test_nothing")
judge(tests="test_sign.py -k no_such_test")
judge(tests="test_sign.py::test_failing")
judge(tests="test_sign.py::test_sign", old="SIGN = 2")
"""


@pytest.mark.slow
def test_a_mutation_is_judged_by_its_tests_and_taken_back(tmp_path):
    (tmp_path / "bljust_jax").mkdir()
    code = tmp_path / "bljust_jax" / "sign.py"
    code.write_text("SIGN = 1\n")
    (tmp_path / "test_sign.py").write_text(
        "import pathlib\n\n\ndef test_sign():\n"
        "    assert 'SIGN = 1' in pathlib.Path('bljust_jax/sign.py').read_text()\n\n\n"
        "def test_nothing():\n    pass\n\n\ndef test_failing():\n    raise ValueError\n"
    )
    # a process of its own, since jax warns of forks
    command = [sys.executable, "-c", JUDGE, str(tmp_path)]
    done = subprocess.run(command, cwd=run.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [run.KILLED, run.SURVIVED, *[run.BROKEN] * 3], done.stderr
    assert code.read_text() == "SIGN = 1\n"
