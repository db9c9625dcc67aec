"""Attention compiled for TPUs: splash kernels for rotary positions, and no float32 array of all
pairs of frames in memory for either kind of positions."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bljust_jax.models.attention import Attention
from bljust_jax.models.platform import compile_for

BATCH, FRAMES, DIM, HEADS = 16, 384, 128, 2


@functools.cache
def compiled(mesh, positions, causal=False, window=0):
    """The gradient of attention on a batch split over all chips of the mesh."""
    attention = Attention(HEADS, window, jnp.bfloat16, positions)
    rows, copies = NamedSharding(mesh, P(mesh.axis_names)), NamedSharding(mesh, P())

    def loss(params, x, valid):
        return jnp.sum(attention.apply({"params": params}, x, valid, causal).astype(jnp.float32))

    x = jax.ShapeDtypeStruct((BATCH, FRAMES, DIM), jnp.bfloat16, sharding=rows)
    valid = jax.ShapeDtypeStruct((BATCH, FRAMES), bool, sharding=rows)
    small = jnp.zeros((1, 1, DIM)), jnp.ones((1, 1), bool)
    shapes = jax.eval_shape(Attention(HEADS, positions=positions).init, jax.random.key(0), *small)
    place = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=copies)  # noqa: E731
    params = jax.tree.map(place, shapes["params"])
    with jax.set_mesh(mesh), compile_for("tpu"):
        lowered = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(params, x, valid)
        return lowered.compile().as_text()


def in_memory(text):
    """Types of the results of all instructions outside of fusions."""
    found = []
    for body in re.split(r"\n(?=\S)", text):
        if not re.match(r"%?fused|%?\S*fused_computation", body):
            found += re.findall(r"= (\(?[^=]*?\)?) [\w-]+\(", body)
    return " ".join(found)


@pytest.mark.parametrize(
    ("positions", "causal", "window"),
    [("rope", False, 0), ("rope", True, 0), ("rope", False, 64), ("relative", False, 0)],
)
@pytest.mark.parametrize("generation", ["v5e", "v6e"])
def test_no_scores_in_float32_and_no_gather_of_activations(
    mesh_of, generation, positions, causal, window
):
    text = compiled(mesh_of(generation, 4, 2), positions, causal, window)
    kernels = text.count('custom_call_target="tpu_custom_call"')
    assert kernels == (3 if positions == "rope" else 0), "forward, dq, dk and dv"
    types = in_memory(text)
    assert f"bf16[2,{FRAMES}" in types, "each chip has its share of the batch"
    assert not re.search(rf"f32\[[\d,]*{FRAMES},{FRAMES}\]", types)
    if positions == "rope":
        assert not re.search(rf"\[[\d,]*{FRAMES},{FRAMES}\]", types)
    for moved in ("all-gather", "all-to-all", "collective-permute"):
        assert moved not in text
