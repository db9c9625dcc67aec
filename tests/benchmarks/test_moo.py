"""The benchmark of weighed steps, at a size that says nothing."""

import pytest

from bljust_jax import bench as command
from bljust_jax.benchmarks import moo


@pytest.mark.slow
def test_figures_and_their_table(capsys):
    """One tiny shape through the command: positive ratios, trees as many as the methods keep."""
    assert command.main(["moo", "--shapes", "2,1,16,1", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    for method in ("modo", "mgda"):
        assert f"time of {method} / the three steps: " in printed
    _, recipe = moo.make_recipe(moo.Shape(2, 1, 16, 1), "float32", "modo")
    tree = moo.encoder_bytes(recipe) / moo.MIB
    assert f"{6 * tree:.0f} MiB with modo, {3 * tree:.0f} MiB with mgda" in printed
    assert max(map(len, printed.splitlines())) <= 100
