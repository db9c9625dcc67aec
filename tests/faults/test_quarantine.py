"""F9: audio that cannot be read is skipped, counted and listed; refused above a share."""

import json
import zlib

import numpy as np
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.data.corpus import Segment
from bljust_jax.data.quarantine import Quarantine
from bljust_jax.data.sources import Utterance
from tests.helpers import corpora
from tests.helpers.corpora import JOINT, PLAIN, load, write


@pytest.fixture
def damaged(tmp_path):
    return corpora.damaged(tmp_path)


def test_damaged_audio_is_named_at_once(damaged):
    corpus = load(damaged, dev=str(damaged / "train.jsonl"), **PLAIN)
    message = r"train\.jsonl:7.*6\.flac.*1 of 10 utterances of \w+ are bad.*max_bad_fraction=0 "
    with pytest.raises(UserError, match=message):
        list(corpus.train_batches([Segment(0, 50, JOINT)], 0))
    with pytest.raises(UserError, match=message):
        list(corpus.eval_batches("dev"))


def test_a_share_of_damaged_audio_is_tolerated_on_request(damaged, caplog):
    corpus = load(damaged, dev=str(damaged / "train.jsonl"), **PLAIN, max_bad_fraction=0.1)
    bad = zlib.crc32(b"6")
    for batch in corpus.train_batches([Segment(0, 5, JOINT)], 0):
        for rows in batch.values():
            np.testing.assert_array_equal(rows["audio_lengths"] == 0, rows["ids"] == bad)
        rows = batch["labelled"]
        np.testing.assert_array_equal(rows["label_lengths"] == 0, rows["ids"] == bad)
    scored = [u.id for _, members in corpus.eval_batches("dev") for u in members]
    assert sorted(scored) == sorted(set("0123456789") - {"6"})
    assert len([r for r in caplog.records if "6.flac" in r.getMessage()]) == 1
    (entry,) = corpus.quarantined
    assert entry["splits"] == ["labelled", "unlabelled", "dev"]
    assert "dev: 1 utterances skipped: quarantined" in "\n".join(corpus.summary())


def test_damaged_audio_of_an_overfit_is_quarantined_too(damaged):
    """In the statistics of features, which read the unlabelled stream, first."""
    dev = str(damaged / "train.jsonl")
    corpus = load(damaged, dev=dev, **PLAIN, overfit=8, max_bad_fraction=0.5)
    for _ in corpus.unlabelled_batches(3):
        pass
    (entry,) = corpus.quarantined
    assert (entry["id"], entry["splits"]) == ("6", ["unlabelled"])


def test_what_is_quarantined_is_a_function_of_the_steps_taken(damaged):
    """Batches read ahead do not count: a resumed run has the count of an uninterrupted one."""
    settings = {**PLAIN, "max_bad_fraction": 0.1, "batch_seconds": 1.0, "prefetch": 20}
    settings |= {"dev": str(damaged / "train.jsonl"), "buckets": (0.5,)}
    segment = [Segment(0, 5, ("labelled",))]
    corpus = load(damaged, **settings, num_threads=4)
    met = False
    for batch in corpus.train_batches(segment, 0):
        met |= zlib.crc32(b"6") in batch["labelled"]["ids"]
        assert len(corpus.quarantined) == met
    assert met


def test_unreadable_headers_are_quarantined_at_once(damaged):
    entries = [json.loads(line) for line in (damaged / "train.jsonl").read_text().splitlines()]
    write(damaged, "bare", [{k: v for k, v in e.items() if k != "duration"} for e in entries])
    bare = str(damaged / "bare.jsonl")
    corpus = load(damaged, train=bare, dev=bare, **PLAIN, max_bad_fraction=0.1)
    assert len(corpus.quarantined) == 1
    for split in ("labelled", "unlabelled", "dev"):
        assert len(corpus.utterances(split)) == 9
        assert corpus.quarantined.count(split) == 1
    with pytest.raises(UserError, match=r"bare\.jsonl:7: cannot read the header.*1 of 10"):
        load(damaged, train=bare, dev=bare, **PLAIN)


def utterance(name, fault=""):
    return Utterance(name, f"/{name}.flac", 0.0, 1.0, None, "", "s", "m.jsonl:3", fault=fault)


def quarantine(**sizes):
    made = Quarantine(0.5)
    for split, size in sizes.items():
        made.sift(split, [utterance("sound")] * size)
    return made


def test_the_quarantine_is_listed_and_taken_up_again(tmp_path):
    found, u = quarantine(labelled=4, dev=2), utterance("a")
    for split in ("labelled", "labelled", "dev"):
        found.add(split, u, "m.jsonl:3: half a file")
    assert (len(found), found.count("labelled"), found.count("dev")) == (1, 1, 1)
    path = tmp_path / "quarantine.jsonl"
    found.write(path)
    (entry,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert entry == {
        **{"id": "a", "path": "/a.flac", "line": "m.jsonl:3"},
        **{"reason": "m.jsonl:3: half a file", "splits": ["labelled", "dev"]},
    }
    again = quarantine(unlabelled=2, test=2)
    again.add("test", utterance("b"), "b")
    again.add("unlabelled", u, "a")
    again.restore(json.loads(json.dumps(found.state())))
    assert [(e["id"], e["splits"]) for e in again] == [
        ("a", ["labelled", "dev", "unlabelled"]),
        ("b", ["test"]),
    ]
    with pytest.raises(UserError, match="c; so 2 of 2 utterances of test are bad"):
        again.add("test", utterance("c"), "c")
    quarantine().write(path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_known_to_be_bad_is_sifted_out_and_shares_are_of_the_whole_source():
    found = Quarantine(0.5)
    known = [utterance(name, fault="no header") for name in "ab"]
    kept = found.sift("train", [*known, utterance("c"), utterance("d")])
    assert [u.id for u in kept] == ["c", "d"]
    with pytest.raises(UserError, match="late; so 3 of 4 utterances"):
        found.add("train", kept[0], "late")
    with pytest.raises(UserError, match="no header; so 2 of 3 utterances"):
        Quarantine(0.5).sift("train", [*known, utterance("c")])
