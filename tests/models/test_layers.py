"""Initial parameters: the distribution that each module declares, and stacked blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.common import trees
from bljust_jax.models import layers
from bljust_jax.models.decoder import Decoder
from bljust_jax.models.encoders.cnn_rnn import CnnRnn
from bljust_jax.models.encoders.conformer import Conformer
from bljust_jax.models.encoders.wav2vec2 import Wav2Vec2

CONFORMER = {"dim": 32, "layers": 3, "heads": 4, "kernel": 15, "n_mels": 16, "channels": 16}
WAV2VEC2 = {"dim": 32, "layers": 3, "heads": 4, "ff_dim": 64, "conv_dim": (24,) * 7}
CNN = {"n_mels": 16, "cnn_layers": 2, "rnn_layers": 2, "channels": 8, "latent_dim": 32, "units": 24}
MODELS = {
    "conformer": Conformer(**CONFORMER),
    "parakeet": Conformer(**CONFORMER, subsampling="parakeet", norm="batch"),
    "wav2vec2": Wav2Vec2(**WAV2VEC2, pos_kernel=16, pos_groups=4, conv_bias=True),
    "gru": CnnRnn(**CNN, proj=40),
    "lstm": CnnRnn(**CNN, kind="lstm", proj=40),
    "decoder": Decoder(dim=32, layers=3, heads=4, vocab_size=50, memory_dim=24),
}


@functools.cache
def leaves(name):
    """{path: array} of the initial parameters."""
    params = jax.jit(MODELS[name].init)(jax.random.key(0))
    params = params if name == "decoder" else params[0]
    found = jax.tree_util.tree_flatten_with_path(params)[0]
    return {trees.path_name(path): np.asarray(leaf) for path, leaf in found}


@pytest.mark.daily("conformer", "lstm")
@pytest.mark.parametrize("name", MODELS)
def test_kernels_are_normal_with_variance_one_over_fan_in(name):
    """Mean and deviation within five standard errors; 2 / fan-in before the GELU of wav2vec 2.0's
    front end."""
    for path, leaf in leaves(name).items():
        if not path.endswith("kernel"):
            continue
        fan_in = np.prod(leaf.shape[int(path.startswith("blocks/")) : -1])
        gain = 2 if (name, path.split("/")[0]) == ("wav2vec2", "frontend") else 1
        scaled = leaf * np.sqrt(fan_in / gain)
        assert abs(scaled.mean()) < 5 / np.sqrt(leaf.size), path
        assert abs(scaled.std() - 1) < 5 / np.sqrt(2 * leaf.size), path


@pytest.mark.daily("conformer", "lstm")
@pytest.mark.parametrize("name", MODELS)
def test_scales_are_one_and_the_rest_as_declared(name):
    declared = {
        "frontend/linear/bias": lambda x: 0.05 < x.std() < 0.15,
        "masked_embedding": lambda x: 0 <= x.min() < 0.2 < 0.8 < x.max() < 1,
        "positions/gain": lambda x: np.all(x > 0),
        "embedding": lambda x: abs(x.std() * np.sqrt(32) - 1) < 0.1,
    }
    for path, leaf in leaves(name).items():
        if path in declared:
            assert declared[path](leaf), path
        elif not path.endswith("kernel"):
            np.testing.assert_array_equal(leaf, float(path.endswith("scale")), err_msg=path)


def test_gains_of_positions_are_two_over_the_root_of_groups_times_the_norm():
    found = leaves("wav2vec2")
    norms = np.sqrt(np.square(found["positions/kernel"]).sum((1, 2)))
    np.testing.assert_allclose(found["positions/gain"], norms, rtol=1e-6)  # 2 / sqrt(4)


@pytest.mark.parametrize("name", ["conformer", "wav2vec2", "decoder"])
def test_blocks_are_independent_draws(name):
    for path, leaf in leaves(name).items():
        if path.startswith("blocks/") and path.endswith("kernel"):
            one, two = leaf[0].ravel(), leaf[1].ravel()
            correlation = np.corrcoef(one, two)[0, 1]
            assert abs(correlation) < 5 / np.sqrt(one.size), path


def test_a_stack_is_the_blocks_of_its_keys():
    block, x = layers.Dense(5), jnp.zeros((1, 3))
    stacked = layers.init_stack(block, jax.random.key(1), 2, x)
    assert jax.tree.map(jnp.shape, stacked) == {"kernel": (2, 3, 5), "bias": (2, 5)}
    second = block.init(jax.random.split(jax.random.key(1))[1], x)["params"]
    np.testing.assert_array_equal(stacked["kernel"][1], second["kernel"])


@pytest.mark.parametrize("policy", ["none", "full"])
def test_unrolled_blocks_are_calls_that_xla_keeps(policy):
    """One call per block and pass, the same value and gradient as in a loop; calls inside a block
    are inlined."""

    def step(x, weight, shift):
        return jax.nn.silu(x @ weight["kernel"]) + shift, jnp.sum(x)

    def loss(unroll, weights, x, shifts):
        x, sums = layers.scan_blocks(
            step, x, {"kernel": weights}, shifts, policy=policy, unroll=unroll
        )
        return jnp.sum(x**2) + jnp.sum(sums)

    weights, x, shifts = (
        jax.random.normal(jax.random.key(n), shape)
        for n, shape in enumerate([(2, 4, 4), (3, 4), (2,)])
    )
    found = {}
    for unroll in (1, 2):
        lowered = jax.jit(jax.value_and_grad(functools.partial(loss, unroll))).lower(
            weights, x, shifts
        )
        kept = [line for line in lowered.as_text().splitlines() if 'inlineable = "false"' in line]
        assert all("call @" in line for line in kept)
        assert bool(kept) == (unroll > 1)
        assert len(kept) <= 2 * 2 * (1 + (policy == "full"))
        found[unroll] = lowered.compile()(weights, x, shifts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found[1], found[2])
