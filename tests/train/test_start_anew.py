"""A phase that starts anew: the averaged parameters teach, all that trains is drawn again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from bljust_jax import recipes
from bljust_jax.bilevel.optimizer import make_optimizer
from bljust_jax.train import initial_state, loop
from configs import quickstart
from tests.helpers import systems
from tests.helpers.training_configs import shorten
from tests.helpers.workdirs import arrays, rows_without_perf


def test_teachers_are_the_averages_and_the_student_is_another_draw():
    config = systems.config_for("noisy_student")
    recipe = recipes.load("bljust")(config, systems.FACTS)
    optimizer = make_optimizer(recipe.combiner, recipe.groups)
    state = systems.begin(recipe, optimizer)
    ema = jax.tree.map(lambda x: x + 0.5, state.ema)
    stats = jax.tree.map(lambda x: x + 3.0, state.stats)
    moments = jax.tree.map(lambda x: x + 1, state.opt_state)
    before = state._replace(step=jnp.int32(7), ema=ema, stats=stats, opt_state=moments)
    after, again = (
        initial_state.start_anew(config, recipe, optimizer, {}, before) for _ in range(2)
    )
    assert int(after.step) == 7
    for key, teacher in recipe.teachers.items():
        for a, b in zip(*map(jax.tree.leaves, (after.frozen[key], ema[teacher.part])), strict=True):
            np.testing.assert_array_equal(a, b)
    kernels = [s.params["ctc_head"]["kernel"] for s in (state, after, again)]
    assert np.any(np.asarray(kernels[0]) != np.asarray(kernels[1]))
    np.testing.assert_array_equal(kernels[1], kernels[2])
    for a, b in zip(*map(jax.tree.leaves, (after.ema, after.params)), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(*map(jax.tree.leaves, (after.opt_state, state.opt_state)), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(*map(jax.tree.leaves, (after.stats, stats)), strict=True):
        np.testing.assert_array_equal(a, b)


class Stop(Exception):
    """In place of a kill."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # orbax warns of restoring without a target
@pytest.mark.parametrize("method", ["mpl", "slimipl", "noisy_student", "masked_cpc_ctc"])
def test_a_run_that_stops_goes_on_bit_for_bit(method, tmp_path, monkeypatch):
    """Teacher, cache and order of the data are in the checkpoint, or functions of the step."""
    config = shorten(quickstart.get_config(f"{method},smoke"))
    config.update(save_every=3, keep=1)
    if method in ("mpl", "slimipl"):  # a model that has not learned to output blanks alone yet
        with config.unlocked():
            config.pseudo_label = ConfigDict({"start": 0.05})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    final = loop.run(config, whole)
    labels = [row for row in rows_without_perf(whole) if "pseudo_label/confidence" in row]
    assert bool(labels) == (method != "masked_cpc_ctc")
    last = final["step"]

    def stop(run, now, saved=loop.save):
        saved(run, now)
        if now > last / 2:
            raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(loop, "save", stop)
        with pytest.raises(Stop):
            loop.run(config, broken)
    assert loop.run(config, broken)["params_digest"] == final["params_digest"]
    assert arrays(broken) == arrays(whole)
    assert rows_without_perf(broken) == rows_without_perf(whole)
