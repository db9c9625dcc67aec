"""The sample of training utterances that is scored beside dev."""

import json

import pytest

from bljust_jax.data import train_sample
from tests.helpers import corpora


@pytest.mark.parametrize(("count", "found"), [(0, 0), (3, 3), (1000, 8)])
def test_the_sample_has_texts_and_lengths_for_which_dev_has_a_batch(count, found, tmp_path):
    """Dev is eight utterances of 0.5 to 0.8 s, in the second of three buckets, which holds 0.4 to
    0.9 s."""
    folder = corpora.noise(tmp_path)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    dev = [row for row in rows if 0.5 <= row["duration"] <= 0.8 and row.get("text")][:8]
    corpora.write(folder, "dev", dev)
    corpus = corpora.load(folder, buckets=(0.4, 0.9, 1.5), **corpora.PLAIN)
    listed, digest = corpus.names, corpus.digest()
    train_sample.add(corpus, count)
    sample = corpus.utterances("train_sample")
    assert len(sample) == len({u.id for u in sample}) == found
    assert all(u.text and 0.4 < u.duration <= 0.9 for u in sample)
    assert set(corpus.eval_buckets("train_sample")) <= set(corpus.eval_buckets("dev"))
    assert (corpus.names, corpus.digest()) == (listed, digest)
    if found > 1:
        durations = [u.duration for u in sample]
        assert max(durations) - min(durations) > 0.3, "spread over the training data"


def test_corrupt_audio_of_the_sample_is_quarantined_as_training_data(tmp_path):
    folder = corpora.noise(tmp_path)
    corpus = corpora.load(folder, buckets=(1.5,), max_bad_fraction=0.5, **corpora.PLAIN)
    train_sample.add(corpus, 4)
    first, *others = corpus.utterances("train_sample")
    with open(first.path, "r+b") as file:
        file.truncate(60)
    scored = [u for _, members in corpus.eval_batches("train_sample") for u in members]
    assert scored == others
    assert [entry["splits"] for entry in corpus.quarantined] == [["labelled"]]
