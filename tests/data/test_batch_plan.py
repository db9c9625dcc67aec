"""Batch plans: every utterance once per epoch, buckets, joining, balance, shares by temperature."""

import collections
import math
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bljust_jax.common.errors import UserError
from bljust_jax.data.batch_plan import Plan
from bljust_jax.data.buckets import Bucket, bucket_table, evaluation_batches
from bljust_jax.data.epoch_shares import shares

TABLE = (Bucket(1.0, 6, 12), Bucket(2.0, 3, 24), Bucket(4.0, 2, 48))


def make(n=60, *, seed=0, durations=None, buckets=TABLE, labels=True, **settings):
    rng = np.random.default_rng(7)
    durations = rng.uniform(0.2, 3.9, n) if durations is None else np.asarray(durations)
    n = len(durations)
    return Plan(
        durations.tolist(),
        [max(1, int(4 * d)) for d in durations] if labels else None,
        [f"s{i % 4}" for i in range(n)],
        [f"t{i % 7}" for i in range(n)],
        [f"u{i}" for i in range(n)],
        buckets,
        seed,
        **settings,
    )


SETTINGS = [
    {},
    {"join": (2, 5), "join_share": 0.6, "speed": (0.88, 1.12), "balance": 0.5},
    {"join": (2, 3), "join_share": 1.0, "crop": True, "labels": False},
]


def test_bucket_table_rounds_batches_down_and_labels_up():
    assert bucket_table((1.5, 4.0), 27.0, 2.5, 4) == (Bucket(1.5, 16, 4), Bucket(4.0, 4, 10))
    assert bucket_table((0.3,), 27.0, 10.0)[0] == Bucket(0.3, 90, 3)
    assert bucket_table((60.0,), 27.0, 1.0, 8)[0].batch_size == 8


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0.1, 100), max_size=40), st.integers(1, 3))
def test_evaluation_batches_hold_each_utterance_once_in_few_shapes(durations, multiple):
    batches = evaluation_batches(durations, (1.0, 4.0), 12.0, multiple)
    assert sorted(i for _, members in batches for i in members) == list(range(len(durations)))
    lengths = [1.0, 4.0] + [4.0 * 1.5**n for n in range(1, 9)]
    for bucket, members in batches:
        assert bucket.batch_size % multiple == 0
        assert 1 <= len(members) <= bucket.batch_size
        k = lengths.index(bucket.seconds)
        assert all(durations[i] <= bucket.seconds for i in members)
        assert k == 0 or all(durations[i] > lengths[k - 1] for i in members)


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 3),
    st.tuples(st.integers(1, 3), st.integers(0, 3)),
    st.floats(0, 1),
)
def test_an_epoch_holds_each_utterance_exactly_once(seed, epoch, join, share):
    plan = make(seed=seed, join=(join[0], sum(join)), join_share=share, speed=(0.9, 1.1))
    members = [i for item in plan.items(epoch) for i in item.members]
    assert sorted(members) == list(range(60))


def test_batches_hold_every_item_and_repeat_fewer_than_a_batch():
    plan = make()
    for epoch in range(3):
        seen = [collections.Counter() for _ in TABLE]
        for n in range(epoch * plan.batches_per_epoch, (epoch + 1) * plan.batches_per_epoch):
            k, items = plan.batch(n)
            seen[k].update(item.members[0] for item in items)
        assert sorted(set().union(*seen)) == list(range(60))
        for bucket, counter in zip(TABLE, seen, strict=True):
            assert counter.total() - len(counter) < bucket.batch_size


@pytest.mark.parametrize("settings", SETTINGS)
def test_items_stay_within_their_bucket(settings):
    plan = make(**settings)
    for n in range(3 * plan.batches_per_epoch):
        k, items = plan.batch(n)
        bucket = plan.buckets[k]
        assert len(items) == bucket.batch_size
        for item in items:
            assert len({i % 4 for i in item.members}) == 1  # of one speaker
            assert len(item.members) <= settings.get("join", (1, 1))[1]
            seconds = sum(plan._durations[i] for i in item.members) / item.speed
            labels = sum(int(plan._labels[i]) + 1 for i in item.members) - 1
            assert seconds + 0.15 * (len(item.members) - 1) <= bucket.seconds + 1e-5
            assert labels <= bucket.max_labels
            assert item.key == zlib.crc32("+".join(f"u{i}" for i in item.members).encode())


@pytest.mark.parametrize("settings", SETTINGS)
def test_random_access_equals_sequence_and_counts_agree(settings):
    plan, other = make(**settings), make(**settings)
    total = 3 * plan.batches_per_epoch + 2
    sequence = [plan.batch(n) for n in range(total)]
    seen = [0] * len(TABLE)
    for n, (k, items) in enumerate(sequence):
        assert [plan.count(j, n) for j in range(len(TABLE))] == seen
        assert plan.nth_batch_of_bucket(k, seen[k]) == items
        seen[k] += 1
    for n in np.random.default_rng(0).permutation(total).tolist():
        assert other.batch(n) == sequence[n]


def test_epochs_and_seeds_differ_but_counts_do_not():
    plan = make(**SETTINGS[1])
    n = plan.batches_per_epoch
    first, second = ([plan.batch(i) for i in range(e * n, (e + 1) * n)] for e in range(2))
    assert first != second
    assert collections.Counter(k for k, _ in first) == collections.Counter(k for k, _ in second)
    assert make(seed=1).items(0) != make(seed=0).items(0)


def test_items_buckets_and_strings_are_ordered_anew_in_each_epoch():
    """Each alone: the order of items where each speaker has one, that of buckets, and strings."""
    apart = Plan(
        *([1.0] * 24, None, list(map(str, range(24))), [""] * 24, list(map(str, range(24)))),
        (Bucket(1.0, 4, 9),),
        seed=0,
    )
    n = apart.batches_per_epoch
    orders = [[apart.batch(e * n + i)[1] for i in range(n)] for e in range(3)]
    assert orders[0] != orders[1] != orders[2]
    plan = make()
    n = plan.batches_per_epoch
    buckets = [[plan.bucket_of(e * n + i) for i in range(n)] for e in range(3)]
    assert buckets[0] != buckets[1] != buckets[2]
    joined = make(join=(2, 3), join_share=1.0)
    strings = [{item.members for item in joined.items(epoch)} for epoch in range(3)]
    assert strings[0] != strings[1] != strings[2]


def test_join_share_sets_the_share_of_strings():
    plan = make(durations=[0.2] * 400, join=(2, 3), join_share=0.5)
    items = plan.items(0)
    share = np.mean([len(item.members) > 1 for item in items])
    assert abs(share - 0.5) < 0.1  # four standard errors of some 250 draws are 0.13
    assert {len(item.members) for item in items} == {1, 2, 3}


def test_strings_too_long_are_cut_to_fit():
    plan = make(durations=[1.5] * 40, join=(5, 5), join_share=1.0)
    assert {len(item.members) for item in plan.items(0)} == {2}
    assert sum(len(item.members) for item in plan.items(0)) == 40


def test_balance_draws_rare_texts_more_often():
    texts = ["often"] * 90 + ["rare"] * 10
    share = []
    for balance in (0.0, 1.0):
        bucket = [Bucket(1.0, 5, 9)]
        ids = [str(i) for i in range(100)]
        plan = Plan([0.5] * 100, [1] * 100, ["s"] * 100, texts, ids, bucket, 0, balance=balance)
        drawn = [i for epoch in range(10) for item in plan.items(epoch) for i in item.members]
        share.append(np.mean(np.array(drawn) >= 90))
    assert share[0] == 0.1
    assert abs(share[1] - 0.5) < 0.08  # five standard errors over 1000 draws


def test_utterances_that_fit_no_bucket_are_excluded_with_a_reason():
    durations = [0.5] * 20 + [5.0, 1.0]
    plan = Plan(
        durations, [1] * 21 + [60], ["s"] * 22, [""] * 22, [str(i) for i in range(22)], TABLE, 0
    )
    assert plan.excluded == [(20, "longer than 4 s"), (21, "more than 48 labels")]
    assert sorted(i for item in plan.items(0) for i in item.members) == list(range(20))


def wordy(labels, **settings):
    """Utterances of 0.4 s of one speaker: two of them fit the first bucket."""
    n, ids = len(labels), [f"u{i}" for i in range(len(labels))]
    return Plan([0.4] * n, labels, ["s"] * n, ["t"] * n, ids, TABLE, 0, **settings)


def test_texts_too_long_for_a_bucket_lead_to_a_longer_one():
    """12, 24 and 48 labels fit the buckets of 6, 3 and 2 rows."""
    labels = [12] * 7 + [13] + [24] * 2 + [25] + [48] * 2
    plan = wordy(labels)
    assert plan.counts == [2, 1, 2]
    heard = [set(), set(), set()]
    for n in range(plan.batches_per_epoch):
        k, items = plan.batch(n)
        assert len(items) == TABLE[k].batch_size
        heard[k] |= {i for item in items for i in item.members}
    assert heard == [set(range(7)), {7, 8, 9}, {10, 11, 12}]


@pytest.mark.parametrize(
    ("labels", "bucket", "members"), [(5, 0, 2), (6, 1, 2), (23, 2, 2), (30, 2, 1)]
)
def test_strings_have_the_labels_of_their_texts_and_the_spaces_between(labels, bucket, members):
    """5 + 1 + 5 labels fit 12; 6 + 1 + 6 do not; 30 + 1 + 30 are too many for any bucket."""
    plan = wordy([labels] * 8, join=(2, 2), join_share=1.0)
    assert {len(item.members) for item in plan.items(0)} == {members}
    assert {plan.bucket_of(n) for n in range(plan.batches_per_epoch)} == {bucket}


def test_crop_keeps_long_utterances_in_the_last_bucket():
    plan = make(durations=[9.0] * 4, labels=False, crop=True)
    assert plan.excluded == []
    assert plan.batch(0)[0] == 2


def test_an_utterance_that_fits_only_as_recorded_keeps_its_speed():
    plan = make(durations=[3.95] * 8, speed=(0.8, 0.8))
    assert {item.speed for item in plan.items(0)} == {1.0}


def test_empty_buckets_borrow_shorter_then_longer_items():
    short = make(durations=[0.5] * 10)
    assert short.counts == [2, 0, 0]
    assert len(short.nth_batch_of_bucket(2, 3)) == TABLE[2].batch_size
    long = make(durations=[3.5] * 10, labels=False, crop=True)
    assert len(long.nth_batch_of_bucket(0, 5)) == TABLE[0].batch_size
    with pytest.raises(UserError, match=r"data\.buckets"):
        make(durations=[3.5] * 10).nth_batch_of_bucket(0, 0)


def test_a_bucket_empty_in_a_later_epoch_reuses_the_first():
    plan = make(durations=[1.0, 1.0], speed=(0.7, 1.3))
    for n in range(40 * plan.batches_per_epoch):
        k, items = plan.batch(n)
        assert len(items) == plan.buckets[k].batch_size
        assert all(1.0 / item.speed <= plan.buckets[k].seconds + 1e-5 for item in items)


def test_buckets_led_by_another_plan_have_epochs_of_their_own(monkeypatch):
    made = []
    make_epoch = Plan._make_epoch
    monkeypatch.setattr(Plan, "_make_epoch", lambda s, e: made.append(e) or make_epoch(s, e))
    plan = make()
    # two of the three buckets are read beyond the end of an epoch
    places = [(0, 0), (0, 1), (1, 3), (1, 4), (2, 6)]
    for position in range(3):
        for k, epoch in places:
            plan.nth_batch_of_bucket(k, epoch * plan._supply[k][1] + position % plan._supply[k][1])
    assert made == [0, 1, 3, 4, 6], "each is made once"


@pytest.mark.parametrize("durations", [[], [9.0, 8.0]])
def test_nothing_to_train_on_is_an_error(durations):
    with pytest.raises(UserError, match="no utterance is left"):
        make(durations=durations)


def test_settings_out_of_order_are_errors():
    with pytest.raises(UserError, match="ascending"):
        make(buckets=TABLE[::-1])
    with pytest.raises(UserError, match=r"data\.join"):
        make(join=(3, 2))


def test_shares_by_temperature():
    np.testing.assert_allclose(shares([9.0, 1.0], 1.0), [0.9, 0.1], rtol=1e-12)
    np.testing.assert_allclose(shares([9.0, 1.0], 2.0), [0.75, 0.25], rtol=1e-12)
    np.testing.assert_array_equal(shares([9.0, 1.0], 0.0), [0.5, 0.5])
    np.testing.assert_allclose(shares([9.0, 1.0], 1e6), [0.5, 0.5], rtol=1e-5)  # the limit
    np.testing.assert_array_equal(shares([1e4, 1.0], 1e-3), [1.0, 0.0])  # no overflow
    np.testing.assert_array_equal(shares([0.25], 0.7), [1.0])


LANGUAGES = {"de": range(40), "fr": range(40, 55), "nl": range(55, 60)}


def spoken(temperature, **settings):
    languages = [name for name, members in LANGUAGES.items() for _ in members]
    return make(labels=False, crop=True, languages=languages, temperature=temperature, **settings)


def members(plan, epoch):
    return sorted(i for item in plan.items(epoch) for i in item.members)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0, 5.0])
def test_languages_share_an_epochs_audio_by_temperature(temperature):
    """A language of H_l hours with share p_l of H hours in all is drawn p_l H / H_l times per
    epoch: each utterance that often, rounded up or down, and in total to the nearest utterance."""
    plan = spoken(temperature)
    hours = [plan._durations[list(own)].sum() for own in LANGUAGES.values()]
    factors = shares(hours, temperature) * sum(hours) / hours
    assert np.ptp(factors) > 0.2
    for epoch in range(3):
        times = np.bincount(members(plan, epoch), minlength=60)
        for own, factor in zip(LANGUAGES.values(), factors, strict=True):
            assert set(times[own]) <= {math.floor(factor), math.floor(factor) + 1}
            assert abs(times[own].sum() - factor * len(own)) <= 0.5


def test_skipped_utterances_of_a_language_depend_on_the_epoch_alone():
    plan, other = spoken(0.0), spoken(0.0)
    german = [tuple(i for i in members(plan, epoch) if i < 40) for epoch in range(4)]
    assert len(set(german)) == 4
    assert {len(found) for found in german} == {len(german[0])}
    assert len(german[0]) < 40
    for epoch in (3, 1):
        assert other.items(epoch) == plan.items(epoch)
    joined = spoken(0.0, join=(2, 3), join_share=1.0)
    assert members(joined, 2) == members(plan, 2)
    assert max(len(item.members) for item in joined.items(2)) == 3


def test_every_language_keeps_at_least_one_utterance():
    plan = spoken(0.01)  # nearly all draws are of the language with the most audio
    assert [language.wanted for language in plan.languages.values()][1:] == [1, 1]


def test_languages_change_nothing_at_temperature_1_or_with_one_language():
    plain = make(labels=False, crop=True)
    assert [spoken(1.0).items(epoch) for epoch in range(2)] == [plain.items(e) for e in range(2)]
    assert spoken(1.0).languages == {}
    alike = make(durations=[1.0] * 60, languages=["a", "b"] * 30, temperature=3.0)
    assert members(alike, 0) == list(range(60))


@pytest.mark.parametrize("settings", SETTINGS)
def test_padding_is_that_of_an_epoch_s_batches(settings):
    """Brute force over all rows of epoch 0; the last batch of a bucket repeats some of its items,
    whose mean stands for them."""
    plan = make(200, **settings)
    audio = padded = 0.0
    for k, (bucket, batches) in enumerate(zip(plan.buckets, plan.counts, strict=True)):
        for m in range(batches):
            for item in plan.nth_batch_of_bucket(k, m):
                padded += bucket.seconds
                seconds = sum(plan._durations[i] for i in item.members) / item.speed
                audio += min(seconds + 0.15 * (len(item.members) - 1), plan.buckets[-1].seconds)
    found = plan.audio
    assert found[1] == pytest.approx(padded)
    assert found[0] == pytest.approx(audio, rel=0.03)
    assert found[0] < padded
