"""The attention objective: its sums, weights and metrics, what the decoder is fed, and its laws."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.bilevel.rng import row_keys
from bljust_jax.bilevel.types import Extras
from bljust_jax.models.decoder import Decoder
from bljust_jax.objectives import cross_entropy
from tests.helpers.batches import HOP, ToyEncoder, encode, features

NAME = "st/fr-en"
MODEL = Decoder(dim=16, layers=1, heads=2, vocab_size=6, memory_dim=8)
EXTRAS = Extras(step=0, frozen={}, stats={}, ema={}, scale={NAME: jnp.float32(1)})


class CrossEntropy(cross_entropy.CrossEntropy):
    head = "head"


def make(model=MODEL, encode=encode, **kw):
    toy = ToyEncoder(features, encode)
    return CrossEntropy(encoder=toy, stream=NAME, name=NAME, decoder=model, **kw)


@functools.cache
def compiled_loss(smoothing=0.1):
    return jax.jit(make(smoothing=smoothing).apply)


@pytest.fixture(scope="module")
def params():
    encoder = jnp.asarray(np.random.default_rng(0).normal(size=(HOP, 8)), jnp.float32)
    return {"encoder": encoder, "head": jax.jit(MODEL.init)(jax.random.key(0))}


@pytest.fixture
def batch():
    """An utterance, one without labels, one that is too short for a frame, a row of padding."""
    rng = np.random.default_rng(1)
    data = {
        "audio": rng.integers(-2000, 2000, size=(4, 40)).astype(np.int16),
        "audio_lengths": np.array([40, 24, 3, 0], np.int32),
        "labels": np.array([[1, 2, 5], [0, 0, 0], [4, 3, 0], [0, 0, 0]], np.int32),
        "label_lengths": np.array([3, 0, 2, 0], np.int32),
        "ids": np.array([7, 8, 9, 0], np.uint32),
    }
    return {NAME: jax.tree.map(jnp.asarray, data)}


def test_teacher_forcing_shifts_by_one():
    labels = jnp.array([[4, 2, 3], [1, -1, 9], [7, 7, 7]])
    has_audio = jnp.array([True, True, False])
    inputs, targets, counts = cross_entropy.teacher_forcing(labels, jnp.array([3, 1, 2]), has_audio)
    np.testing.assert_array_equal(inputs, [[0, 4, 2, 3], [0, 1, 0, 0], [0, 7, 7, 0]])
    np.testing.assert_array_equal(targets, [[4, 2, 3, 0], [1, 0, 0, 0], [7, 7, 0, 0]])
    np.testing.assert_array_equal(counts, [4, 2, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_cross_entropy_of_the_real_tokens(params, batch, smoothing):
    """Against sums of logarithms in numpy, a token at a time."""
    objective = make(smoothing=smoothing)
    assert objective.losses == objective.streams == (NAME,)
    losses, aux = compiled_loss(smoothing)(params, EXTRAS, batch, jax.random.key(3))
    data = batch[NAME]
    keys = row_keys(jax.random.split(jax.random.key(3), 3)[0], data["ids"])
    x, lengths, _ = features(data["audio"], data["audio_lengths"], keys=keys, train=True)
    inputs, counts = jnp.array([[0, 1, 2, 5], [0] * 4, [0] * 4, [0] * 4]), jnp.array([4, 1, 0, 0])
    memory = jnp.tanh(x @ params["encoder"])
    logits = MODEL.apply(params["head"], memory, lengths, inputs, counts)
    nats, right = 0.0, 0
    for row, targets in ((0, [1, 2, 5, 0]), (1, [0])):
        for t, target in enumerate(targets):
            p = np.exp(np.asarray(logits[row, t], np.float64))
            q = np.full(6, smoothing / 6)
            q[target] += 1 - smoothing
            nats -= np.sum(q * np.log(p / p.sum()))
            right += int(p.argmax() == target)
    total, weight = losses[NAME]
    np.testing.assert_allclose(total, nats, rtol=1e-5)  # float32
    assert weight == 5
    assert aux.stats == {}
    assert aux.metrics == {f"{NAME}/accuracy": (right, 5)}


def test_smoothing_closed_forms():
    """Uniform logits cost ln K whatever the smoothing; the least loss is the entropy of q, where
    p = q; and without smoothing a sure and right answer costs nothing."""
    targets = jnp.array([[2]])
    for smoothing in (0.0, 0.3):
        uniform = cross_entropy.smoothed_nats(jnp.zeros((1, 1, 4)), targets, smoothing)
        np.testing.assert_allclose(uniform, math.log(4), rtol=1e-6)
    q = np.array([0.075, 0.075, 0.775, 0.075])
    least = cross_entropy.smoothed_nats(jnp.log(q)[None, None], targets, 0.3)
    np.testing.assert_allclose(least, -np.sum(q * np.log(q)), rtol=1e-6)
    slope = jax.grad(lambda x: cross_entropy.smoothed_nats(x[None, None], targets, 0.3)[0, 0])
    np.testing.assert_allclose(slope(jnp.log(q)), 0, atol=1e-6)
    sure = jnp.array([[[0.0, 0.0, 200.0, 0.0]]])
    assert cross_entropy.smoothed_nats(sure, targets, 0.0) == 0


def test_what_is_predicted_is_never_read(params, batch):
    """Loss of the first t tokens alone: label t + 1 and later ones change nothing, to the last
    bit, though label t changes it."""

    @jax.jit
    def token_nats(labels, label_lengths):
        inputs, targets, counts = cross_entropy.teacher_forcing(
            labels, label_lengths, jnp.array([True, True])
        )
        memory = jnp.tanh(jnp.ones((2, 5, 8)))
        logits = MODEL.apply(params["head"], memory, jnp.array([5, 3]), inputs, counts)
        return logits, cross_entropy.smoothed_nats(logits, targets, 0.1)

    labels, lengths = jnp.array([[1, 2, 5], [3, 3, 4]]), jnp.array([3, 3])
    logits, nats = token_nats(labels, lengths)
    for t in range(3):
        other = labels.at[:, t].set(labels[:, t] % 5 + 1)
        changed, changed_nats = token_nats(other, lengths)
        np.testing.assert_array_equal(changed[:, : t + 1], logits[:, : t + 1])
        np.testing.assert_array_equal(changed_nats[:, :t], nats[:, :t])
        assert np.all(np.any(changed[:, t + 1] != logits[:, t + 1], axis=-1))
        assert np.all(changed_nats[:, t] != nats[:, t])


def test_padding_never_matters(params, batch):
    """Longer rows of labels, wild ids in their padding and more rows without audio."""
    total, weight = compiled_loss()(params, EXTRAS, batch, jax.random.key(3))[0][NAME]
    data = batch[NAME]
    real = jnp.arange(3)[None, :] < data["label_lengths"][:, None]
    wild = jnp.where(real, data["labels"], 10**6)
    longer = {**data, "labels": jnp.pad(wild, ((0, 0), (0, 4)), constant_values=-1)}
    longer = jax.tree.map(lambda x: jnp.concatenate([x, x[3:]]), longer)
    losses, aux = compiled_loss()(params, EXTRAS, {NAME: longer}, jax.random.key(3))
    np.testing.assert_allclose(losses[NAME][0], total, rtol=1e-5)  # the law's bound
    assert losses[NAME][1] == weight == aux.metrics[f"{NAME}/accuracy"][1]


def test_permuting_a_batch_permutes_the_draws_of_its_utterances(params, batch):
    permuted = jax.tree.map(lambda x: x[jnp.array([2, 0, 3, 1])], batch)
    total, weight = compiled_loss()(params, EXTRAS, batch, jax.random.key(3))[0][NAME]
    other, other_weight = compiled_loss()(params, EXTRAS, permuted, jax.random.key(3))[0][NAME]
    np.testing.assert_allclose(total, other, rtol=1e-6)
    assert weight == other_weight


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_finite_and_scale_spares_the_head(params, batch, dtype):
    """With dropout, rows of no frame and rows of no label in the batch; every parameter learns."""
    objective = make(dataclasses.replace(MODEL, dtype=dtype, dropout=0.1))

    @jax.jit
    def gradient(scale):
        extras = EXTRAS._replace(scale={NAME: scale})
        loss = lambda p: objective.apply(p, extras, batch, jax.random.key(0))[0][NAME][0]  # noqa: E731
        return jax.grad(loss)(params)

    plain, scaled, none = (gradient(jnp.float32(s)) for s in (1.0, 0.3, 0.0))
    assert all(np.all(np.isfinite(g)) and np.any(g) for g in jax.tree.leaves(plain))
    assert not np.any(none["encoder"])
    for other in (scaled, none):
        jax.tree.map(np.testing.assert_array_equal, plain["head"], other["head"])
    np.testing.assert_allclose(0.3 * plain["encoder"], scaled["encoder"], rtol=1e-5, atol=1e-6)


def test_a_batch_without_audio_weighs_nothing(params, batch):
    silent = {**batch[NAME], "audio_lengths": jnp.zeros(4, jnp.int32)}
    losses, _ = compiled_loss()(params, EXTRAS, {NAME: silent}, jax.random.key(0))
    assert losses[NAME] == (0, 0)


@pytest.mark.slow
def test_loss_falls_on_one_batch(params, batch):
    """Plain gradient descent learns four utterances by heart, down to the entropy of the smoothed
    labels."""

    def loss(p):
        total, weight = make().apply(p, EXTRAS, batch, jax.random.key(0))[0][NAME]
        return total / weight

    @jax.jit
    def descend(p):
        def step(p, _):
            value, grads = jax.value_and_grad(loss)(p)
            return jax.tree.map(lambda x, g: x - 0.1 * g, p, grads), value

        return jax.lax.scan(step, p, length=100)

    trained, losses = descend(params)
    rare = 0.1 / 6
    entropy = -(0.9 + rare) * math.log(0.9 + rare) - 5 * rare * math.log(rare)
    assert entropy <= losses[-1] < entropy + 0.2 < losses[0]
    _, aux = compiled_loss()(trained, EXTRAS, batch, jax.random.key(0))
    assert aux.metrics[f"{NAME}/accuracy"] == (5, 5)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_rejects_smoothing_that_is_no_share(smoothing):
    with pytest.raises(ValueError, match="smoothing"):
        make(smoothing=smoothing)
