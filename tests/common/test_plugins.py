"""Plug-ins are found by file name; an unknown name is refused with the nearest."""

import sys

import pytest

from bljust_jax.common import plugins
from bljust_jax.common.errors import UserError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two plug-ins and a module that is none."""
    folder = tmp_path / "some_plugins"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for name in ("first", "second"):
        (folder / f"{name}.py").write_text(f"def build():\n    return {name!r}\n")
    (folder / "helper.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "some_plugins"
    for module in [name for name in sys.modules if name.startswith("some_plugins")]:
        del sys.modules[module]


def test_the_function_of_a_module_is_loaded(package):
    assert plugins.names(package) == ["first", "helper", "second"]
    assert "some_plugins.first" not in sys.modules  # listing imports none
    assert plugins.load(package, "second", "build", "config.x")() == "second"


@pytest.mark.parametrize("name", ["firts", "helper", "os", "", "first.build"])
def test_an_unknown_name_is_refused(package, name):
    with pytest.raises(UserError) as refused:
        plugins.load(package, name, "build", "config.x")
    said = str(refused.value)
    assert said.startswith(f"config.x={name!r}: there is no {name!r}")
    assert said.endswith("There are: first, second")
    assert ("did you mean 'first'?" in said) == (name in ("firts", "first.build"))
