"""The loss of a task on a split, computed with its best paths."""

import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.bilevel.types import Task, Weights
from bljust_jax.inference import scoring
from bljust_jax.inference.decode_split import greedy_decoder
from tests.helpers import corpora


def test_the_loss_of_a_split_is_the_mean_over_its_weights(tmp_path):
    """Of a task that gives each utterance as many nats as it has samples, and a weight of its
    labels; utterances without labels have neither."""
    corpus = corpora.load(corpora.noise(tmp_path), buckets=(0.5, 2.0), **corpora.PLAIN)

    def predict(params, stats, batch):
        return jnp.zeros((len(batch["ids"]), 3, 4)), jnp.full(len(batch["ids"]), 3)

    def loss(logits, lengths, batch):
        weight = batch["label_lengths"].astype(np.float32)
        return batch["audio_lengths"] * (weight > 0), weight

    task = Task("", "labelled", "wer", "head", predict, losses={"ctc": loss})
    weights = Weights({}, {})
    found = scoring.score_tasks(
        "dev", (task,), corpus, lambda task, batch: greedy_decoder(task)(weights, batch)
    )
    spelt = [u for u in corpus.utterances("dev") if u.text == "ba"]
    samples = sum(round(u.duration * corpora.RATE) for u in spelt)
    assert len(spelt) < len(corpus.utterances("dev"))
    assert found.scores["dev/ctc/loss"] == pytest.approx(samples / (2 * len(spelt)))
    assert f", loss {samples / (2 * len(spelt)):.3f}" in found.describe(0)[0]
    assert found.rates.keys() == {"dev/wer", "dev/cer", "dev/ctc/loss"}
