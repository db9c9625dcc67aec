"""Depthwise convolution against its definition, the convolution module and the block."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from bljust_jax.models import remat
from bljust_jax.models.attention import Attention
from bljust_jax.models.conformer_block import (
    ConformerBlock,
    ConvModule,
    FeedForward,
)
from bljust_jax.models.depthwise import depthwise_conv, sum_by_block, sum_by_tap
from bljust_jax.models.norms import LayerNorm
from tests.helpers.residuals import residuals


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def lax_depthwise(x, kernel, causal):
    taps = kernel.shape[0]
    centre = (taps - 1) // 2
    if causal:
        kernel = kernel * (jnp.arange(taps) <= centre)[:, None]
    return lax.conv_general_dilated(
        x, kernel[:, None, :], (1,), [(centre, centre)],
        dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=x.shape[-1],
    )  # fmt: skip


@pytest.mark.daily("9-5-True", "3-7-False")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("frames", "taps"), [(9, 5), (3, 7), (1, 1)])
def test_depthwise_value_and_gradients_equal_a_grouped_convolution(frames, taps, causal):
    x, kernel, weight = normal(2, frames, 3), normal(taps, 3, seed=1), normal(2, frames, 3, seed=2)

    def loss(conv):
        return lambda x, kernel: jnp.sum(jnp.sin(conv(x, kernel, causal)) * weight)

    value, grads = jax.value_and_grad(loss(depthwise_conv), (0, 1))(x, kernel)
    expected, expected_grads = jax.value_and_grad(loss(lax_depthwise), (0, 1))(x, kernel)
    # A dozen float32 additions in another order.
    np.testing.assert_allclose(value, expected, atol=1e-5)
    for grad, reference in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, reference, atol=1e-5)


def test_depthwise_gradients_match_finite_differences_in_float64():
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(a, jnp.float64) for a in (normal(1, 6, 2), normal(5, 2, seed=1)))
        check_grads(jax.jit(depthwise_conv), (x, kernel), 1, ["rev"], atol=1e-6, rtol=1e-6)


def test_depthwise_in_bfloat16_sums_in_float32():
    x, kernel = normal(2, 20, 4).astype(jnp.bfloat16), normal(15, 4, seed=1)
    out, pull = jax.vjp(depthwise_conv, x, kernel)
    grad_x, grad_kernel = pull(jnp.ones_like(out))
    assert (out.dtype, grad_x.dtype, grad_kernel.dtype) == (x.dtype, x.dtype, kernel.dtype)
    exact = depthwise_conv(x.astype(jnp.float32), kernel)
    # Only the result is rounded: half an ulp of bfloat16 is 2^-9 relative.
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


def test_conv_module_ignores_padded_frames():
    x, valid = normal(1, 8, 4), jnp.arange(8)[None] < 5
    module = ConvModule(5)
    params = module.init(jax.random.key(0), x, valid)
    out = module.apply(params, x, valid)[0][:, :5]
    np.testing.assert_array_equal(out, module.apply(params, x * valid[..., None], valid)[0][:, :5])


@pytest.mark.daily("ff1")
@pytest.mark.parametrize("alone", ["ff1", "ff2", "attention", "conv"])
def test_a_block_adds_half_of_each_feed_forward_and_all_of_each_other_branch(alone):
    """With the last maps of the other branches at 0: norm(x + share * branch(norm(x)))."""
    last = {"ff1": "down", "ff2": "down", "attention": "out", "conv": "pointwise_out"}
    x, valid = normal(1, 6, 8), jnp.ones((1, 6), bool)
    block = ConformerBlock(heads=2, taps=3)
    params = jax.jit(block.init)(jax.random.key(0), x, valid)["params"]
    for branch, name in last.items():
        if branch != alone:
            params[branch][name] = jax.tree.map(jnp.zeros_like, params[branch][name])

    @jax.jit
    def both(params):
        out, _ = block.apply({"params": params}, x, valid)
        own = {"params": params[alone]}
        y = LayerNorm().apply({"params": params[f"{alone}_norm"]}, x)
        branch = {
            "attention": lambda: Attention(2).apply(own, y, valid),
            "conv": lambda: ConvModule(3).apply(own, y, valid)[0],
        }.get(alone, lambda: FeedForward().apply(own, y))()
        share = 0.5 if alone.startswith("ff") else 1.0
        return out, LayerNorm().apply({"params": params["norm"]}, x + share * branch)

    out, expected = both(params)
    np.testing.assert_allclose(out, expected, atol=1e-6)  # the same sums, fused otherwise


@pytest.mark.parametrize(("frames", "taps"), [(70, 5), (40, 35), (1, 1), (33, 15)])
def test_the_gradient_by_blocks_is_that_by_taps(frames, taps):
    """Blocks of 32 frames, or of 40 with 35 taps; in float64, so that the order of sums is moot."""
    with jax.enable_x64(True):
        x, grad = (normal(2, frames, 3, seed=n).astype(jnp.float64) for n in (0, 1))
        blocks, single = sum_by_block(taps, x, grad), sum_by_tap(taps, x, grad)
    assert blocks.dtype == single.dtype == jnp.float64
    np.testing.assert_allclose(blocks, single, rtol=1e-12, atol=1e-12)


def test_the_gradient_by_blocks_sums_bfloat16_in_float32():
    x, grad = (normal(2, 70, 3, seed=n).astype(jnp.bfloat16) for n in (0, 1))
    exact = sum_by_tap(5, x.astype(jnp.float32), grad.astype(jnp.float32))
    np.testing.assert_allclose(sum_by_block(5, x, grad), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_names_keeps_the_named_values_alone(dropout):
    """In bfloat16 nothing is float32 but two numbers per row of each of six norms."""
    x, valid = normal(2, 6, 8).astype(jnp.bfloat16), jnp.ones((2, 6), bool)
    block = ConformerBlock(2, 3, dropout=dropout, dtype=jnp.bfloat16)
    params = jax.jit(block.init)(jax.random.key(0), x, valid)["params"]

    def run(params, x):
        rngs = {"dropout": jax.random.key(1)}
        return block.apply({"params": params}, x, valid, False, True, None, rngs=rngs)[0]

    found = collections.Counter(residuals(remat.wrap(run, "names"), params, x))
    row, frames = "f32[2,6,1]", "bf16[2,6,8]"
    expected = {
        (row, "norm_mean"): 6, (row, "norm_rstd"): 6, ("bf16[2,6,32]", "ff_up"): 2,
        ("bf16[2,6,3,8]", "qkv"): 1, ("bf16[2,2,6,6]", "attention_weights"): 1,
        ("bf16[2,6,2,4]", "attention_context"): 1, ("bf16[2,6,16]", "glu"): 1,
        (frames, "depthwise"): 1, (frames, "residual"): 4,
    }  # fmt: skip
    if dropout:
        expected["bool[2,6,8]", "dropout_mask"] = 4
    assert found == expected
