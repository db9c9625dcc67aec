"""The CTC objective: its sums, weights and metrics, and how gradients and draws pass through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.bilevel.rng import row_keys
from bljust_jax.bilevel.types import Extras
from bljust_jax.objectives import ctc
from bljust_jax.ops.ctc import ctc_loss
from tests.helpers.batches import HOP, features, toy_encoder

DIM, CLASSES = 6, 5
EXTRAS = Extras(step=0, frozen={}, stats={}, ema={}, scale={"ctc": jnp.float32(1)})


def head(params, h):
    return h @ params["head"]


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {
        "encoder": jnp.asarray(rng.normal(size=(HOP, DIM)), jnp.float32),
        "head": jnp.asarray(rng.normal(size=(DIM, CLASSES)), jnp.float32),
    }


@pytest.fixture
def batch():
    """Three utterances, the second too short for its labels, and a row of padding."""
    rng = np.random.default_rng(1)
    data = {
        "audio": rng.integers(-2000, 2000, size=(4, 40)).astype(np.int16),
        "audio_lengths": np.array([40, 8, 31, 0], np.int32),
        "labels": np.array([[1, 2, 3], [1, 1, 4], [4, 0, 0], [0, 0, 0]], np.int32),
        "label_lengths": np.array([3, 3, 1, 0], np.int32),
        "ids": np.array([7, 8, 9, 0], np.uint32),
    }
    return {"labelled": jax.tree.map(jnp.asarray, data)}


class Ctc(ctc.Ctc):
    def logits(self, params, output):
        return head(params, output)


def make(**kw):
    return Ctc(encoder=toy_encoder(), **kw)


def test_loss_is_the_sum_over_feasible_utterances(params, batch):
    objective = make()
    assert objective.losses == ("ctc",)
    assert objective.streams == ("labelled",)
    losses, aux = jax.jit(objective.apply)(params, EXTRAS, batch, jax.random.key(3))
    data = batch["labelled"]
    keys = row_keys(jax.random.split(jax.random.key(3))[0], data["ids"])
    x, lengths, _ = features(data["audio"], data["audio_lengths"], keys=keys, train=True)
    logits = head(params, jnp.tanh(x @ params["encoder"]))
    nats = ctc_loss(logits, lengths, data["labels"], data["label_lengths"])
    total, weight = losses["ctc"]
    np.testing.assert_allclose(total, nats[0] + nats[2], rtol=1e-6)
    assert weight == 4
    assert aux.stats == {}
    assert aux.metrics["ctc/infeasible"] == (1, 1)
    blanks, frames = aux.metrics["ctc/blank_share"]
    best = np.asarray(logits).argmax(-1)
    expected = sum((row[:n] == 0).sum() for row, n in zip(best, lengths, strict=True))
    assert (blanks, frames) == (expected, 10 + 2 + 7)
    by_utterance, _ = make(reduction="utterance").apply(params, EXTRAS, batch, jax.random.key(3))
    np.testing.assert_allclose(by_utterance["ctc"][0], total, rtol=1e-6)
    assert by_utterance["ctc"][1] == 2


@pytest.mark.parametrize("reduction", ctc.REDUCTIONS)
def test_a_row_without_labels_counts_nowhere(reduction, params, batch):
    """Neither in the loss, its weight and its gradient, nor in the metrics."""
    data = batch["labelled"]
    lengths = data["audio_lengths"]
    unlabelled = {**data, "label_lengths": data["label_lengths"].at[2].set(0)}
    absent = {**unlabelled, "audio_lengths": lengths.at[2].set(0)}
    apply = jax.jit(make(reduction=reduction).apply)
    found, aux = apply(params, EXTRAS, {"labelled": unlabelled}, jax.random.key(3))
    expected, expected_aux = apply(params, EXTRAS, {"labelled": absent}, jax.random.key(3))
    np.testing.assert_allclose(found["ctc"], expected["ctc"], rtol=1e-6)
    assert aux.metrics["ctc/infeasible"] == expected_aux.metrics["ctc/infeasible"]


def test_permuting_a_batch_permutes_the_draws_of_its_utterances(params, batch):
    order = jnp.array([2, 0, 3, 1])
    permuted = jax.tree.map(lambda x: x[order], batch)
    apply = jax.jit(make().apply)
    total, weight = apply(params, EXTRAS, batch, jax.random.key(3))[0]["ctc"]
    other, other_weight = apply(params, EXTRAS, permuted, jax.random.key(3))[0]["ctc"]
    np.testing.assert_allclose(total, other, rtol=1e-6)
    assert weight == other_weight


@pytest.mark.daily("0.3")
@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_scale_reaches_the_encoder_and_spares_the_head(params, batch, scale):
    def gradient(scale):
        extras = EXTRAS._replace(scale={"ctc": jnp.float32(scale)})
        loss = lambda p: make().apply(p, extras, batch, jax.random.key(0))[0]["ctc"][0]  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    plain, scaled = gradient(1.0), gradient(scale)
    assert np.abs(plain["encoder"]).max() > 0
    np.testing.assert_array_equal(plain["head"], scaled["head"])
    np.testing.assert_allclose(scale * plain["encoder"], scaled["encoder"], rtol=1e-5, atol=1e-6)


def test_rejects_unknown_reduction():
    with pytest.raises(ValueError, match="reduction 'frame'"):
        make(reduction="frame")
