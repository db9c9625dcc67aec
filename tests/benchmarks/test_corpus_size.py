"""Benchmark of large corpora, on small ones: all steps run, and cost grows no faster than rows."""

import pytest

from bljust_jax.benchmarks import corpus_size
from bljust_jax.data import source_index


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_all_steps_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(source_index, "LEAST", 100)
    uri = corpus_size.write_table(tmp_path, 300)
    found = {**corpus_size.read(uri), **corpus_size.measure(uri)}
    assert list(tmp_path.glob("300.csv.index-*.arrow"))
    assert found["rows"] == 300
    assert all(found[step][0] >= 0 for step in corpus_size.STEPS)
    assert 0 < found["gigabytes"] < 100
    lines = corpus_size.table([found | {"gigabytes to read": 1.0}])
    assert "300" in lines[1]


@pytest.mark.slow
def test_cost_is_linear_in_the_number_of_rows(tmp_path):
    """Four times the rows take less than seven times the CPU seconds, least of three."""
    seconds = {}
    for rows in (10_000, 40_000):
        uri = corpus_size.write_table(tmp_path, rows)
        corpus_size.read(uri)
        runs = [corpus_size.measure(uri) for _ in range(3)]
        seconds[rows] = [min(run[step][0] for run in runs) for step in ("corpus", "epoch")]
    for small, large in zip(*seconds.values(), strict=True):
        assert large < 7 * max(small, 0.05)
