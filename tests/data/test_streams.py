"""A corpus of several labelled streams: two languages, and translation of one of them."""

import dataclasses
import json
import re
import zlib

import numpy as np
import pytest
from ml_collections import ConfigDict

from bljust_jax.common.errors import UserError
from bljust_jax.data import streams
from bljust_jax.data.corpus import Segment, load_corpus
from bljust_jax.data.sources import Utterance
from bljust_jax.data.splits import load_splits
from bljust_jax.data.tokenizer import CharTokenizer
from configs import defaults
from tests.helpers import corpora
from tests.helpers.corpora import PLAIN, RATE, assert_equal, several, write
from tests.helpers.corpora import load_several as load

LABELLED = ("asr/ar", "asr/en", "st/ar-en")
ALL = (*LABELLED, "unlabelled")
SEGMENTS = [Segment(0, 3, ("unlabelled",)), Segment(3, 6, ALL), Segment(9, 3, ("st/ar-en",))]
SEGMENTS += [Segment(12, 4, LABELLED), Segment(16, 2, ALL)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpora.tongues(tmp_path_factory.mktemp("tongues"))


def ids(utterances):
    return {u.id for u in utterances}


def rows(corpus, batches, stream):
    """(id, audio, text of the labels) of each row of a stream without joined utterances."""
    names = {zlib.crc32(u.id.encode()): u.id for u in corpus.utterances(stream)}
    decode = corpus.tokenizer_of(stream).decode
    for batch in batches:
        made = batch[stream]
        for n, key in enumerate(made["ids"].tolist()):
            labels = made["labels"][n, : made["label_lengths"][n]]
            yield names[key], made["audio"][n, : made["audio_lengths"][n]], decode(labels)


def test_streams_and_their_splits_are_in_the_order_of_their_names(folder):
    corpus = load(folder)
    assert tuple(corpus.plans) == ALL
    assert tuple(corpus.tokenizers) == LABELLED
    splits = [f"{split}/{stream}" for split in ("dev", "test") for stream in LABELLED]
    assert corpus.names == (*ALL, *splits)
    sizes = [len(corpus.utterances(split)) for split in splits]
    assert sizes == [2, 1, 2, 2, 0, 0]
    assert corpus.tokenizer_of("asr/en").symbols == tuple(" 012c")
    assert corpus.tokenizer_of("dev/asr/ar") is corpus.tokenizers["asr/ar"]
    assert corpus.tokenizer_of("test/st/ar-en").symbols == tuple(" 012xy")
    assert corpus.references("dev/asr/ar") == ["bb", "bb"]
    assert corpus.references("dev/st/ar-en") == ["x1 y", "x2 y"]
    with pytest.raises(ValueError, match="one tokenizer per stream: asr/ar, asr/en, st/ar-en"):
        _ = corpus.tokenizer
    for unknown in ("dev", "dev/asr/de", "unlabelled"):
        with pytest.raises(UserError, match=f"'{unknown}' is of no stream; .* asr/ar, asr/en, st/"):
            corpus.tokenizer_of(unknown)


def test_names_of_splits_end_with_their_stream():
    for stream in (*LABELLED, "labelled"):
        known = ["labelled"] if stream == "labelled" else LABELLED
        assert streams.stream_of(stream, known) == stream
        assert streams.stream_of(streams.split_name("dev", stream), known) == stream
    assert streams.split_name("dev", "asr/en") == "dev/asr/en"
    assert streams.split_name("dev", "labelled") == "dev"


def test_labels_are_the_streams_field_and_utterances_without_it_are_counted(folder):
    corpus = load(folder)
    assert len(corpus.utterances("asr/ar")) == 24
    assert len(corpus.utterances("st/ar-en")) == 18
    assert {u.text for u in corpus.utterances("st/ar-en")} == {"x0 Y", "x1 Y", "x2 Y"}
    lines = corpus.summary()
    assert "st/ar-en: 6 utterances skipped: without a translation" in lines
    assert "asr/en: tokenizer: 5 characters and the blank" in lines
    assert any(line.startswith("dev/st/ar-en: 2 of 2 texts (100.0 %)") for line in lines)
    assert not any(line.startswith(("test/asr/en", "dev:")) for line in lines)


def test_the_unlabelled_stream_has_each_segment_of_all_streams_once(folder):
    heard = load(folder).utterances("unlabelled")
    assert [u.id for u in heard] == [f"u{i}" for i in range(38)]
    for with_train, number in ((True, 39), (False, 11)):  # one of dev.jsonl is not in train
        dev = str(folder / "dev.jsonl")
        more = load(folder, unlabelled=dev, unlabelled_with_train=with_train)
        assert len(more.utterances("unlabelled")) == number


def test_segments_of_one_file_are_utterances_of_their_own():
    first = Utterance("a", "/x.wav", 0.0, 1.0, "", "", "")
    segments = [first, dataclasses.replace(first, offset=1.0), dataclasses.replace(first, id="b")]
    assert streams.unique_utterances([segments, segments[:2]]) == segments


def test_two_streams_of_one_audio_have_their_own_labels_and_order(folder):
    corpus = load(folder, **PLAIN)
    batches = list(corpus.train_batches([Segment(0, 12, LABELLED)], 0))
    seen = {}
    for stream in LABELLED:
        texts = {u.id: u.text.lower() for u in corpus.utterances(stream)}
        found = list(rows(corpus, batches, stream))
        assert all(label == texts[name] for name, _, label in found)
        seen[stream] = {name: audio.tobytes() for name, audio, _ in found}
    both = seen["asr/ar"].keys() & seen["st/ar-en"].keys()
    assert len(both) == 18
    assert all(seen["asr/ar"][name] == seen["st/ar-en"][name] for name in both)
    firsts = [batches[0][stream]["ids"].tolist() for stream in ("asr/ar", "st/ar-en")]
    assert firsts[0] != firsts[1]


def test_translations_of_one_speakers_utterances_join_by_spaces(folder):
    corpus = load(folder, join_share=1.0, buckets=(0.7, 1.4))
    segments = [Segment(0, 6, LABELLED)]
    joined = 0
    for step, batch in enumerate(corpus.train_batches(segments, 0)):
        k, m = corpus.draws(segments, step)["st/ar-en"]
        utterances = corpus.utterances("st/ar-en")
        made = batch["st/ar-en"]
        for n, item in enumerate(corpus.plans["st/ar-en"].nth_batch_of_bucket(k, m)):
            members = [utterances[i] for i in item.members]
            labels = made["labels"][n, : made["label_lengths"][n]]
            text = " ".join(u.text.lower() for u in members)
            assert corpus.tokenizer_of("st/ar-en").decode(labels) == text
            assert len({u.speaker for u in members}) == 1
            joined += len(members) > 1
    assert joined


def test_a_speaker_of_two_languages_is_two(folder):
    """Speaker names are unique per corpus only: s0 of ar and s0 of en are not joined."""
    corpus = load(folder, unlabelled_join=(2, 3), unlabelled_join_share=1.0, buckets=(0.7, 2.0))
    heard = corpus.utterances("unlabelled")
    assert ids(u for u in heard if u.speaker == "s1" and u.lang == "en")
    items = corpus.plans["unlabelled"].items(0)
    assert any(len(item.members) > 1 for item in items)
    assert all(len({heard[i].lang for i in item.members}) == 1 for item in items)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [0, 3])
def test_a_batch_is_a_function_of_the_step(folder, threads):
    whole = list(load(folder, num_threads=2).train_batches(SEGMENTS, 0))
    corpus = load(folder, num_threads=threads)
    for start in (0, 5, 10, 17):
        for a, b in zip(whole[start:], corpus.train_batches(SEGMENTS, start), strict=True):
            assert_equal(a, b)
    for step, batch in enumerate(whole):
        shapes = corpus.shape_at(SEGMENTS, step)
        assert tuple(batch) == tuple(shapes)
        for stream, made in batch.items():
            n, seconds = shapes[stream]
            assert made["audio"].shape == (n, round(seconds * RATE))
            assert ("labels" in made) == (stream != "unlabelled")


def test_shards_concatenate_to_the_whole(folder):
    corpus = load(folder, multiple=2, rows_multiple=2)
    parts = [corpus.train_batches(SEGMENTS, 8, shard=(i, 2)) for i in range(2)]
    for whole, *halves in zip(corpus.train_batches(SEGMENTS, 8), *parts, strict=True):
        for stream, made in whole.items():
            assert len(made["ids"]) % 4 == 0
            joined = {n: np.concatenate([half[stream][n] for half in halves]) for n in made}
            assert_equal({stream: made}, {stream: joined})


def test_the_driver_has_the_most_batches_and_all_share_its_bucket(folder):
    corpus = load(folder)
    sizes = {name: corpus.plans[name].batches_per_epoch for name in ALL}
    assert corpus.driver(ALL) == corpus.driver(LABELLED)
    assert sizes[corpus.driver(ALL)] == max(sizes[name] for name in LABELLED)
    assert corpus.driver(("unlabelled",)) == "unlabelled"
    assert corpus.driver(("unlabelled", "st/ar-en")) == "st/ar-en"
    segments = [Segment(0, 30, ALL)]
    leader = corpus.plans[corpus.driver(ALL)]
    for step in range(30):
        k, m = leader.bucket_of(step), leader.count(leader.bucket_of(step), step)
        assert corpus.draws(segments, step) == dict.fromkeys(ALL, (k, m))
        for name, (_, seconds) in corpus.shape_at(segments, step).items():
            assert seconds == corpus.plans[name].buckets[k].seconds
    assert [bucket.seconds for bucket in leader.buckets] == [0.7, 1.0], "those of the config"
    lengths = {plan.buckets[0].seconds for plan in corpus.plans.values()}
    assert len(lengths) == 4, "those of other streams follow from their durations"


def test_of_equal_streams_the_first_by_name_drives(folder):
    def twin(data):
        data.streams["asr/zz"] = data.streams["asr/ar"].copy_and_resolve_references()
        data.buckets = (1.0,)
        data.streams["asr/en"].buckets = (1.4,)

    corpus = load(folder, **PLAIN, edit=twin)
    batches = {name: corpus.plans[name].batches_per_epoch for name in corpus.streams}
    assert batches["asr/ar"] == batches["asr/zz"] == max(batches.values())
    assert corpus.driver(("unlabelled", "asr/zz", "asr/en", "asr/ar")) == "asr/ar"


@pytest.mark.parametrize("stream", ALL)
def test_an_epoch_driven_by_a_stream_has_each_of_its_utterances(folder, stream):
    corpus = load(folder, **PLAIN)
    plan = corpus.plans[stream]
    segments = [Segment(0, 2 * plan.batches_per_epoch, (stream,))]
    for epoch in range(2):
        steps = range(epoch * plan.batches_per_epoch, (epoch + 1) * plan.batches_per_epoch)
        names = {name.split()[0] for step in steps for name in corpus.utterances_at(segments, step)}
        assert names == ids(corpus.utterances(stream))


def test_a_stream_led_by_another_takes_each_bucket_in_its_own_order(folder):
    """Its batches of bucket k follow one another, and as many as its own epoch has of it hold every
    utterance that is of this length."""
    corpus = load(folder, **PLAIN)
    segments = [Segment(0, 60, ALL)]
    followers = [name for name in LABELLED if name != corpus.driver(ALL)]
    assert followers
    for stream in followers:
        drawn = [corpus.draws(segments, step)[stream] for step in range(60)]
        plan = corpus.plans[stream]
        for k in {k for k, _ in drawn}:
            numbers = [m for bucket, m in drawn if bucket == k]
            assert numbers == list(range(len(numbers)))
            per_epoch = max(1, plan.counts[k])
            batches = [plan.nth_batch_of_bucket(k, m) for m in range(per_epoch)]
            heard = {i for items in batches for item in items for i in item.members}
            low = plan.buckets[k - 1].seconds if k else 0.0
            own = [u.duration for u in corpus.utterances(stream)]
            inside = {i for i, d in enumerate(own) if low < d <= plan.buckets[k].seconds}
            assert heard == inside or not inside


def test_shares_of_a_step_follow_hours_by_temperature(folder):
    seconds = {}
    for temperature in (0.0, 1.0, 4.0):
        corpus = load(folder, temperature=temperature, batch_seconds=40.0)
        hours = [sum(u.duration for u in corpus.utterances(name)) for name in LABELLED]
        weights = np.power(hours, 1 / temperature) if temperature else np.ones(3)
        expected = 120.0 * weights / weights.sum()
        tables = [corpus.plans[name].buckets for name in LABELLED]
        found = np.array([[b.batch_size * b.seconds for b in table] for table in tables])
        rounding = np.array([[b.seconds for b in table] for table in tables])  # one row at most
        assert np.all(found <= expected[:, None] + 1e-6)
        assert np.all(found > expected[:, None] - rounding)
        seconds[temperature] = found
        unlabelled = corpus.plans["unlabelled"].buckets[0]
        assert unlabelled.batch_size == int(12.0 / unlabelled.seconds)
    spread = [np.ptp(found[:, 0]) for found in seconds.values()]
    assert spread[0] < spread[2] < spread[1]


def test_rows_are_a_multiple_and_at_least_one_multiple(folder):
    corpus = load(folder, temperature=0.1, rows_multiple=2, multiple=2)  # smallest shares: about 0
    sizes = [b.batch_size for plan in corpus.plans.values() for b in plan.buckets]
    assert all(size >= 4 and size % 4 == 0 for size in sizes)
    assert min(sizes) == 4


@pytest.mark.slow
def test_empty_batches_have_the_shapes_of_the_steps(folder):
    corpus = load(folder, unlabelled_buckets=(1.0,))
    for needed in (ALL, ("asr/en", "unlabelled"), ("unlabelled",)):
        blank = [
            corpus.empty_batches(corpus.step_buckets(needed, k))
            for k in corpus.buckets_in_use(needed)
        ]
        shapes = [
            {s: {n: a.shape for n, a in b.items()} for s, b in made.items()} for made in blank
        ]
        for batch in corpus.train_batches([Segment(0, 8, needed)], 0):
            assert {s: {n: a.shape for n, a in b.items()} for s, b in batch.items()} in shapes
    assert not any(a.any() for made in blank for b in made.values() for a in b.values())


def test_the_digest_is_of_every_stream(folder):
    entries = [json.loads(line) for line in (folder / "ar.jsonl").read_text().splitlines()]
    swapped = [e | {"text": e["text"][::-1]} for e in entries]  # the same characters
    write(folder, "swapped", swapped)

    def changed(stream, **changes):
        return load(folder, edit=lambda data: data.streams[stream].update(changes)).digest()

    digest = load(folder).digest()
    assert load(folder, num_threads=0).digest() == digest
    digests = [digest, changed("asr/ar", train=str(folder / "swapped.jsonl"))]
    digests += [changed("asr/en", buckets=(1.1, 1.5)), changed("st/ar-en", field="text")]
    digests += [load(folder, without=["asr/en"]).digest(), load(folder, temperature=1.0).digest()]
    assert len(set(digests)) == 6


def test_a_config_read_back_from_json_is_the_same_corpus(folder):
    data = several(folder)
    again = ConfigDict(json.loads(data.to_json()))
    assert isinstance(again.streams["asr/en"].buckets, list)
    made = [load_corpus(d, seed=0) for d in (data, again)]
    assert made[0].digest() == made[1].digest()
    for a, b in zip(*(c.train_batches(SEGMENTS, 14) for c in made), strict=True):
        assert_equal(a, b)


def test_given_tokenizers_replace_those_of_the_texts(folder):
    whole = load(folder)
    given = {**whole.tokenizers, "asr/en": CharTokenizer(" 01c")}
    corpus = load(folder, tokenizers=given)
    assert corpus.tokenizers == given
    assert len(corpus.utterances("asr/en")) == 10
    assert "asr/en: 4 utterances skipped: with unknown characters: '2'" in corpus.summary()


def test_splits_load_without_training_data(folder):
    whole = load(folder)

    def forget(data):
        for name in LABELLED:
            data.streams[name].update(train="gone.jsonl", dev="gone.jsonl")

    uris = {
        "dev/asr/en": str(folder / "en-dev.jsonl"),
        "mine/st/ar-en": str(folder / "ar-dev.jsonl"),
    }
    found = load_splits(several(folder, edit=forget), uris, whole.tokenizers)
    assert found.utterances("dev/asr/en") == whole.utterances("dev/asr/en")
    assert found.references("mine/st/ar-en") == ["x1 y", "x2 y"]
    # 1.37 s: above 1.0, but below the stream's own 1.4
    ((batch, _),) = found.eval_batches("dev/asr/en")
    assert batch["audio"].shape[1] == round(1.4 * RATE)
    with pytest.raises(UserError, match="'dev' is of no stream"):
        load_splits(several(folder), {"dev": uris["dev/asr/en"]}, whole.tokenizers)


def test_overfitting_has_the_first_utterances_of_each_stream(folder):
    corpus = load(folder, overfit=3)
    for stream in LABELLED:
        few = corpus.utterances(stream)
        assert len(few) == 3
        assert corpus.utterances(f"dev/{stream}") == few
        assert corpus.utterances(f"test/{stream}") == []
    heard = [u.id for u in corpus.utterances("unlabelled")]
    assert len(set(heard)) == len(heard)
    assert set(heard) == set().union(*(ids(corpus.utterances(stream)) for stream in LABELLED))


def test_utterances_infeasible_for_ctc_are_counted_per_stream(folder):
    corpus = load(folder)
    lines = corpus.infeasible(lambda samples: 2)  # ba needs two frames, bb three, "x0 y" four
    assert [line.split(" of ")[0] for line in lines] == ["asr/ar: 12", "st/ar-en: 18"]
    assert re.search(r"first u1 \(\S*ar\.jsonl:2\) with 2 for 3: look", lines[0])
    assert corpus.infeasible(lambda samples: 2, ["asr/en"]) == []
    assert len(corpus.infeasible(lambda samples: 0, ["asr/en", "asr/ar"])) == 2


def test_bad_audio_is_listed_once_with_all_its_splits(tmp_path):
    uri = corpora.damaged(tmp_path) / "train.jsonl"
    entries = [json.loads(line) | {"translation": "b"} for line in uri.read_text().splitlines()]
    write(tmp_path, "train", entries)
    data = corpora.settings(tmp_path, train="", dev="", **PLAIN, max_bad_fraction=0.1)
    for name, field in (("asr/x", "text"), ("st/x-y", "translation")):
        data.streams[name] = defaults.stream(str(uri), str(uri), field=field)
    corpus = load_corpus(data, seed=0)
    needed = ("asr/x", "st/x-y", "unlabelled")
    list(corpus.train_batches([Segment(0, 8, needed)], 0))
    (entry,) = corpus.quarantined
    assert entry["id"] == "6"
    assert sorted(entry["splits"]) == sorted(needed)
