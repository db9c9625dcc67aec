"""Lengths of batches that follow from durations: each stream is read at one pace."""

import collections
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from bljust_jax.data import bucket_lengths, config_checks
from bljust_jax.data.batch_plan import Plan
from bljust_jax.data.buckets import bucket_table
from bljust_jax.data.corpus import Segment, load_corpus
from configs import defaults
from tests.helpers import corpora


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 9), min_size=2, max_size=6).filter(lambda x: sum(x) > 0),
    st.sampled_from(["uniform", "long", "two lengths"]),
    st.integers(1, 3),
)
def test_batches_of_each_bucket_have_the_shares_of_the_leader(seed, weights, kind, multiple):
    """Any utterance is read equally often per step, shares_k rows_k / n_k, whatever its bucket; the
    error is at most half the items of one length (0.01 s) at either end of a bucket."""
    rng = np.random.default_rng(seed)
    needs = {
        "uniform": rng.uniform(0.5, 17, 20_000),
        "long": 17 - rng.gamma(2.0, 1.0, 20_000).clip(0, 16),
        "two lengths": np.where(rng.random(20_000) < 0.5, 3.0, 12.0) + rng.random(20_000),
    }[kind]
    shares = np.array(weights) / sum(weights)
    made = bucket_lengths.follow(needs, shares, 60.0, multiple, 17.0)
    found, rows = (np.array(column) for column in zip(*made, strict=True))
    assert np.all(np.diff(found) >= 0)
    assert found[np.flatnonzero(shares)[-1]] == 17.0
    assert np.all(rows % multiple == 0)
    assert np.all((rows * found <= 60.0 + 1e-6) | (rows == multiple))
    counts = np.bincount(found.searchsorted(needs - 1e-6), minlength=len(found))
    assert counts.sum() == len(needs)
    assert np.all(counts[shares == 0] == 0)
    same = np.unique(np.ceil(needs * 100 - 1e-4), return_counts=True)[1].max()
    expected = shares * rows / np.sum(shares * rows) * len(needs)
    assert np.all(np.abs(np.cumsum(counts) - np.cumsum(expected)) <= same / 2 + 1)
    ordered = np.sort(needs)
    used = np.flatnonzero(shares)
    for k in range(len(used)):  # one step more rows is too long in some bucket
        more = rows[used] + multiple * (np.arange(len(used)) == k)
        ends = np.cumsum(shares[used] * more) / np.sum(shares[used] * more) * len(needs)
        longest = np.append(ordered[np.round(ends[:-1]).astype(int).clip(1) - 1], 17.0)
        assert np.any((more * (longest + 0.02) > 60.0) & (more > multiple))


LANGUAGES = {  # utterances, shortest and longest in seconds, lengths of batches
    "asr/zh": (6000, 2.0, 9.0, (4.0, 6.0, 9.0)),
    "asr/en": (1600, 1.5, 17.0, (10.0, 14.0, 17.0)),
}


def durations_of(name):
    """asr/zh: most of them short; asr/en: most of them long."""
    n, low, high, _ = LANGUAGES[name]
    rank = (np.arange(n) + 0.5) / n
    rank = rank**2 if name == "asr/zh" else 1 - (1 - rank) ** 3
    return np.round(low + (high - low) * rank, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Manifests with one empty file: a plan reads durations, not audio."""
    made = tmp_path_factory.mktemp("languages")
    (made / "none.flac").touch()
    for name in LANGUAGES:
        language = name[-2:]
        entries = [
            {"audio_filepath": "none.flac", "duration": float(d), "text": "a b"}
            | {"id": f"{language}{i}", "speaker": f"s{i % 50}", "lang": language}
            for i, d in enumerate(durations_of(name))
        ]
        corpora.write(made, language, entries)
        corpora.write(made, f"{language}-dev", entries[::100])
    return made


@pytest.fixture(scope="module")
def corpus(folder):
    return load(folder)


def load(folder, *, multiple=1, phases=None, **changes):
    data = defaults.base().data
    data.update(buckets=(6.0, 10.0, 17.0), batch_seconds=200.0, unlabelled_batch_seconds=300.0)
    data.update(rows_multiple=2, **changes)
    for name, (*_, lengths) in LANGUAGES.items():
        train, dev = (str(folder / f"{name[-2:]}{end}.jsonl") for end in ("", "-dev"))
        data.streams[name] = defaults.stream(train, dev, buckets=lengths)
    config_checks.check(ConfigDict({"data": data, "seed": 0}))
    return load_corpus(data, seed=0, multiple=multiple, phases=phases)


def times_read(corpus, stream, needed, epochs):
    """How often `epochs` passes of a stream read each of its utterances: [N]."""
    plan = corpus.plans[stream]
    segments = [Segment(0, epochs * plan.batches_per_epoch, needed)]
    drawn = collections.Counter()
    for step in range(segments[0].length):
        for item in plan.nth_batch_of_bucket(*corpus.draws(segments, step)[stream]):
            drawn.update(item.members)
    return np.array([drawn[i] for i in range(len(corpus.utterances(stream)))])


ALL = ("asr/en", "asr/zh", "unlabelled")


@pytest.mark.daily("asr/en")
@pytest.mark.parametrize("stream", ALL)
def test_a_pass_of_each_stream_reads_long_and_short_utterances_equally_often(corpus, stream):
    """asr/zh leads with short utterances; every tenth of a stream, by length, is read once per
    pass of the stream, to within 2 % and the rows of a bucket's last batch."""
    epochs = 6
    assert corpus.driver(ALL) == "asr/zh"
    times = times_read(corpus, stream, ALL, epochs)
    order = np.argsort([u.duration for u in corpus.utterances(stream)])
    per_pass = np.array([times[part].mean() / epochs for part in np.array_split(order, 10)])
    assert abs(per_pass.mean() - 1) < 0.02
    assert np.all(np.abs(per_pass - per_pass.mean()) < 0.02), per_pass
    assert times.min() >= epochs - 1
    assert times.max() <= epochs + 2


def test_streams_of_unlike_length_share_one_program_per_length(corpus):
    assert corpus.buckets_in_use(ALL) == [0, 1, 2]
    shares = {name: np.array(p.counts) / p.batches_per_epoch for name, p in corpus.plans.items()}
    for name in ALL:
        np.testing.assert_allclose(shares[name], shares["asr/zh"], atol=0.02)
        longest = max(u.duration for u in corpus.utterances(name))
        seconds = [bucket.seconds for bucket in corpus.plans[name].buckets]
        assert seconds[-1] >= longest
    assert [b.seconds for b in corpus.plans["asr/zh"].buckets] == [4.0, 6.0, 9.0]
    lines = [line for line in corpus.summary() if "follow from" in line]
    assert [line.partition(":")[0] for line in lines] == ["asr/en", "unlabelled"]


@pytest.mark.slow
def test_lengths_that_follow_do_not_depend_on_the_order_of_a_manifest(corpus, folder, tmp_path):
    table = {name: plan.buckets for name, plan in corpus.plans.items()}
    (tmp_path / "none.flac").touch()
    for path in folder.glob("*.jsonl"):
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        corpora.write(tmp_path, path.stem, entries[::-1])
    assert {name: plan.buckets for name, plan in load(tmp_path).plans.items()} == table


@pytest.mark.parametrize(("error", "kept"), [(0.0, True), (0.01, True), (0.04, False)])
def test_configured_lengths_are_kept_if_they_meet_the_shares(error, kept):
    """Streams of uniform durations from 0 to 10 s in buckets of 12 x 5 s and 6 x 10 s: the second
    has `error` more items of the first bucket."""
    table = bucket_table((5.0, 10.0), 60.0, 1.0)

    def plan(short, long):
        seconds = [*np.linspace(0.1, 5.0, short), *np.linspace(5.1, 10.0, long)]
        n = len(seconds)
        names = [str(i) for i in range(n)]
        return Plan(seconds, [1] * n, names, names, names, table, 0)

    plans = {"a": plan(1200, 1200), "b": plan(round(1200 * (1 + error)), 1200)}
    lines = bucket_lengths.couple(plans, "a", dict.fromkeys("ab", 60.0), 1.0, 1)
    assert plans["a"].buckets == table
    assert (plans["b"].buckets == table) == kept
    assert len(lines) == 1 - kept


def plan_of(seconds, last=20.0):
    names = [str(i) for i in range(len(seconds))]
    table = bucket_table((last,), 60.0, 1.0)
    return Plan(list(seconds), None, names, names, names, table, 0, crop=True)


def padded(seconds, lengths):
    """Seconds of all items, each padded to the first of the ascending lengths that holds it."""
    return sum(next(length for length in lengths if s <= length + 1e-6) for s in seconds)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 4))
def test_chosen_lengths_have_the_least_padding(tenths, number):
    """Against all sets of lengths of the items."""
    seconds = [n / 10 for n in tenths]
    found, _ = bucket_lengths.choose(plan_of(seconds), number, 1.0, 1.0, 1.0)
    distinct = sorted(set(seconds))
    assert len(found) <= min(number, len(distinct))
    sets = itertools.combinations(distinct, min(number, len(distinct)))
    least = min(padded(seconds, made) for made in sets if made[-1] == distinct[-1])
    assert padded(seconds, found) == pytest.approx(least)
    assert found[-1] == distinct[-1]


def test_the_number_of_lengths_has_the_least_total_cost():
    """C(K) = hours * padded(K) / audio + K * program_hours, by its definition for each K."""
    seconds = np.random.default_rng(0).gamma(4.0, 2.0, 300).clip(0.5, 20.0).round(1)
    plan, taken = plan_of(seconds), []
    best = [bucket_lengths.choose(plan, k, 1.0, 1.0, 1.0)[0] for k in range(1, 31)]
    for hours in (50.0, 1000.0, 10_000.0):
        costs = [hours * padded(seconds, x) / seconds.sum() + len(x) * 40.0 for x in best]
        found, line = bucket_lengths.choose(plan, -1, hours, 40.0, 1.0)
        assert len(found) == 1 + int(np.argmin(costs))
        assert f"{len(found)} {min(costs):.4g}" in line
        taken.append(len(found))
    assert taken == sorted(set(taken)), "longer runs are worth more programs"


@pytest.mark.parametrize(
    ("phases", "hours"),
    [
        ({"unit": "epoch", "explore": 5.0, "joint": 100.0, "finetune": 5.0}, 5 * 960 + 105 * 100),
        ({"unit": "epoch", "pretrain": 2.0, "finetune": 1.0, "supervised": 9.0}, 2 * 960 + 100),
        ({"unit": "step", "explore": 90.0, "joint": 30.0, "turn": 7}, 120 * 30 / 3600),
    ],
)
def test_hours_of_a_run_follow_from_its_phases(phases, hours):
    assert bucket_lengths.hours_of_run(ConfigDict(phases), 30.0, 100.0, 960.0) == hours


@pytest.mark.slow
def test_a_corpus_with_chosen_lengths_is_evaluated_in_them(corpus, folder):
    assert corpus.chosen_lengths == {}
    phases = ConfigDict({"unit": "epoch", "explore": 0.0, "joint": 100.0, "finetune": 0.0})
    corpus = load(folder, phases=phases, num_buckets=-1, program_hours=10.0)
    sizes = {len(plan.buckets) for plan in corpus.plans.values()}
    assert len(sizes) == 1
    assert sizes.pop() > 1
    for name in LANGUAGES:
        lengths = [bucket.seconds for bucket in corpus.plans[name].buckets]
        assert {b.seconds for b in corpus.eval_buckets(f"dev/{name}")} <= set(lengths)
        assert corpus.chosen_lengths[name] == tuple(lengths)
    assert any("lengths of batches, chosen" in line for line in corpus.summary())


def test_utterances_that_the_first_epoch_lacks_fit_the_last_length():
    """Of 60 speakers with two texts each, balanced draws leave out long ones in epoch 0; those of
    later epochs fit their bucket, with their labels, at any speed."""
    seconds = [1.0 + (i == 7) * 4.0 for i in range(120)]
    labels = [2 + (i == 9) * 30 for i in range(120)]
    names = [str(i) for i in range(120)]
    speakers = [str(i // 2) for i in range(120)]

    def plan(table, **options):
        return Plan(seconds, labels, speakers, names, names, table, 0, **options)

    table = bucket_table((2.0, 17.0), 60.0, 5.0)
    plans = {"a": plan(table), "b": plan(table, balance=1.0, speed=(0.9, 1.1))}
    lacking = {7, 9} - {i for item in plans["b"].items(0) for i in item.members}
    assert lacking, "another seed is needed"
    assert bucket_lengths.couple(plans, "a", dict.fromkeys("ab", 60.0), 5.0, 1)
    made, seen = plans["b"], set()
    assert made.buckets[-1].seconds == pytest.approx(32 / 5)
    for n in range(30 * made.batches_per_epoch):
        k, items = made.batch(n)
        for item in items:
            (i,) = item.members
            assert seconds[i] / item.speed <= made.buckets[k].seconds + 1e-6
            assert labels[i] <= made.buckets[k].max_labels
            seen.add(i)
    assert lacking <= seen


# Padding share


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(1, 4))
def test_lengths_of_least_padding_by_brute_force(tenths, most):
    seconds = np.array(tenths) / 10
    lengths = sorted(set(seconds.tolist()))
    for number, (found, share) in enumerate(bucket_lengths.least_padding(seconds, most), start=1):
        tables = (
            np.array([*shorter, lengths[-1]])
            for shorter in itertools.combinations(lengths[:-1], number - 1)
        )
        padded = min(float(table[table.searchsorted(seconds)].sum()) for table in tables)
        assert share == pytest.approx(1 - seconds.sum() / padded)
        assert len(found) == number
        assert found[-1] == pytest.approx(lengths[-1])


# {share of the utterances: seconds} of LibriSpeech's train-clean-100 at speeds 0.9, 1 and 1.1, as
# k2-fsa/icefall publishes them (egs/librispeech/ASR/local/display_manifest_statistics.py)
LIBRISPEECH = {
    **{0.0: 1.3, 0.001: 1.9, 0.005: 2.2, 0.01: 2.5, 0.05: 4.2, 0.1: 6.4, 0.25: 11.4, 0.5: 13.8},
    **{0.75: 15.3, 0.9: 16.7, 0.95: 17.3, 0.99: 18.1, 0.995: 18.4, 0.999: 18.8, 1.0: 27.2},
}


def test_eight_lengths_pad_librispeech_by_less_than_8_per_cent():
    """Durations between the published quantiles are taken as uniform. No six lengths can: they pad
    by 10.2 % at best (results/README.md)."""
    shares = np.linspace(0.0, 1.0, 28_539)
    seconds = np.interp(shares, list(LIBRISPEECH), list(LIBRISPEECH.values()))
    assert seconds.mean() == pytest.approx(12.8, rel=0.01)  # as published
    shares = [share for _, share in bucket_lengths.least_padding(seconds, 8)]
    assert shares[5] == pytest.approx(0.102, abs=1e-3)
    assert shares[7] < 0.08


def test_seventeen_lengths_pad_short_read_speech_by_less_than_5_per_cent(speech):
    """No six can, as they are the best: 14.3 % (results/README.md)."""
    lines = (speech / "en" / "train.jsonl").read_text().splitlines()
    seconds = np.array([json.loads(line)["duration"] for line in lines])
    shares = [share for _, share in bucket_lengths.least_padding(seconds, 17)]
    assert shares[5] == pytest.approx(0.143, abs=1e-3)
    assert shares[16] < 0.05


@pytest.mark.parametrize(("most", "number"), [(1.0, 0), (1.0, 3), (0.0, 0)])
def test_auto_chooses_lengths_up_to_the_longest(most, number, tmp_path):
    corpora.noise(tmp_path)
    data = corpora.settings(tmp_path, max_seconds=most, num_buckets=number, **corpora.PLAIN)
    data.buckets = bucket_lengths.AUTO
    data.program_hours = 1e-6  # programs cost next to nothing
    bucket_lengths.resolve_auto(ConfigDict({"data": data}))
    assert data.buckets == (most or bucket_lengths.LONGEST,)
    assert data.num_buckets == (number or -1)
    config_checks.check(ConfigDict({"data": data, "seed": 0}))
    corpus = load_corpus(data, seed=0, phases=defaults.base().phases)
    table = corpus.plans["labelled"].buckets
    assert len(table) == number if number else len(table) > 3
    longest = max(u.duration for u in corpus.utterances("labelled"))
    assert table[-1].seconds == pytest.approx(longest, abs=0.011)
    before = data.copy_and_resolve_references()
    bucket_lengths.resolve_auto(ConfigDict({"data": data}))
    assert data.to_dict() == before.to_dict()  # lengths stay
