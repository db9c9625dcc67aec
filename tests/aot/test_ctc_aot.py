"""The CTC kernel compiled by Mosaic for three generations: alone, and split over eight chips."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bljust_jax.ops.ctc import ctc_loss
from bljust_jax.ops.ctc.pallas_tpu import MAX_LABELS

GENERATIONS = ("v4", "v5e", "v6e")
LARGE, SMALL = (32, 1600, 200, 1000), (8, 100, 20, 32)
MIB = 2**20


def loss(logits, logit_lengths, labels, label_lengths):
    args = (logits, logit_lengths, labels, label_lengths)
    return ctc_loss(*args, implementation="pallas_tpu").sum()


def compile_for(mesh, function, shape, dtype):
    batch, frames, width, classes = shape
    rows = NamedSharding(mesh, P(mesh.axis_names))

    def array(*shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

    logits = array(batch, frames, classes, dtype=dtype)
    arguments = (logits, array(batch), array(batch, width), array(batch))
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(*arguments).compile()


def kernels(program):
    return program.as_text().count('custom_call_target="tpu_custom_call"')


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_one_launch_a_direction(mesh_of, generation, shape, dtype):
    program = compile_for(mesh_of(generation), jax.value_and_grad(loss), shape, dtype)
    assert kernels(program) == 2
    batch, frames, width, classes = shape
    memory = program.memory_analysis()
    logits = batch * frames * classes * jnp.dtype(dtype).itemsize
    assert memory.argument_size_in_bytes >= logits
    # emissions and two forward variables, [T, B, W] padded to (8, 128) with 2 % of frames; the
    # occupancies lie over one of them. XLA adds at most one copy of them, or of the logits.
    state = 1.02 * batch * frames * -(-(width + 1) // 128) * 128 * 4
    assert memory.temp_size_in_bytes <= 3 * state + max(state, logits) + MIB
    assert 2 * logits <= memory.peak_memory_in_bytes < 2**30


def test_a_value_alone_takes_one_launch_and_stores_no_forward_variables(mesh_of):
    """XLA gathers the emissions, 51 MiB, from a transposed copy of the logits, 195 MiB."""
    program = compile_for(mesh_of("v5e"), loss, LARGE, jnp.float32)
    assert kernels(program) == 1
    assert program.memory_analysis().temp_size_in_bytes < (51 + 195) * MIB


def test_the_longest_labels_fit_the_registers_and_vmem(mesh_of):
    shape = (8, 60, MAX_LABELS, 32)
    assert kernels(compile_for(mesh_of("v5e"), jax.value_and_grad(loss), shape, jnp.float32)) == 2


@pytest.mark.parametrize("generation", GENERATIONS)
def test_eight_chips_take_an_eighth_each(mesh_of, generation):
    """One all-reduce, of the loss; no chip sees another's utterances."""
    batch, frames, width, classes = 128, 192, 40, 64  # two blocks of 96 frames: no padding
    mesh = mesh_of(generation, 4, 2)
    program = compile_for(
        mesh, jax.value_and_grad(loss), (batch, frames, width, classes), jnp.float32
    )
    assert kernels(program) == 2
    text = program.as_text()
    for moved in ("all-gather", "all-to-all", "collective-permute"):
        assert moved not in text
    assert f"f32[{frames},{batch // 8},128]" in text, "a kernel works on the rows of one chip"
