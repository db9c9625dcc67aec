"""All input formats: the same 200 utterances give the same batches, bit for bit."""

import pathlib

import pytest

from bljust_jax.data.sources import nfc, open_source
from tests.helpers import corpora, formats
from tests.helpers.formats import FORMATS as PLAIN
from tests.helpers.packed_formats import PACKED

FORMATS = PLAIN | PACKED

LENGTHS = {"buckets": (0.4, 1.2), "batch_seconds": 6.0, "unlabelled_batch_seconds": 12.0}


@pytest.fixture(scope="module")
def found():
    return formats.spoken()


@pytest.fixture(scope="module")
def reference(found, tmp_path_factory):
    """{whether speakers are named: the batches of a manifest}"""
    made = {}
    for speakers in (True, False):
        top = tmp_path_factory.mktemp("manifest")
        made[speakers] = batches(formats.manifest(top, found, speakers), speakers)
    return made


def batches(uri, speakers):
    """The digest of the corpus, and the batches of an epoch."""
    changes = {"train": uri, "dev": uri, "join_share": 0.5 if speakers else 0.0}
    loaded = corpora.load(pathlib.Path(), **LENGTHS, **changes)
    steps = sum(loaded.plans["labelled"].counts)
    assert steps > 10
    segments = [corpora.Segment(0, steps, corpora.JOINT)]
    return loaded.digest(), list(loaded.train_batches(segments, 0))


@pytest.mark.daily("folder of pairs", "kaldi segments", "webdataset")
@pytest.mark.parametrize("name", FORMATS)
def test_batches_are_equal(tmp_path, found, reference, name):
    write, speakers = FORMATS[name]
    digest, made = batches(write(tmp_path / "made", found), speakers)
    assert digest == reference[speakers][0]
    assert len(made) == len(reference[speakers][1])
    for one, two in zip(made, reference[speakers][1], strict=True):
        corpora.assert_equal(one, two)


@pytest.mark.parametrize("name", FORMATS)
def test_texts_and_speakers_are_equal(tmp_path, found, name):
    """And each utterance names the place of its text."""
    write, speakers = FORMATS[name]
    few = found[:20]
    read = open_source(write(tmp_path / "made", few))
    assert [u.id for u in read] == [u.id for u in few]
    texts = [u.text and nfc(u.text).strip() for u in few]
    assert [u.text for u in read] == texts
    assert [u.speaker for u in read] == [u.speaker if speakers else u.id for u in few]
    for u in read:
        assert str(tmp_path) in u.line
    assert not any(u.fault for u in read)
