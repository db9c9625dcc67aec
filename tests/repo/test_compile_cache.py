"""The compile cache of the tests: where it lies, and that it stays small."""

import os

import jax
import pytest

from bljust_jax.parallel import compile_cache as runs
from configs import defaults
from tests.helpers import compile_cache


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.delenv(compile_cache.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_the_folder_is_outside_the_clone_and_keyed_by_what_changes_programs(monkeypatch, tmp_path):
    found = compile_cache.folder()
    assert found.parent == tmp_path / "bljust_jax" / "tests"
    assert found.name.startswith(f"jax{jax.__version__}-python3.")
    monkeypatch.setenv("XLA_FLAGS", "--xla_another_flag")
    assert compile_cache.folder() != found


def test_the_variable_chooses_a_folder_or_none(monkeypatch, tmp_path):
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path / "own"))
    assert compile_cache.folder() == tmp_path / "own"
    monkeypatch.setenv(compile_cache.VARIABLE, "off")
    assert compile_cache.folder() is None


def test_the_oldest_programs_are_deleted_first(tmp_path):
    for age, name in enumerate("abc"):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    compile_cache.delete_oldest(tmp_path, 200)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    compile_cache.delete_oldest(tmp_path / "absent", 0)


@pytest.mark.parametrize("chosen", ["off", "a folder"])
def test_no_test_writes_to_the_cache_of_the_user_s_runs(chosen, tmp_path, monkeypatch):
    """Whatever folder the config of a run names."""
    monkeypatch.setenv(compile_cache.VARIABLE, chosen if chosen == "off" else str(tmp_path))
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"):
        monkeypatch.setenv(name, "")  # put back after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    compile_cache.enable()
    updates = []
    monkeypatch.setattr(runs.jax.config, "update", lambda *pair: updates.append(pair))
    runs.enable_compile_cache(defaults.base().compile_cache)
    off = os.environ.get("JAX_ENABLE_COMPILATION_CACHE") == "false"
    assert (off, bool(updates)) == (chosen == "off", chosen == "off")
