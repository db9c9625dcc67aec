"""The CNN-RNN: published sizes, laws of every encoder, each part against plain loops."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.models import cnn_rnn_blocks, heads
from bljust_jax.models.encoders import load
from bljust_jax.models.encoders.cnn_rnn import CnnRnn
from bljust_jax.models.norms import EPSILON
from configs import defaults
from tests.helpers import parameters
from tests.helpers.finite_difference import check_slope
from tests.helpers.rounding import assert_close_in_bfloat16

FIELDS = {"cnn_layers": 1, "rnn_layers": 2, "channels": 4, "latent_dim": 6, "units": 5, "heads": 2}
SMALL = {
    "gru": CnnRnn(n_mels=8, proj=7, **FIELDS),
    "lstm": CnnRnn(n_mels=8, kind="lstm", proj=0, **FIELDS),
}
KINDS = sorted(SMALL)
LENGTHS = jnp.array([29, 18, 0])
# Table 2 of the paper: (CNN layers, RNN layers) -> parameters, with 1023 pieces.
PUBLISHED = {
    **{(2, 4): 22_415_487, (3, 4): 22_530_847, (4, 4): 22_646_207},
    **{(2, 5): 27_142_271, (3, 5): 27_257_631, (4, 5): 27_372_991},
    **{(2, 6): 31_869_055, (3, 6): 31_984_415, (4, 6): 32_099_775},
}


def size(model, pieces):
    """Parameters of the encoder and of a CTC head."""
    key = jax.random.key(0)
    params, stats = jax.eval_shape(model.init, key)
    head = jax.eval_shape(lambda key: heads.init(key, model.dim, pieces), key)
    assert stats == {}
    return sum(leaf.size for leaf in jax.tree.leaves((params, head)))


@pytest.mark.daily("layers0")
@pytest.mark.parametrize("layers", PUBLISHED)
def test_all_nine_published_parameter_counts(layers):
    model = CnnRnn(n_mels=80, cnn_layers=layers[0], rnn_layers=layers[1])
    assert size(model, 1023) == PUBLISHED[layers]


def test_the_published_run_with_a_thousand_pieces():
    assert size(CnnRnn(n_mels=80, cnn_layers=3, rnn_layers=5), 1000) == 27_210_504


def test_the_network_of_the_text():
    """Counted by hand: convolutions of 32 maps, LSTM layers of 256 units a direction."""
    model = CnnRnn(n_mels=80, kind="lstm", units=256, proj=0)
    lstm = 2 * (4 * 256 * (512 + 256) + 2 * 4 * 256) + 2 * 512
    convolutions = (9 * 32 + 32) + 3 * (9 * 32 * 32 + 32)
    total = convolutions + (40 * 32 * 512 + 512) + 5 * lstm + (512 * 1023 + 1023)
    assert model.dim == 512
    assert size(model, 1023) == total


@functools.cache
def randomised(kind):
    return parameters.randomised(jax.jit(SMALL[kind].init)(jax.random.key(0))[0])


@functools.cache
def features():
    """[3, 29, 8], NaN in padded frames."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 29, 8)), jnp.float32)
    return jnp.where((jnp.arange(29)[None, :] < LENGTHS[:, None])[..., None], x, jnp.nan)


@functools.cache
def encoder(kind, **fields):
    """A compiled (output, lengths, latents) and the gradient of a loss that weighs every entry."""
    model = dataclasses.replace(SMALL[kind], **fields)

    def encode(params, x, lengths):
        output, lengths, hidden, _ = model.apply(params, x, lengths)
        return output, lengths, hidden["latents"]

    def loss(params, x, lengths):
        output, lengths, latents = encode(params, x, lengths)
        weighed = jnp.sin(jnp.arange(output.size, dtype=output.dtype)).reshape(output.shape)
        return jnp.sum(output * weighed), (output, lengths, latents)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def encode(kind, x, lengths, **fields):
    (_, outputs), grads = encoder(kind, **fields)(randomised(kind), x, lengths)
    return *outputs, grads


@pytest.mark.daily("gru")
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_lengths_and_zeros_in_padded_frames(kind):
    output, lengths, latents, _ = encode(kind, features(), LENGTHS)
    assert output.shape == (3, 15, SMALL[kind].dim)
    assert latents.shape == (3, 15, 6)
    assert output.dtype == latents.dtype == jnp.float32
    assert lengths.tolist() == [15, 9, 0] == [SMALL[kind].frames(n) for n in LENGTHS.tolist()]
    for row, n in enumerate(lengths.tolist()):
        assert np.all(np.isfinite(output[row]))
        assert not np.any(output[row, n:])
        assert not np.any(latents[row, n:])
        assert np.all(np.any(output[row, :n], axis=-1))


@pytest.mark.daily("gru")
@pytest.mark.parametrize("kind", KINDS)
def test_padding_never_matters_nan_included(kind):
    """A short row beside longer ones is that utterance alone: masks in convolutions, attention and
    norms, and a backward direction that begins at the utterance's own end."""
    together, _, latents, grads = encode(kind, features(), LENGTHS)
    run = jax.jit(SMALL[kind].apply)
    alone, _, hidden, _ = run(randomised(kind), features()[1:2, :18], LENGTHS[1:2])
    # The law's bound: sums of other lengths round differently in float32.
    np.testing.assert_allclose(together[1, :9], alone[0], atol=1e-5)
    np.testing.assert_allclose(latents[1, :9], hidden["latents"][0], atol=1e-5)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


@pytest.mark.daily("gru")
@pytest.mark.parametrize("kind", KINDS)
def test_batch_permutation_is_equivariant(kind):
    order = jnp.array([2, 0, 1])
    output = encode(kind, features(), LENGTHS)[0]
    np.testing.assert_allclose(
        encode(kind, features()[order], LENGTHS[order])[0], output[order], atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_both_ends_are_heard(kind):
    output = encode(kind, features(), LENGTHS)[0]
    last = encode(kind, features().at[0, 28].add(1.0), LENGTHS)[0]
    first = encode(kind, features().at[0, 0].add(1.0), LENGTHS)[0]
    assert np.max(np.abs(last[0, 0] - output[0, 0])) > 1e-6
    assert np.max(np.abs(first[0, 14] - output[0, 14])) > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_gradient(kind):
    """But those that the table counts and a norm over bands takes away, as they are constant there:
    the biases before it."""
    grads = encode(kind, features(), LENGTHS)[-1]
    paths = jax.tree_util.tree_flatten_with_path(grads)[0]
    sizes = {jax.tree_util.keystr(p, simple=True, separator="/"): np.abs(g).max() for p, g in paths}
    idle = {name for name, size in sizes.items() if size < 3e-6}  # rounding
    before_norms = ("attention/out", "conv1", "conv2", "conv3")
    assert idle == {f"cnn1/{name}/bias" for name in before_norms if kind == "gru"}


@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_layers_are_the_plain_recursions(kind):
    """One utterance of one layer in float64 numpy, each direction its own loop."""
    model, params = SMALL[kind], randomised(kind)
    _, lengths, latents, _ = encode(kind, features(), LENGTHS)
    module = model.modules["rnn1"]

    @jax.jit
    def run(layer, x, n):
        backwards = cnn_rnn_blocks.reversed_frames(x.shape[1], n)
        return module.apply({"params": layer}, x, backwards)

    found = run(params["rnn1"], latents, lengths)[1, :9]
    layer = jax.tree.map(lambda p: np.asarray(p, np.float64), params["rnn1"])
    x = np.asarray(latents[1, :9], np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPSILON)
    x = np.asarray(jax.nn.gelu(x * layer["norm"]["scale"] + layer["norm"]["bias"], False))
    forward = recursion(kind, layer["forward"], x)
    backward = recursion(kind, layer["backward"], x[::-1])[::-1]
    # float32 against float64 through nine steps of values below 1
    np.testing.assert_allclose(found, np.concatenate([forward, backward], -1), atol=2e-6)


def recursion(kind, cell, x):
    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    h, c, states = np.zeros(5), np.zeros(5), []
    for frame in x:
        a = frame @ cell["input"]["kernel"] + cell["input"]["bias"]
        b = h @ cell["recurrent"]["kernel"] + cell["recurrent"]["bias"]
        if kind == "gru":
            r, z = sigmoid(a[:5] + b[:5]), sigmoid(a[5:10] + b[5:10])
            h = (1 - z) * np.tanh(a[10:] + r * b[10:]) + z * h
        else:
            i, f, g, o = np.split(a + b, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.stack(states)


@pytest.mark.parametrize("scores", [2**26, 40])
def test_attention_is_the_plain_sum_in_blocks_of_any_size(monkeypatch, scores):
    """Against loops in numpy; 40 scores are one query a block, the last one padded or not."""
    monkeypatch.setattr(cnn_rnn_blocks, "SCORES", scores)
    params = randomised("gru")["cnn1"]["attention"]
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 3, 4)), jnp.float32)
    valid = jnp.array([[True] * 5, [True] * 3 + [False] * 2])
    attention = cnn_rnn_blocks.GridAttention(2)
    found = jax.jit(lambda p, x, v: attention.apply({"params": p}, x, v))(params, x, valid)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for row, frames in ((0, 5), (1, 3)):
        grid = np.asarray(x[row], np.float64).reshape(15, 4)
        q, k, v = np.split(grid @ p["input"]["kernel"] + p["input"]["bias"], 3, axis=-1)
        positions = 3 * frames
        context = np.zeros((15, 4))
        for head in (slice(0, 2), slice(2, 4)):
            weights = np.exp(q[:, head] @ k[:positions, head].T / np.sqrt(2))
            context[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:positions, head]
        expected = context @ p["out"]["kernel"] + p["out"]["bias"]
        # float32 sums of fifteen weights
        np.testing.assert_allclose(found[row].reshape(15, 4), expected, atol=2e-6)


def test_depth_runs_the_first_layers():
    model, params = SMALL["gru"], randomised("gru")
    short = dataclasses.replace(model, rnn_layers=1)
    first = {name: leaf for name, leaf in params.items() if name != "rnn2"}
    run = jax.jit(lambda p, x, n: model.apply(p, x, n, depth=1)[0])
    expected = jax.jit(lambda p, x, n: short.apply(p, x, n)[0])(first, features(), LENGTHS)
    np.testing.assert_array_equal(run(params, features(), LENGTHS), expected)
    for depth in (0, 3):
        with pytest.raises(ValueError, match=f"depth={depth} must lie in 1..2"):
            model.apply(params, features(), LENGTHS, depth=depth)


def test_a_causal_context_is_refused_with_its_cure():
    with pytest.raises(
        ValueError, match=r"reads future frames; set config\.cpc\.context='chunked'"
    ):
        SMALL["gru"].apply(randomised("gru"), features(), LENGTHS, context="causal")


def test_unrolled_time_agrees():
    model, params = dataclasses.replace(SMALL["gru"], scan_unroll=4), randomised("gru")
    unrolled = jax.jit(lambda p, x, n: model.apply(p, x, n)[0])(params, features(), LENGTHS)
    # the same sums, fused otherwise
    np.testing.assert_allclose(unrolled, encode("gru", features(), LENGTHS)[0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close_and_its_gradients_are_finite(kind):
    output, _, _, grads = encode(kind, features(), LENGTHS, dtype="bfloat16")
    expected = encode(kind, features(), LENGTHS)[0]
    assert output.dtype == jnp.float32
    # 7 layers of 4 operations; the states of 2 of them are rounded anew in each of some 10 frames
    assert_close_in_bfloat16(output, expected, 7 * 4 + 2 * 10)
    for grad, leaf in zip(*map(jax.tree.leaves, (grads, randomised(kind))), strict=True):
        assert grad.dtype == leaf.dtype
        assert np.all(np.isfinite(grad))


@pytest.mark.daily("lstm")
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_matches_a_finite_difference_in_float64(kind):
    model = dataclasses.replace(SMALL[kind], dtype="float64", rnn_layers=1)
    params = {name: leaf for name, leaf in randomised(kind).items() if name != "rnn2"}
    with jax.enable_x64(True):
        x = jnp.asarray(features(), jnp.float64)
        check_slope(lambda moved: model.apply(moved, x, LENGTHS)[0], params)


@pytest.mark.slow
def test_dropout_needs_a_key_acts_in_training_only_and_repeats():
    model, params = dataclasses.replace(SMALL["gru"], dropout=0.5), randomised("gru")
    with pytest.raises(ValueError, match="rng"):
        model.apply(params, features(), LENGTHS, train=True)
    output = encode("gru", features(), LENGTHS)[0]
    np.testing.assert_allclose(encode("gru", features(), LENGTHS, dropout=0.5)[0], output)
    run = jax.jit(lambda key: model.apply(params, features(), LENGTHS, train=True, rng=key)[0])
    first = run(jax.random.key(1))
    assert np.any(np.abs(first - output) > 1e-3)
    np.testing.assert_array_equal(run(jax.random.key(1)), first)
    assert np.any(run(jax.random.key(2)) != first)
    assert not np.any(first[1, 9:])


@pytest.mark.slow
def test_initial_scale():
    """Kernels of variance 1 / fan-in, a convolution's fan-in being 9 C."""
    params, _ = jax.jit(CnnRnn(n_mels=80, cnn_layers=1, rnn_layers=1).init)(jax.random.key(0))
    conv, recurrent = params["cnn1"]["conv2"], params["rnn1"]["backward"]["recurrent"]
    # 36,864 and 786,432 draws: standard errors of 0.4 % and 0.1 %
    np.testing.assert_allclose(np.std(conv["kernel"]), (9 * 64) ** -0.5, rtol=0.02)
    np.testing.assert_allclose(np.std(recurrent["kernel"]), 512**-0.5, rtol=0.005)
    assert not np.any(conv["bias"])
    np.testing.assert_array_equal(params["cnn1"]["norm1"]["scale"], 1.0)
    forward = params["rnn1"]["forward"]["recurrent"]["kernel"]
    assert np.any(forward != recurrent["kernel"])


@pytest.mark.daily("lstm")
@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_those_the_compiler_counts_in_the_products(kind):
    """XLA adds element-wise work, and counts the body of a loop once: one block, one time step."""
    model = dataclasses.replace(SMALL[kind], n_mels=40, channels=32, latent_dim=64, units=48)
    model = dataclasses.replace(model, proj=64, scan_unroll=8, rnn_layers=1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))[0]
    x = jax.ShapeDtypeStruct((1, 16, 40), jnp.float32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    compiled = jax.jit(lambda p, x, n: model.apply(p, x, n)[0]).lower(shapes, x, lengths).compile()
    counted = compiled.cost_analysis()["flops"]
    assert 0.67 * counted < model.flops(16) < 1.05 * counted


def test_flops_of_the_first_layers():
    model = SMALL["gru"]
    layer = 4 * 15 * 3 * 5 * (10 + 5)  # both directions of the second layer over 15 frames
    assert model.flops(29) - model.flops(29, depth=1) == layer


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "rnn"}, "kind='rnn': .* There are: lstm, gru"),
        ({"heads": 3}, "channels=4 must be a multiple of heads=3"),
        ({"rnn_layers": 0}, "rnn_layers=0"),
        ({"dtype": "bf16"}, "dtype='bf16'"),
    ],
)
def test_impossible_fields_are_the_users_error(fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL["gru"], **fields)


@pytest.mark.slow
def test_the_encoder_of_a_config():
    """`config.encoder = "cnn_rnn"`: int16 audio in, 50 frames a second out."""
    config = defaults.base()
    config.features.n_mels = 8
    config.model = type(config)({**FIELDS, "kind": "gru", "proj": 7})
    encoder = load("cnn_rnn")(config)
    params, stats = jax.jit(encoder.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    audio = jnp.asarray(rng.integers(-3000, 3000, (2, 4000)), jnp.int16)
    lengths = jnp.array([4000, 2500], jnp.int32)

    @jax.jit
    def run(params, audio, lengths):
        x, frames, input_mask = encoder.features(audio, lengths, train=False)
        return encoder.apply(
            params, x, frames, input_mask=input_mask, context="full", train=False, rng=None
        )

    output, frames, hidden, _ = run(params, audio, lengths)
    assert frames.tolist() == [encoder.frames(4000), encoder.frames(2500)] == [12, 7]
    assert output.shape == (2, 12, encoder.dim)
    assert hidden["latents"].shape == (2, 12, encoder.latent_dim)
    assert encoder.blocks == 2
    assert encoder.flops(4000, 1) < encoder.flops(4000)
    measured = encoder.statistics([{"audio": audio, "audio_lengths": lengths}])
    assert jax.tree.map(jnp.shape, measured) == jax.tree.map(jnp.shape, stats)
