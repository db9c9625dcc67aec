"""Training batches of one labelled stream: shapes, resumption, shards, augmentation, messages."""

import json
import re
import zlib

import numpy as np
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.data.corpus import Segment
from bljust_jax.data.replay import Replay
from bljust_jax.data.sources import read_audio
from bljust_jax.data.tokenizer import CharTokenizer
from tests.helpers import corpora
from tests.helpers.corpora import JOINT, PLAIN, RATE, SEGMENTS, assert_equal, load, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpora.noise(tmp_path_factory.mktemp("corpus"))


def test_streams_and_shapes_follow_the_segments(folder):
    corpus = load(folder)
    batches = list(corpus.train_batches(SEGMENTS, 0))
    assert len(batches) == 13
    for step, batch in enumerate(batches):
        shapes = corpus.shape_at(SEGMENTS, step)
        expected = next(s.streams for s in SEGMENTS if s.start <= step < s.start + s.length)
        assert tuple(batch) == tuple(shapes) == expected
        for stream, arrays in batch.items():
            rows, seconds = shapes[stream]
            assert arrays["audio"].shape == (rows, round(seconds * RATE))
            assert arrays["audio"].dtype == np.int16
            assert arrays["ids"].dtype == np.uint32
            lengths = arrays["audio_lengths"]
            padding = np.arange(arrays["audio"].shape[1])[None, :] >= lengths[:, None]
            assert np.all(lengths > 0)
            assert not arrays["audio"][padding].any()
            assert ("labels" in arrays) == (stream == "labelled")
        if set(batch) == set(JOINT):  # one bucket index per step
            assert shapes["labelled"][1] == shapes["unlabelled"][1]
            labels = batch["labelled"]["labels"]
            used = np.arange(labels.shape[1])[None, :] < batch["labelled"]["label_lengths"][:, None]
            np.testing.assert_array_equal(labels > 0, used)
            assert labels.dtype == np.int32


@pytest.mark.daily("4")
@pytest.mark.parametrize("threads", [0, 1, 4])
def test_resumed_batches_equal_the_rest_for_any_number_of_threads(folder, threads):
    whole = list(load(folder, num_threads=2).train_batches(SEGMENTS, 0))
    for start in (0, 7, 12, 13):
        tail = list(load(folder, num_threads=threads).train_batches(SEGMENTS, start))
        assert len(tail) == len(whole) - start
        for a, b in zip(whole[start:], tail, strict=True):
            assert_equal(a, b)


def test_a_replay_reads_batches_of_the_plan_again(folder):
    """Steps on unlabelled audio alone have the batch of their draw, with its flags, bit for bit;
    steps with labelled audio and the mix of shapes are those without."""
    alone = [Segment(0, 9, ("unlabelled",))]
    plan = list(load(folder).train_batches(alone, 0))
    turns = [Segment(0, 3, ("unlabelled",)), Segment(3, 2, ("labelled",))]
    turns += [Segment(5, 5, ("unlabelled",))]
    plain, corpus = load(folder), load(folder, multiple=2)
    corpus.replay = Replay(2, 0.4, seed=1)
    draws = [corpus.replay[n] for n in range(8)]
    assert max(draw.batch for draw in draws) < 9
    assert len({draw.batch for draw in draws}) < 8
    read = list(corpus.train_batches(turns, 0))
    for step, draw in zip((0, 1, 2, 5, 6, 7, 8, 9), draws, strict=True):
        batch = dict(read[step]["unlabelled"])
        assert set(batch.pop("cache_slot")) == {draw.slot}
        assert set(batch.pop("cache_fresh")) == {int(draw.fresh)}
        rows = len(batch["ids"])
        expected = {key: array[:rows] for key, array in plan[draw.batch]["unlabelled"].items()}
        assert_equal({"unlabelled": batch}, {"unlabelled": expected})
        assert corpus.shape_at(turns, step)["unlabelled"][0] == rows
    for step in (3, 4):
        assert set(read[step]) == {"labelled"}
    assert corpus.mix(("unlabelled",)) == load(folder, multiple=2).mix(("unlabelled",))
    for a, b in zip(read[7:], corpus.train_batches(turns, 7), strict=True):
        assert_equal(a, b)
    empty = corpus.empty_batches({"unlabelled": 0})["unlabelled"]
    assert set(empty) == set(read[0]["unlabelled"])
    assert set(plain.empty_batches({"unlabelled": 0})["unlabelled"]) < set(empty)


def test_shards_concatenate_to_the_whole(folder):
    corpus = load(folder, multiple=2)
    shards = [corpus.train_batches(SEGMENTS, 3, shard=(i, 2)) for i in range(2)]
    for whole, *parts in zip(corpus.train_batches(SEGMENTS, 3), *shards, strict=True):
        joined = {
            stream: {
                name: np.concatenate([part[stream][name] for part in parts]) for name in arrays
            }
            for stream, arrays in whole.items()
        }
        assert_equal(whole, joined)
    with pytest.raises(ValueError, match="shards"):
        corpus.train_batches(SEGMENTS, 0, shard=(0, 3))


def test_positions_count_the_steps_that_a_stream_drove(folder):
    corpus = load(folder, unlabelled_buckets=(1.0,))
    labelled = corpus.plans["labelled"]
    segments = [SEGMENTS[0], Segment(4, 2, JOINT), Segment(6, 2, ("unlabelled",))]
    segments += [Segment(8, 2, JOINT)]
    for step, n in [(0, 0), (3, 3), (6, 4), (7, 5)]:
        assert corpus.draws(segments, step) == {"unlabelled": (0, n)}
    for step, n in [(4, 0), (5, 1), (8, 2), (9, 3)]:
        k = labelled.bucket_of(n)
        expected = {"labelled": (k, labelled.count(k, n)), "unlabelled": (0, n)}
        assert corpus.draws(segments, step) == expected
        assert corpus.shape_at(segments, step)["unlabelled"] == (12, 1.0)
    with pytest.raises(ValueError, match="in no segment"):
        corpus.draws(segments, 10)


def test_rows_without_augmentation_are_the_recordings(folder):
    corpus = load(folder, **PLAIN)
    by_key = {zlib.crc32(u.id.encode()): u for u in corpus.utterances("labelled")}
    seen = set()
    for batch in corpus.train_batches([Segment(0, 12, ("labelled",))], 0):
        rows = batch["labelled"]
        for row, key in enumerate(rows["ids"].tolist()):
            u = by_key[key]
            audio = read_audio(u, RATE)
            assert rows["audio_lengths"][row] == len(audio)
            np.testing.assert_array_equal(rows["audio"][row, : len(audio)], audio)
            ids = rows["labels"][row, : rows["label_lengths"][row]]
            assert corpus.tokenizer.decode(ids) == u.text.lower()
            seen.add(u.id)
    assert seen == {u.id for u in corpus.utterances("labelled")}


def test_overfit_trains_and_scores_on_the_first_utterances(folder):
    corpus = load(folder, **PLAIN, overfit=8)
    whole = load(folder, **PLAIN)
    few = [
        u
        for u in whole.utterances("labelled")
        if u.duration <= whole.plans["labelled"].buckets[-1].seconds
    ]
    assert len(few) > 8
    for split in ("labelled", "unlabelled", "dev"):
        assert corpus.utterances(split) == few[:8]
    assert corpus.utterances("test") == []
    assert any(line.startswith("labelled: 8 utterances") for line in corpus.summary())


def test_joined_rows_hold_texts_joined_by_a_space(folder):
    corpus = load(folder, join_share=1.0)
    batch = next(corpus.train_batches([Segment(0, 1, ("labelled",))], 0))["labelled"]
    _, items = corpus.plans["labelled"].batch(0)
    utterances = corpus.utterances("labelled")
    for row, item in enumerate(items):
        ids = batch["labels"][row, : batch["label_lengths"][row]]
        texts = [utterances[i].text.lower() for i in item.members]
        assert corpus.tokenizer.decode(ids) == " ".join(texts)
        assert batch["ids"][row] == item.key
    assert any(len(item.members) > 1 for item in items)


def test_augmentation_differs_between_draws_and_seeds(folder):
    segment = [Segment(0, 20, ("labelled",))]
    settings = {**PLAIN, "noise_snr": (10.0, 30.0)}
    seen = {}
    for seed in (0, 1):
        corpus = load(folder, seed=seed, **settings)
        drawn = [corpus.draws(segment, step)["labelled"] for step in range(20)]
        batches = corpus.train_batches(segment, 0)
        for (_, m), batch in zip(drawn, batches, strict=True):
            for key, audio in zip(
                batch["labelled"]["ids"], batch["labelled"]["audio"], strict=True
            ):
                seen.setdefault(int(key), {}).setdefault((seed, m), audio.tobytes())
    for draws in seen.values():
        assert len(set(draws.values())) == len(draws)


def test_long_unlabelled_audio_is_cropped_at_random_offsets(folder):
    corpus = load(folder, **PLAIN, unlabelled_buckets=(0.3,), unlabelled_batch_seconds=12.0)
    whole = {
        zlib.crc32(u.id.encode()): read_audio(u, RATE) for u in corpus.utterances("unlabelled")
    }
    places = {}
    for batch in corpus.unlabelled_batches(3):
        assert batch["audio"].shape == (40, 2400)
        for key, audio, n in zip(
            *(batch[k] for k in ("ids", "audio", "audio_lengths")), strict=True
        ):
            place = whole[int(key)].tobytes().find(audio[:n].tobytes())
            assert place >= 0
            places.setdefault(int(key), set()).add(place)
    assert all(n == 3 for n in [len(p) for key, p in places.items() if len(whole[key]) > 4000])


def test_labelled_subsets_are_nested_and_depend_on_the_seed(folder):
    def ids(**changes):
        return {u.id for u in load(folder, **changes).utterances("labelled")}

    full, half, tenth = ids(), ids(labelled_fraction=0.5), ids(labelled_fraction=0.1)
    assert (len(full), len(half), len(tenth)) == (32, 16, 4)
    assert tenth < half < full
    assert half == ids(labelled_fraction=0.5)
    assert half != ids(labelled_fraction=0.5, seed=1)
    corpus = load(folder, labelled_speakers=2)
    assert len({u.speaker for u in corpus.utterances("labelled")}) == 2
    assert len(corpus.utterances("unlabelled")) == 40


def test_the_draw_of_labels_is_apart_from_the_seed_of_the_run(folder):
    def ids(**changes):
        return [u.id for u in load(folder, labelled_speakers=2, **changes).utterances("labelled")]

    assert ids(labelled_draw=1, seed=0) == ids(labelled_draw=1, seed=5) == ids(seed=1)
    assert ids(labelled_draw=0, seed=1) == ids(seed=0) != ids(labelled_draw=1)


def test_unlabelled_audio_is_added_to_that_of_training(folder):
    entries = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    few, more = write(folder, "few", entries[:30]), write(folder, "more", entries[20:])
    lengths = [e["duration"] for e in entries]

    def audio(**changes):
        corpus = load(folder, train=few, unlabelled=more, labelled_fraction=0.5, **changes)
        lines = [line for line in corpus.summary() if " of config.data.train" in line]
        return [u.id for u in corpus.utterances("unlabelled")], lines

    every = [e["id"] for e in entries]
    parts = f"{sum(lengths[:30]):.1f} s of config.data.train, "
    line = f"unlabelled: {parts}{sum(lengths[30:]):.1f} s of config.data.unlabelled"
    assert audio() == (every, [line])  # the ten of both once
    assert audio(unlabelled_with_train=False) == (every[20:], [])
    drawn, _ = audio(unlabelled_hours=0.001)
    assert drawn[:30] == every[:30]
    assert set(drawn[30:]) < set(every[30:])
    assert 3.6 <= sum(lengths[every.index(name)] for name in drawn[30:]) < 3.6 + lengths[-1]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"train": ""}, "data.train is empty"),
        ({"dev": ""}, r"config\.data\.dev is empty; name a manifest or SCHEME:REST"),
        ({"seed": -1}, r"config\.seed=-1 must be from 0 to"),
        ({"labelled_speakers": -1}, r"config\.data\.labelled_speakers"),
        ({"labelled_fraction": 0.0}, "labelled_fraction"),
        ({"labelled_speakers": 9}, "9 of 4 speakers"),
        ({"unlabelled_buckets": (0.5, 1.0)}, "unlabelled_buckets"),
        ({"buckets": (1.0, 0.5)}, r"config\.data\.buckets=.* ascending"),
        ({"buckets": ()}, r"config\.data\.buckets"),
        ({"speed": (1.1, 0.9)}, r"config\.data\.speed=.*\(slowest, fastest\)"),
        ({"join": (0.5, 2)}, r"config\.data\.join="),
        ({"noise_snr": (10.0,)}, r"config\.data\.noise_snr="),
        ({"batch_seconds": 0.0}, r"config\.data\.batch_seconds=0.0 must be above 0"),
        ({"max_bad_fraction": float("nan")}, r"config\.data\.max_bad_fraction=nan"),
        ({"tokenizer": CharTokenizer("ab012")}, "space"),
        (
            {"min_seconds": 50.0},
            r"data\.train: no utterance is left.* 8 without a text, 32",
        ),
        ({"buckets": (0.1,)}, "labelled: no utterance is left.* 32 longer than 0.1 s"),
        ({"max_seconds": 0.1, "min_seconds": 0.0}, "no utterance is left"),
        ({"tokenizer": CharTokenizer(" xy")}, "no utterance is left.*with unknown characters"),
    ],
)
def test_wrong_fields_are_named(folder, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        load(folder, **changes)


def test_skipped_utterances_are_counted(folder):
    given = {"tokenizer": CharTokenizer(" ab01"), "unlabelled_cut": False}
    corpus = load(folder, min_seconds=0.3, max_seconds=1.0, **given)
    lines = "\n".join(corpus.summary())
    assert "labelled: 8 utterances skipped: without a text" in lines
    short = "shorter than 0.3 s (config.data.min_seconds)"
    assert f"unlabelled: 4 utterances skipped: {short}" in lines
    assert "unlabelled: 13 utterances skipped: longer than 1 s" in lines
    assert "with unknown characters" in lines
    seconds = sum(u.duration for u in corpus.utterances("dev"))
    assert f"dev: 7 utterances, {seconds:.1f} s, 1 speakers" in lines
    reason = "longer than config.data.max_seconds=1, so not scored"
    assert f"dev: 4 utterances skipped: {reason}" in lines
    corpus = load(folder, tokenizer=CharTokenizer(" ab012"))
    lines, seconds = corpus.summary(), sum(u.duration for u in corpus.utterances("dev"))
    assert "dev: characters without a label: '!' x 1" in lines
    assert f"dev: 11 utterances, {seconds:.1f} s, 2 speakers" in lines


def test_strings_need_utterances_that_share_a_speaker(folder):
    entries = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    write(folder, "alone", [{k: v for k, v in e.items() if k != "speaker"} for e in entries])
    alone = str(folder / "alone.jsonl")
    note = "labelled: strings cannot be joined: no two utterances share a speaker"
    assert note in load(folder, train=alone).summary()
    assert note not in load(folder).summary()
    assert note not in load(folder, train=alone, join_share=0.0).summary()
    assert note not in load(folder, train=alone, join=(1, 1), join_share=1.0).summary()
    with pytest.raises(UserError, match=f'{note}; add "speaker".*config.data.join_share to 0'):
        load(folder, train=alone, join_share=1.0)
    changes = {"unlabelled_join": (2, 2), "unlabelled_join_share": 1.0}
    with pytest.raises(UserError, match=r"unlabelled: .*config\.data\.unlabelled_join_share to 0"):
        load(folder, unlabelled=alone, unlabelled_with_train=False, **changes)


def test_the_digest_covers_all_that_decides_the_order(folder):
    digest = load(folder).digest()
    assert len(digest) == 16
    assert load(folder, num_threads=1, eval_batch_seconds=9.0).digest() == digest
    changes = [{"seed": 1}, {"multiple": 5}, {"labelled_fraction": 0.5}, {"buckets": (0.5, 1.6)}]
    changes += [{"tokenizer": CharTokenizer(" ab012x")}, {"min_seconds": 0.3}]
    assert len({digest} | {load(folder, **change).digest() for change in changes}) == 7


def test_unlabelled_batches_are_loaded_one_by_one(folder, monkeypatch):
    corpus = load(folder, num_threads=1, prefetch=1)
    made = []
    make = corpus._train_batch
    monkeypatch.setattr(corpus, "_train_batch", lambda *args: made.append(args) or make(*args))
    batches = corpus.unlabelled_batches(30)
    first = next(batches)
    assert len(made) < 10  # the first batch, and a few read ahead
    assert len(list(batches)) == 29
    again = next(load(folder, num_threads=0).unlabelled_batches(1))
    assert_equal({"unlabelled": first}, {"unlabelled": again})


def test_the_utterances_of_a_step_are_named(folder):
    corpus = load(folder)
    segments = [Segment(0, 4, JOINT)]
    for step, batch in enumerate(corpus.train_batches(segments, 0)):
        names = corpus.utterances_at(segments, step)
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"u\d+ \(\S+train\.jsonl:\d+\)", name) for name in names)
        ids = {name.split()[0] for name in names}
        singles = {zlib.crc32(identity.encode()) for identity in ids}
        assert set(batch["unlabelled"]["ids"].tolist()) <= singles  # never joined in this test
        k, m = corpus.draws(segments, step)["labelled"]
        items = corpus.plans["labelled"].nth_batch_of_bucket(k, m)
        assert {f"u{i}" for i in range(40)} >= ids
        assert {corpus.utterances("labelled")[i].id for item in items for i in item.members} <= ids


@pytest.mark.slow
def test_empty_batches_have_the_shapes_of_the_steps(folder):
    for changes in ({}, {"unlabelled_buckets": (1.0,)}):
        corpus = load(folder, **changes)
        for streams in (JOINT, ("labelled",), ("unlabelled",)):
            blank = {}
            for k in corpus.buckets_in_use(streams):
                batch = corpus.empty_batches(corpus.step_buckets(streams, k))
                key = {stream: rows["audio"].shape for stream, rows in batch.items()}
                blank[json.dumps(key)] = batch
            for batch in corpus.train_batches([Segment(0, 20, streams)], 0):
                key = {stream: rows["audio"].shape for stream, rows in batch.items()}
                twin = blank[json.dumps(key)]
                for stream, rows in batch.items():
                    for name, array in rows.items():
                        assert twin[stream][name].shape == array.shape
                        assert twin[stream][name].dtype == array.dtype
                        assert not twin[stream][name].any()


def test_utterances_infeasible_for_ctc_are_counted_before_training(folder):
    corpus = load(folder)
    assert corpus.infeasible(lambda samples: samples) == []
    texts = {u.id: u.text for u in corpus.utterances("labelled")}
    assert set(map(len, texts.values())) == {3}
    frames = {round(u.duration * RATE): u.id for u in corpus.utterances("labelled")}
    (line,) = corpus.infeasible(lambda samples: 2 if frames[samples] in ("u7", "u8") else 3)
    assert re.match(r"labelled: 2 of 32 utterances .* first u7 \(\S*:8\) with 2 for 3: ", line)
    write(folder, "repeats", [{"audio_filepath": "1.flac", "text": "aab", "speaker": "s"}] * 1)
    corpus = load(folder, train=str(folder / "repeats.jsonl"), join_share=0.0)
    assert len(corpus.infeasible(lambda samples: 3)) == 1  # the blank between a and a is a frame
    assert corpus.infeasible(lambda samples: 4) == []


@pytest.mark.slow
def test_real_arabic_words(speech):
    root = speech / "digits_ar"
    corpus = load(
        root,
        sample_rate=16000,
        buckets=(1.5, 3.0, 5.0),
        join=(2, 5),
        join_share=0.6,
        labels_per_second=25.0,
        eval_batch_seconds=150.0,
    )
    assert len(corpus.utterances("labelled")) == 2340
    assert " " in corpus.tokenizer.symbols
    batches = list(corpus.train_batches([Segment(0, 3, JOINT)], 0))
    assert all(np.std(rows["audio"]) > 50 for batch in batches for rows in batch.values())
    assert sum(len(utterances) for _, utterances in corpus.eval_batches("dev")) == 780
