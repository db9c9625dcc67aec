"""Labels per frame: they follow the audio through crops and speed; mistakes by file and line."""

import json

import numpy as np
import pytest
import soundfile

from bljust_jax.common.errors import UserError
from bljust_jax.data import frame_labels
from bljust_jax.data.corpus import Segment
from tests.helpers import corpora
from tests.helpers.corpora import PLAIN, RATE, assert_equal, load, write

LEVEL = 3000  # amplitude per label: the audio spells its labels
FRAMES = {f"u{i}": 14 + 7 * i for i in range(8)}  # labels per utterance, 50 per second
SEGMENTS = (Segment(0, 12, ("unlabelled",)),)
HERE = {**PLAIN, "speed": (0.8, 1.25), "buckets": (0.5, 1.0), "unlabelled_buckets": ()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made, rng = tmp_path_factory.mktemp("frames"), np.random.default_rng(0)
    entries, lines = [], []
    for name, count in FRAMES.items():
        labels = rng.integers(0, 10, count)
        soundfile.write(
            made / f"{name}.wav", np.repeat(labels * LEVEL, RATE // 50).astype("i2"), RATE
        )
        entry = {"audio_filepath": f"{name}.wav", "duration": count / 50, "id": name, "text": "a"}
        entries.append(entry)
        lines.append(" ".join(map(str, labels)))
    write(made, "train", entries)
    write(made, "dev", entries[2:4])
    (made / "plain.km").write_text("".join(f"{line}\n" for line in lines))
    named = [f"{name}\t{line}\n" for name, line in zip(FRAMES, lines, strict=True)]
    (made / "named.km").write_text("".join(reversed(named)))
    (made / "spaced.km").write_text("".join(named).replace("\t", " "))
    return made


def labels_of_audio(batch):
    """What the audio says at the middle of each label, by row."""
    samples = ((np.arange(batch["frame_labels"].shape[1]) + 0.5) * RATE / 50).astype(int)
    samples = np.minimum(samples, batch["audio"].shape[1] - 1)
    return np.rint(batch["audio"][:, samples] / LEVEL).astype(int)


def assert_labels_are_those_of_the_audio(batch, least):
    lengths = batch["frame_label_lengths"]
    np.testing.assert_allclose(lengths, batch["audio_lengths"] * 50 / RATE, atol=0.51)
    used = np.arange(batch["frame_labels"].shape[1])[None, :] < lengths[:, None]
    assert not batch["frame_labels"][~used].any()
    right = (labels_of_audio(batch) == batch["frame_labels"])[used]
    assert right.mean() >= least


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({"speed": (1.0, 1.0)}, 1.0),
        ({"speed": (1.0, 1.0), "unlabelled_buckets": (0.4,)}, 0.96),  # crops inside a label
        ({}, 0.96),  # resampling rounds the edges of a label off
        ({"unlabelled_buckets": (0.4,)}, 0.96),
    ],
)
def test_labels_follow_the_audio_through_crops_and_speed(folder, changes, least):
    corpus = load(folder, frame_labels=str(folder / "named.km"), **{**HERE, **changes})
    batches = [b["unlabelled"] for b in corpus.train_batches(SEGMENTS, 0)]
    for batch in batches:
        assert batch["frame_labels"].dtype == np.int32
        assert_labels_are_those_of_the_audio(batch, least)
    shapes = corpus.empty_batches(corpus.step_buckets(("unlabelled",), 0))["unlabelled"]
    first = next(b for b in batches if b["audio"].shape == shapes["audio"].shape)
    assert {k: v.shape for k, v in shapes.items()} == {k: v.shape for k, v in first.items()}


def test_all_ways_to_name_utterances_are_one(folder, tmp_path):
    whole = list(
        load(folder, frame_labels=str(folder / "named.km"), **HERE).train_batches(SEGMENTS, 0)
    )
    lines = (folder / "named.km").read_text().splitlines(keepends=True)
    (tmp_path / "b.km").write_text("".join(lines[:3]))
    (tmp_path / "a.km").write_text("".join(lines[3:]))
    joined = f"{tmp_path / 'b.km'}+{tmp_path / 'a.km'}"
    for given in (folder / "plain.km", folder / "spaced.km", tmp_path, joined):
        corpus = load(folder, frame_labels=str(given), **HERE)
        for a, b in zip(whole, corpus.train_batches(SEGMENTS, 0), strict=True):
            assert_equal(a, b)


def test_lines_without_ids_follow_both_sources(folder, tmp_path):
    """data.train, then data.unlabelled."""
    rows = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    for name, part in (("first", rows[:5]), ("rest", rows[5:])):
        (folder / f"{name}.jsonl").write_text("".join(part))
    sources = {"train": str(folder / "first.jsonl"), "unlabelled": str(folder / "rest.jsonl")}
    corpus = load(folder, frame_labels=str(folder / "plain.km"), **{**HERE, **sources})
    for u in corpus.utterances("unlabelled"):
        assert len(corpus.frame_labels.of(u)) == FRAMES[u.id]
    apart = {**sources, "unlabelled_with_train": False}
    with pytest.raises(UserError, match="8 lines without ids for 3 utterances"):
        load(folder, frame_labels=str(folder / "plain.km"), **{**HERE, **apart})


def test_evaluation_batches_have_labels_on_demand(folder):
    corpus = load(folder, frame_labels=str(folder / "named.km"), **HERE)
    for batch, members in corpus.eval_batches("dev"):
        assert "frame_labels" not in batch
        batch = corpus.with_frame_labels(batch, members)
        assert_labels_are_those_of_the_audio(batch, 1.0)
    plain = load(folder, **HERE)
    batch, members = next(iter(plain.eval_batches("dev")))
    assert plain.with_frame_labels(batch, members) is batch


def test_utterances_outside_training_need_no_labels(folder):
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    dev = write(folder, "other", [row | {"id": f"x{row['id']}"} for row in rows[:2]])
    corpus = load(folder, frame_labels=str(folder / "named.km"), dev=dev, **HERE)
    batch, members = next(iter(corpus.eval_batches("dev")))
    assert not corpus.with_frame_labels(batch, members)["frame_label_lengths"].any()


def test_the_fingerprint_of_the_data_has_the_labels(folder, tmp_path):
    text = (folder / "named.km").read_text()
    (tmp_path / "other.km").write_text(text[:-2] + ("1\n" if text[-2] != "1" else "2\n"))
    given = ("", folder / "named.km", tmp_path / "other.km")
    digests = {load(folder, frame_labels=str(path), **HERE).digest() for path in given}
    assert len(digests) == 3
    assert load(folder, frame_labels=str(folder / "plain.km"), **HERE).digest() in digests


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda rows: [*rows[:2], "u5\t1 x 3", *rows[3:]], r"bad\.km:3: invalid literal.*whole"),
        (lambda rows: [*rows[:2], "u5\t1 -3", *rows[3:]], r"bad\.km:3: label -3; labels are"),
        (lambda rows: [*rows, rows[0]], r"bad\.km:9: 'u7' has labels already, at .*bad\.km:1"),
        (lambda rows: rows[1:], r"1 of 8 utterances to train on have no labels, first u7 \(.*:8\)"),
        (
            lambda rows: [rows[0] + " 1" * 6, *rows[1:]],
            r"km:1: 69 labels of 'u7', whose 1\.26",
        ),
        (lambda rows: ["1 2 3", *rows[1:]], r"bad\.km:2: has an id where .*bad\.km:1 has none"),
        (lambda rows: ["1 2 3"], "1 lines without ids for 8 utterances"),
    ],
)
def test_mistakes_are_named_by_file_and_line(folder, tmp_path, edit, said):
    rows = (folder / "named.km").read_text().splitlines()
    (tmp_path / "bad.km").write_text("\n".join(edit(rows)) + "\n")
    with pytest.raises(UserError, match=said):
        load(folder, frame_labels=str(tmp_path / "bad.km"), **HERE)


def test_what_cannot_be_aligned_is_refused_before_audio_is_read(folder, tmp_path):
    with pytest.raises(UserError, match=r"no such file: .*none\.km; make them by"):
        load(folder, frame_labels=str(tmp_path / "none.km"), **HERE)
    with pytest.raises(UserError, match=r"no \*\.km in the folder"):
        load(folder, frame_labels=str(tmp_path), **HERE)
    joined = {"unlabelled_join": (2, 3), "unlabelled_join_share": 0.5}
    with pytest.raises(UserError, match=r"unlabelled_join_share=0\.5 must be 0 with"):
        load(folder, frame_labels=str(folder / "named.km"), **HERE, **joined)


def test_a_label_beyond_the_classes_is_named(folder):
    labels = load(folder, frame_labels=str(folder / "named.km"), **HERE).frame_labels
    largest, line = labels.largest
    labels.check_classes(largest + 1, "config.hubert.classes")
    with pytest.raises(UserError, match=rf"named\.km:\d: label {largest} is none of the {largest}"):
        labels.check_classes(largest, "config.hubert.classes")
    assert str(folder) in line


def test_cut_is_the_rule_of_the_middle():
    """Label j of the cut is that at start + speed (j + 1/2) / rate, the last one after the end."""
    labels = frame_labels.FrameLabels(50.0, {"a": np.arange(10)}, (9, "x:1"))
    u = corpora.utterance("a", 0.2)
    np.testing.assert_array_equal(labels.cut(u, 0.2), np.arange(10))
    np.testing.assert_array_equal(labels.cut(u, 0.1, 0.065), [3, 4, 5, 6, 7])
    np.testing.assert_array_equal(labels.cut(u, 0.1, 0.0, 2.0), [1, 3, 5, 7, 9])
    np.testing.assert_array_equal(labels.cut(u, 0.28), [*range(10), 9, 9, 9, 9])
    assert labels.cut(corpora.utterance("b", 0.2), 0.2).shape == (0,)
