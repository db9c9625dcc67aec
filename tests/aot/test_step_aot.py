"""The BL-JUST step of the LibriSpeech recipe on one chip; `make aot` compiles the steps of all
recipes for many."""

import jax
import pytest

from bljust_jax.benchmarks import compile_ahead
from bljust_jax.parallel.mesh import lay_out

pytestmark = pytest.mark.slow  # minutes of compiling each


def test_two_objectives_take_little_more_memory_than_one(mesh_of):
    """Temporaries beyond the gradient trees: 1.35 x one objective's, on an eighth of the batch; and
    the step holds the CTC kernel, forward and backward."""
    config, recipe = compile_ahead.make_recipe(
        compile_ahead.Row("librispeech.py:S", "joint", "v5e-16")
    )
    for name in ("batch_seconds", "unlabelled_batch_seconds"):
        config.data[name] /= 8
    mesh = lay_out((1, 1, 1, 1), list(mesh_of("v5e").devices.flat))
    programs = {}
    for name in ("joint", "finetune"):
        phase = next(p for p in recipe.phases if p.name == name)
        lowered, state, _ = compile_ahead.lower_step(config, recipe, phase, mesh)
        programs[name] = lowered.compile()
    for program in programs.values():
        assert program.as_text().count('custom_call_target="tpu_custom_call"') == 2
    joint, single = (
        programs[name].memory_analysis().temp_size_in_bytes for name in ("joint", "finetune")
    )
    gradients = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params))
    print(f"temporaries: joint {joint}, finetune {single}, one gradient tree {gradients} bytes")
    assert joint - 2 * gradients <= 1.35 * (single - gradients)
