"""F20: the same seed gives the same bits for any number of threads."""

import json

import pytest

from tests.helpers.processes import finish_all, train_on
from tests.helpers.workdirs import rows_without_perf


@pytest.mark.slow
def test_whole_runs_are_equal_whatever_the_threads(tmp_path):
    last = []
    for number, (threads, prefetch) in enumerate([(2, 8), (2, 8), (0, 1), (5, 3)]):
        flags = [f"--config.data.num_threads={threads}", f"--config.data.prefetch={prefetch}"]
        (out,) = finish_all(train_on(1, tmp_path / str(number), devices=2, flags=flags))
        last.append(json.loads(out.splitlines()[-1]))
    assert last == last[:1] * 4
    assert all(
        rows_without_perf(tmp_path / str(number)) == rows_without_perf(tmp_path / "0")
        for number in range(4)
    )
