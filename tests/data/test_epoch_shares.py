"""Sources mixed by weight: hours per epoch, draws by (seed, epoch), and the run that resumes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bljust_jax.common.errors import UserError
from bljust_jax.data.batch_plan import Plan
from bljust_jax.data.buckets import Bucket
from bljust_jax.data.corpus import Segment
from tests.helpers import corpora

TABLE = (Bucket(2.0, 3, 30), Bucket(4.0, 2, 60))


def mixed(durations, sources, weights, seed=0, **more):
    n = len(durations)
    names = [f"u{i}" for i in range(n)]
    texts = (names, [""] * n, names)
    return Plan(durations, None, *texts, TABLE, seed, sources=sources, weights=weights, **more)


def times(plan, epoch, size):
    members = [i for item in plan.items(epoch) for i in item.members]
    return np.bincount(members, minlength=size)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0.1, 4.0), st.sampled_from("abc")), min_size=9, max_size=60),
    st.tuples(*[st.floats(0.05, 20.0)] * 3),
    st.integers(0, 1000),
)
def test_a_source_has_its_share_of_each_epoch_to_within_half_an_utterance(rows, weights, seed):
    rows = [*rows, (1.0, "a"), (2.0, "b"), (3.0, "c")]
    durations, sources = np.array([d for d, _ in rows]), [s for _, s in rows]
    weights = dict(zip("abc", weights, strict=True))
    plan = mixed(durations, sources, weights, seed)
    for epoch in range(3):
        count = times(plan, epoch, len(rows))
        for name, weight in weights.items():
            own = np.array([s == name for s in sources])
            seconds = (count * durations)[own].sum()
            wanted = weight / sum(weights.values()) * durations.sum()
            assert np.ptp(count[own]) <= 1
            assert count[own].max() >= 1
            # half of the longest; the whole of it where one utterance is kept of none
            slack = durations[own].max() * (0.5 if count[own].sum() > 1 else 1.0)
            assert abs(seconds - wanted) <= slack + 1e-9


def test_weights_in_proportion_to_hours_are_all_audio_once():
    durations, sources = np.array([1.0, 2.0, 3.0, 1.0] * 5), ["a", "a", "b", "b"] * 5
    plan = mixed(durations, sources, {"a": 15.0, "b": 20.0})
    assert times(plan, 0, 20).tolist() == [1] * 20
    assert times(plan, 3, 20).tolist() == [1] * 20


def test_skipped_utterances_depend_on_seed_and_epoch_alone():
    durations, sources = np.full(60, 1.0), ["a"] * 40 + ["b"] * 20
    plans = [mixed(durations, sources, {"a": 1.0, "b": 1.0}, seed) for seed in (0, 0, 1)]
    drawn = [[times(plan, epoch, 60).tolist() for epoch in (0, 1)] for plan in plans]
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]
    assert drawn[0] != drawn[2]
    assert [plans[1].batch(n) for n in (50, 3)] == [plans[0].batch(n) for n in (50, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """noise() as two manifests, one of 10 and one of 30 utterances."""
    made = corpora.noise(tmp_path_factory.mktemp("sources"))
    rows = [json.loads(line) for line in (made / "train.jsonl").read_text().splitlines()]
    corpora.write(made, "few", [row | {"text": "ab"} for row in rows[::4]])
    corpora.write(made, "many", [row | {"text": "ab"} for n, row in enumerate(rows) if n % 4])
    return made


def load(folder, mix, **changes):
    train = f"{folder}/few.jsonl+{folder}/many.jsonl"
    return corpora.load(folder, **{**corpora.PLAIN, "train": train, "mix": mix, **changes})


@pytest.mark.parametrize("mix", [(3.0, 1.0), (1.0, 1.0), (0.1, 2.0)])
def test_batches_have_each_source_s_share_to_within_a_batch(folder, mix):
    corpus = load(folder, mix)
    plan, found = corpus.plans["labelled"], corpus.utterances("labelled")
    seconds = dict.fromkeys(("few", "many"), 0.0)
    for item in plan.items(1):
        for i in item.members:
            seconds[found[i].part] += found[i].duration
    batch = max(bucket.seconds * bucket.batch_size for bucket in plan.buckets)
    total = sum(u.duration for u in found)
    for name, weight in zip(seconds, mix, strict=True):
        assert abs(seconds[name] - weight / sum(mix) * total) < batch
    assert sum(f"of source {name!r}" in line for line in corpus.summary() for name in seconds) == 2


def test_a_run_that_resumes_reads_the_same_batches(folder):
    corpus = load(folder, (3.0, 1.0))
    steps = 2 * corpus.plans["labelled"].batches_per_epoch + 3
    segments = [Segment(0, steps, corpora.JOINT)]
    whole = list(corpus.train_batches(segments, 0))
    again = list(load(folder, (3.0, 1.0)).train_batches(segments, steps - 4))
    for one, two in zip(whole[-4:], again, strict=True):
        corpora.assert_equal(one, two)


def test_without_weights_all_audio_is_read_once(folder):
    plan = load(folder, ()).plans["labelled"]
    assert times(plan, 1, 40).tolist() == [1] * 40
    assert plan.hours_of_sources() == {}


@pytest.mark.parametrize(
    ("mix", "changes", "complaint"),
    [
        (
            (1.0, 2.0, 3.0),
            {},
            r"config\.data\.mix has 3 weights for 2 sources of config\.data\.train",
        ),
        ((1.0,), {}, r"has 1 weights for 2 sources"),
        ((1.0, 0.0), {}, r"config\.data\.mix"),
        ((1.0, 2.0), {"max_seconds": 0.3, "min_seconds": 0.25}, r"no utterance of 'few' is left"),
    ],
)
def test_weights_that_fit_no_source_are_refused(folder, mix, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        load(folder, mix, **changes)
