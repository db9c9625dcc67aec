"""Subsets of unlabelled audio by hours: drawn by seed, nested, whatever the order of the source."""

import dataclasses
import itertools
import math
from collections import Counter

import numpy as np
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.data import filters
from bljust_jax.data.corpus import Segment
from bljust_jax.data.filters import subset_of_hours
from bljust_jax.data.sources import Utterance, open_source
from tests.helpers import corpora
from tests.helpers.corpora import load
from tests.helpers.yodas_shards import write_shard


def utterances(n=3000):
    """Utterances of 10 to 40 s of a stream that is read from shards."""
    seconds = np.random.default_rng(0).uniform(10.0, 40.0, n).tolist()
    return [
        Utterance(f"u{i}", f"shard{i % 7}.tar#u{i}", 0.0, s, None, "en", f"s{i % 9}")
        for i, s in enumerate(seconds)
    ]


def hours(found):
    return sum(u.duration for u in found) / 3600


def test_hours_are_met_to_within_one_utterance_and_the_rest_is_counted():
    every = utterances()
    for wanted in (0.01, 1.0, 7.5, hours(every)):
        skipped = Counter()
        found = subset_of_hours(every, wanted, 0, skipped)
        assert wanted - 1e-9 <= hours(found) < wanted + 40 / 3600
        assert skipped.total() == len(every) - len(found)
        assert all(f"unlabelled_hours={wanted:g}" in reason for reason in skipped)
    assert subset_of_hours(every, 0.0, 0, Counter()) == every


def test_fewer_hours_are_part_of_more_whatever_the_order_of_the_source():
    every = utterances()
    shuffled = [every[i] for i in np.random.default_rng(1).permutation(len(every))]
    drawn = [{u.id for u in subset_of_hours(every, h, 3, Counter())} for h in (1.0, 2.0, 5.0, 10.0)]
    for less, more in itertools.pairwise(drawn):
        assert less < more
    again = subset_of_hours(shuffled, 2.0, 3, Counter())
    assert {u.id for u in again} == drawn[1]
    assert [u for u in shuffled if u.id in drawn[1]] == again, "the order is that of the source"
    other = {u.id for u in subset_of_hours(every, 2.0, 4, Counter())}
    expected = len(drawn[1]) ** 2 / len(every)  # of two independent subsets in common
    assert abs(len(other & drawn[1]) - expected) < 5 * expected**0.5


def test_a_subset_has_the_durations_of_the_whole():
    """No bias to short utterances: the means agree to within four standard errors."""
    every = utterances()
    found = subset_of_hours(every, 8.0, 0, Counter())
    own, whole = ([u.duration for u in part] for part in (found, every))
    assert abs(np.mean(own) - np.mean(whole)) < 4 * np.std(whole) / len(own) ** 0.5


def test_more_hours_than_there_are_is_one_line():
    with pytest.raises(UserError, match=r"unlabelled_hours: 100 h of the .* h of .*; lower it"):
        subset_of_hours(utterances(), 100.0, 0, Counter())


def test_the_corpus_has_the_subset_on_any_number_of_devices(tmp_path):
    corpora.noise(tmp_path)
    whole = load(tmp_path)
    found = {}
    for wanted, multiple in ((0.002, 1), (0.002, 4), (0.004, 1)):
        corpus = load(tmp_path, multiple=multiple, unlabelled_hours=wanted)
        found[wanted, multiple] = corpus.utterances("unlabelled")
        assert corpus.utterances("labelled") == whole.utterances("labelled")
        assert any("beyond config.data.unlabelled_hours" in line for line in corpus.summary())
    assert found[0.002, 1] == found[0.002, 4]
    assert set(found[0.002, 1]) < set(found[0.004, 1]) < set(whole.utterances("unlabelled"))
    assert load(tmp_path, unlabelled_hours=0.002).digest() != whole.digest()


def test_shards_of_yodas_are_drawn_from_together(tmp_path):
    write_shard(tmp_path / "en000")
    every = open_source(f"yodas:{tmp_path}/en000")  # 1.0, 0.5, 0.8 s
    found = [subset_of_hours(order, 1.2 / 3600, 0, Counter()) for order in (every, every[::-1])]
    assert {u.id for u in found[0]} == {u.id for u in found[1]}
    assert 1.2 <= 3600 * hours(found[0]) < 2.3


@pytest.mark.parametrize("seconds", [3.0, 10.0, 10.1, 95.0])
def test_pieces_are_equal_and_cover_the_audio(seconds):
    changes = {"duration": seconds, "offset": 2.5, "text": "some words", "speaker": "s"}
    u = dataclasses.replace(utterances(1)[0], **changes)
    pieces = filters.cut_into_pieces(u, 10.0)
    if seconds <= 10.0:
        assert pieces == [u]
        return
    assert len(pieces) == math.ceil(seconds / 10)
    lengths = {round(p.duration, 9) for p in pieces}
    assert len(lengths) == 1
    assert max(lengths) <= 10.0
    assert pieces[0].offset == 2.5
    for before, after in itertools.pairwise(pieces):
        assert after.offset == pytest.approx(before.offset + before.duration)
    assert pieces[-1].offset + pieces[-1].duration == pytest.approx(2.5 + seconds)
    assert len({p.id for p in pieces}) == len(pieces)
    assert {(p.path, p.speaker, p.text) for p in pieces} == {(u.path, "s", None)}


@pytest.mark.parametrize("cut", [True, False])
def test_over_long_audio_is_read_in_pieces_by_the_lower_level_alone(cut, tmp_path):
    corpora.noise(tmp_path)  # up to 1.37 s
    settings = {"max_seconds": 1.0, "buckets": (0.5, 1.0), "unlabelled_cut": cut}
    corpus = corpora.load(tmp_path, **settings)
    source = open_source(str(tmp_path / "train.jsonl"))
    long = [u for u in source if u.duration > 1.0]
    assert long
    unlabelled = corpus.utterances("unlabelled")
    whole = sum(u.duration for u in source if cut or u.duration <= 1.0)
    assert sum(u.duration for u in unlabelled) == pytest.approx(whole)
    assert max(u.duration for u in unlabelled) <= 1.0
    assert max(u.duration for u in corpus.utterances("labelled")) <= 1.0
    assert corpus.skipped["labelled"]["longer than 1 s (config.data.max_seconds)"]
    line = f"unlabelled: {len(long)} utterances longer than data.max_seconds, in pieces"
    assert (line in corpus.summary()) == cut
    for batch in corpus.train_batches([Segment(0, 4, corpora.JOINT)], 0):
        assert (batch["unlabelled"]["audio_lengths"] > 0).all()  # every piece can be read
