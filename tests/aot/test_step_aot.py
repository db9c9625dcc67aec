"""A whole BL-JUST step of the LibriSpeech recipe, compiled for eight chips and for one."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bljust_jax import optim, recipes, sharding, step
from bljust_jax.data.plan import bucket_table
from configs import librispeech

HBM = {"v4": 32 * 2**30, "v5e": 16 * 2**30, "v6e": 32 * 2**30}  # bytes a chip
CHARACTERS = 29

pytestmark = pytest.mark.slow  # minutes of compiling each


@functools.cache
def parts(implementation):
    """(config, recipe, optimizer, abstract state) of size S."""
    config = librispeech.get_config("S")
    config.ctc.implementation = implementation
    facts = recipes.Facts({"labelled": CHARACTERS}, {"labelled": 230, "unlabelled": 2200})
    recipe = recipes.load(config.recipe)(config, facts)
    optimizer = optim.make(recipe.combiner, recipe.groups)
    state = jax.eval_shape(lambda: step.init_state(recipe, optimizer, 0))
    return config, recipe, optimizer, state


def compile_step(mesh, phase_name, *, share=1, implementation="pallas_tpu"):
    """The step of a phase on the largest bucket, with 1 / `share` of the configured batch."""
    config, recipe, optimizer, state = parts(implementation)
    phase = next(p for p in recipe.phases if p.name == phase_name)
    groups = optim.assign(state.params, recipe.groups)
    placed = sharding.state_sharding(state, mesh, optim.path_name)
    rows = NamedSharding(mesh, P(sharding.AXES))
    data = config.data
    bucket = bucket_table(
        data.buckets[-1:], data.batch_seconds / share, data.labels_per_second, mesh.size
    )[0]
    samples = round(bucket.seconds * data.sample_rate)

    def array(*shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((bucket.batch_size, *shape), dtype, sharding=rows)

    audio = {
        "audio": array(samples, dtype=jnp.int16),
        "audio_lengths": array(),
        "ids": array(dtype=jnp.uint32),
    }
    labels = {"labels": array(bucket.max_labels), "label_lengths": array()}
    batch = {"labelled": audio | labels, "unlabelled": audio}
    active = {
        stream for o in recipe.objectives if phase.losses & {*o.losses} for stream in o.streams
    }
    program = jax.jit(
        step.make_train_step(recipe, phase, optimizer, groups, seed=0),
        donate_argnums=0,
        out_shardings=(placed, None),
    )
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed
    )
    with jax.set_mesh(mesh):
        return program.lower(state, {s: batch[s] for s in sorted(active)}).compile()


@pytest.mark.parametrize("generation", ["v4", "v5e", "v6e"])
def test_joint_step_on_eight_chips_fits_and_holds_the_kernel(mesh_of, generation):
    program = compile_step(mesh_of(generation, 4, 2), "joint")
    text = program.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2
    assert "all-reduce" in text, "gradients are summed over chips"
    assert program.memory_analysis().peak_memory_in_bytes < HBM[generation]


def test_two_objectives_take_little_more_memory_than_one(mesh_of):
    """Temporaries beyond the gradient trees: 1.35 x one objective's on one chip."""
    joint, single = (
        compile_step(mesh_of("v5e"), phase, share=8).memory_analysis().temp_size_in_bytes
        for phase in ("joint", "finetune")
    )
    params = parts("pallas_tpu")[3].params
    gradients = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    print(f"temporaries: joint {joint}, finetune {single}, one gradient tree {gradients} bytes")
    assert joint - 2 * gradients <= 1.35 * (single - gradients)
