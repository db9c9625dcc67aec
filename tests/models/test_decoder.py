"""Laws of the decoder: causality and padding to the last bit, a token at a time as all at once."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.models.decoder import Decoder
from tests.helpers.finite_difference import check_slope
from tests.helpers.rounding import assert_close_in_bfloat16

SMALL = Decoder(dim=16, layers=2, heads=2, vocab_size=7, memory_dim=6)
MEMORY_LENGTHS = jnp.array([5, 3, 0])
TOKENS = jnp.array([[0, 3, 1, 6, 2], [0, 5, 5, 4, 1], [0, 2, 0, 0, 0]])
LENGTHS = jnp.array([5, 3, 1])


@pytest.fixture(scope="module")
def params():
    """Biases and scales away from 0 and 1, so that none masks_input an error."""
    draw = np.random.default_rng(5)
    initial = jax.tree.map(np.asarray, jax.jit(SMALL.init)(jax.random.key(0)))
    moved = lambda p: jnp.asarray(p + draw.normal(0, 0.1, p.shape), p.dtype)  # noqa: E731
    return jax.tree.map(moved, initial)


@pytest.fixture(scope="module")
def memory():
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 6)), jnp.float32)


@jax.jit
def decode(params, memory, memory_lengths, tokens, lengths):
    return SMALL.apply(params, memory, memory_lengths, tokens, lengths)


def loss_and_grads(model, params, memory, tokens=TOKENS, **options):
    """A loss in which every logit counts differently, and its gradients in params and memory."""

    def loss(params, memory):
        out = model.apply(params, memory, MEMORY_LENGTHS, tokens, LENGTHS, **options)
        return jnp.sum(out * jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, memory)


def test_logits_are_float32_and_0_at_padded_tokens(params, memory):
    logits = decode(params, memory, MEMORY_LENGTHS, TOKENS, LENGTHS)
    assert logits.shape == (3, 5, 7)
    assert logits.dtype == jnp.float32
    assert np.all(np.isfinite(logits))
    for row, n in zip(logits, LENGTHS.tolist(), strict=True):
        assert np.all(np.any(row[:n], axis=-1))
        assert not np.any(row[n:])


def test_the_future_is_not_seen_to_the_last_bit(params, memory):
    lengths = jnp.full(3, 5)
    logits = decode(params, memory, MEMORY_LENGTHS, TOKENS, lengths)
    for t in range(4):
        changed = decode(
            params, memory, MEMORY_LENGTHS, TOKENS.at[:, t + 1 :].set((TOKENS[:, t + 1 :] + 1) % 7),
            lengths,
        )  # fmt: skip
        np.testing.assert_array_equal(changed[:, : t + 1], logits[:, : t + 1])
        assert np.all(np.any(changed[:, t + 1] != logits[:, t + 1], axis=-1))
    first = decode(params, memory, MEMORY_LENGTHS, TOKENS.at[:, 0].set(4), lengths)
    assert np.all(np.any(first != logits, axis=-1))  # and the whole past is


def test_padding_never_matters_nan_and_wild_tokens_included(params, memory):
    logits = decode(params, memory, MEMORY_LENGTHS, TOKENS, LENGTHS)
    valid = np.arange(5)[None, :] < np.asarray(MEMORY_LENGTHS)[:, None]
    wild = jnp.where(jnp.arange(5)[None, :] < LENGTHS[:, None], TOKENS, 10**6)
    dirty = jnp.where(valid[..., None], memory, jnp.nan)
    # The same shapes, so the same sums: equal to the last bit.
    np.testing.assert_array_equal(decode(params, dirty, MEMORY_LENGTHS, wild, LENGTHS), logits)
    long_memory = jnp.pad(dirty, ((0, 0), (0, 4), (0, 0)), constant_values=jnp.nan)
    long_tokens = jnp.pad(wild, ((0, 0), (0, 3)), constant_values=-1)
    longer = decode(params, long_memory, MEMORY_LENGTHS, long_tokens, LENGTHS)
    # The law's bound: sums of other lengths round differently in float32.
    np.testing.assert_allclose(longer[:, :5], logits, atol=1e-5)
    assert not np.any(longer[:, 5:])
    _, (grads, memory_grad) = loss_and_grads(SMALL, params, dirty, wild)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
    np.testing.assert_array_equal(np.any(memory_grad, axis=-1), valid)


def test_batch_permutation_is_equivariant(params, memory):
    order = jnp.array([2, 0, 1])
    inputs = memory, MEMORY_LENGTHS, TOKENS, LENGTHS
    permuted = decode(params, *(x[order] for x in inputs))
    np.testing.assert_allclose(permuted, decode(params, *inputs)[order], atol=1e-6)


def test_one_block_is_the_formula_in_numpy(params, memory):
    """A block of one head, written out in float64 with loops over positions."""
    model = dataclasses.replace(SMALL, layers=1, heads=1)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    block = jax.tree.map(lambda leaf: leaf[0], p["blocks"])

    def norm(x, p):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * p["scale"] + p["bias"]

    def attend(p, x, seen):
        query = x @ p["query"]["kernel"] + p["query"]["bias"]
        weights = np.exp([query @ (y @ p["key"]["kernel"]) / 4 for y in seen])
        values = [y @ p["value"]["kernel"] for y in seen]
        mixed = sum(w * v for w, v in zip(weights / weights.sum(), values, strict=True))
        return mixed @ p["out"]["kernel"] + p["out"]["bias"]

    rates = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    x = [
        4 * p["embedding"][token] + np.concatenate([np.sin(n * rates), np.cos(n * rates)])
        for n, token in enumerate(TOKENS[0].tolist())
    ]
    wide_memory = np.asarray(memory[0], np.float64)
    expected = []
    for t in range(5):
        normed = [norm(y, block["self_norm"]) for y in x[: t + 1]]
        y = x[t] + attend(block["self_attention"], normed[t], normed)
        y = y + attend(block["cross_attention"], norm(y, block["cross_norm"]), wide_memory)
        up, down = block["feed_forward"]["up"], block["feed_forward"]["down"]
        hidden = norm(y, block["ff_norm"]) @ up["kernel"] + up["bias"]
        y = y + hidden / (1 + np.exp(-hidden)) @ down["kernel"] + down["bias"]
        expected.append(norm(y, p["norm"]) @ p["output"]["kernel"] + p["output"]["bias"])
    one = params | {"blocks": jax.tree.map(lambda leaf: leaf[:1], params["blocks"])}
    logits = jax.jit(model.apply)(one, memory, MEMORY_LENGTHS, TOKENS, LENGTHS)
    np.testing.assert_allclose(logits[0], expected, atol=1e-5)  # float32 on logits of size 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "atol"), [("float32", 1e-5), ("float64", 1e-12), ("bfloat16", 0.1)]
)
def test_a_token_at_a_time_gives_what_all_at_once_gives(params, memory, dtype, atol):
    """Sums over the whole cache and over the text round differently: a few units in the last place
    of logits of size 1 (bfloat16: six branches of rounding at 2^-8)."""
    model = dataclasses.replace(SMALL, dtype=dtype, scan_unroll=2)
    wide = "float64" if dtype == "float64" else "float32"
    with jax.enable_x64(dtype == "float64"):
        p, wide_memory = jax.tree.map(lambda leaf: jnp.asarray(leaf, wide), (params, memory))
        lengths = jnp.full(3, 5)
        expected = jax.jit(model.apply)(p, wide_memory, MEMORY_LENGTHS, TOKENS, lengths)
        cache = jax.jit(model.begin, static_argnums=3)(p, wide_memory, MEMORY_LENGTHS, 8)
        extend = jax.jit(model.extend)
        for t in range(5):
            logits, cache = extend(p, cache, TOKENS[:, t : t + 1], t)
            np.testing.assert_allclose(logits[:, 0], expected[:, t], atol=atol)


def test_texts_of_a_row_take_their_parents_past(params, memory):
    """Three texts a row that branch and die: each step's logits are those of the whole texts."""
    draw = np.random.default_rng(2)
    cache = SMALL.begin(params, memory, MEMORY_LENGTHS, 4, beam=3)
    extend = jax.jit(SMALL.extend)
    texts = np.zeros((3, 3, 0), np.int64)
    for t in range(4):
        tokens, parents = draw.integers(0, 7, (3, 3)), draw.integers(0, 3, (3, 3))
        texts = np.take_along_axis(texts, parents[..., None], axis=1)
        texts = np.concatenate([texts, tokens[..., None]], axis=2)
        logits, cache = extend(params, cache, jnp.asarray(tokens), t, jnp.asarray(parents))
        for w in range(3):
            inputs = jnp.pad(jnp.asarray(texts[:, w]), ((0, 0), (0, 3 - t)))
            whole = decode(params, memory, MEMORY_LENGTHS, inputs, jnp.full(3, t + 1))
            np.testing.assert_allclose(logits[:, w], whole[:, t], atol=1e-5)


@pytest.mark.slow
def test_bfloat16_is_close_and_its_gradients_are_finite(params, memory):
    half = dataclasses.replace(SMALL, dtype="bfloat16")
    logits = jax.jit(half.apply)(params, memory, MEMORY_LENGTHS, TOKENS, LENGTHS)
    assert logits.dtype == jnp.float32
    expected = decode(params, memory, MEMORY_LENGTHS, TOKENS, LENGTHS)
    assert_close_in_bfloat16(logits, expected, 6 * 5)  # 6 branches of 5 operations
    _, (grads, _) = loss_and_grads(half, params, memory)
    for grad, leaf in zip(jax.tree.leaves(grads), jax.tree.leaves(params), strict=True):
        assert grad.dtype == leaf.dtype
        assert np.all(np.isfinite(grad))
        assert np.any(grad)


def test_gradient_matches_a_finite_difference_in_float64(params, memory):
    model = dataclasses.replace(SMALL, dtype="float64", scan_unroll=2)
    with jax.enable_x64(True):
        wide = jnp.asarray(memory, jnp.float64)
        inputs = wide, MEMORY_LENGTHS, TOKENS, LENGTHS
        check_slope(lambda moved: model.apply(moved, *inputs), params)


@pytest.mark.slow
def test_dropout_needs_a_key_acts_in_training_only_and_repeats(params, memory):
    model = dataclasses.replace(SMALL, dropout=0.5)
    inputs = params, memory, MEMORY_LENGTHS, TOKENS, LENGTHS
    with pytest.raises(ValueError, match="rng"):
        model.apply(*inputs, train=True)
    np.testing.assert_array_equal(jax.jit(model.apply)(*inputs), decode(*inputs))
    run = jax.jit(lambda key: model.apply(*inputs, train=True, rng=key))
    first = run(jax.random.key(1))
    assert np.any(np.abs(first - decode(*inputs)) > 1e-3)
    np.testing.assert_array_equal(run(jax.random.key(1)), first)
    assert np.any(run(jax.random.key(2)) != first)


@pytest.mark.slow
def test_initial_scale_and_size():
    """Logits of variance about 1: the first loss is near ln K + 1/2, whatever the width."""
    model = Decoder(dim=64, layers=3, heads=4, vocab_size=200, memory_dim=32, ff_mult=2)
    params = jax.jit(model.init)(jax.random.key(0))
    draw = np.random.default_rng(0)
    memory = jnp.asarray(draw.normal(size=(4, 9, 32)), jnp.float32)
    tokens, lengths = jnp.asarray(draw.integers(0, 200, (4, 12))), jnp.full(4, 12)
    logits = jax.jit(model.apply)(params, memory, jnp.full(4, 9), tokens, lengths)
    nats = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(np.mean(nats), math.log(200) + 0.5, atol=0.5)
    d, k = 64, 200
    attention = 4 * d * d + 2 * d, 2 * d * d + 2 * 32 * d + 2 * d  # itself, the encoder's output
    block = sum(attention) + 2 * 2 * d * d + 3 * d + 3 * 2 * d
    total = k * d + 3 * block + 2 * d + d * k + k
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == total


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 15}, "decoder dim=15"),
        ({"heads": 3}, "multiple of heads=3"),
        ({"layers": 0}, "decoder layers=0"),
        ({"vocab_size": 1}, "decoder vocab_size=1"),
        ({"dropout": 1.0}, r"decoder dropout=1.0"),
        ({"dtype": "bf16"}, "decoder dtype='bf16'"),
    ],
)
def test_impossible_fields_are_the_users_error(fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **fields)
