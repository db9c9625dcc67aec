"""Wrong fields of config.data with several streams: a one-line error that names the field."""

import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.data.tokenizer import learn_pieces
from tests.helpers import corpora
from tests.helpers.corpora import PLAIN, write
from tests.helpers.corpora import load_several as load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpora.tongues(tmp_path_factory.mktemp("tongues"))


def of(stream, **changes):
    return lambda data: data.streams[stream].update(changes)


def spell(stream, **changes):
    return lambda data: data.streams[stream].text.update(changes)


def rename(old, new):
    return lambda data: data.streams.update({new: data.streams[old]})


WRONG = [
    (lambda data: data.update(train="x.jsonl"), r"config\.data\.train='x\.jsonl' must be empty"),
    (lambda data: data.update(dev="x.jsonl"), r"config\.data\.dev='x\.jsonl' must be empty"),
    (of("asr/ar", train=""), r"config\.data\.streams\.asr/ar\.train is empty; name a manifest"),
    (of("asr/ar", train="gone.jsonl"), r"config\.data\.streams\.asr/ar\.train: .*no such manifest"),
    (of("asr/ar", test="odd:x"), r"config\.data\.streams\.asr/ar\.test: cannot read 'odd:x'"),
    (of("asr/ar", field="txt"), r"asr/ar\.field='txt': there is no 'txt', did you mean 'text'\?"),
    (
        of("asr/ar", measure="bla"),
        r"asr/ar\.measure='bla': there is no 'bla'.* wer, cer, mer, bleu",
    ),
    (of("asr/ar", buckets=(1.0,)), r"asr/ar\.buckets=\(1\.0,\) must be 2 ascending lengths"),
    (of("asr/ar", buckets=(1.4, 1.1)), r"asr/ar\.buckets=.* ascending"),
    (of("asr/ar", tain="x"), r"config\.data\.streams\.asr/ar has no field 'tain', did you mean"),
    (spell("asr/ar", unit="x"), r"asr/ar\.text has no field 'unit', did you mean 'units'"),
    (spell("asr/ar", units="words"), r"asr/ar\.text\.units='words': there is no 'words'"),
    (spell("asr/ar", units="bpe", vocab_size=2), r"asr/ar\.text\.vocab_size is 2; the texts need"),
    (spell("asr/ar", units="bpe", model="no"), r"cannot read the SentencePiece model no"),
    (spell("asr/ar", sha256="00"), r"asr/ar\.text\.sha256 is 00, of another model than"),
    (rename("asr/ar", "dev/x"), r"config\.data\.streams\.dev/x: a stream must have a name like"),
    (rename("asr/ar", "a_b"), r"config\.data\.streams\.a_b: a stream must have a name like"),
    (
        lambda data: [stream.update(dev="") for stream in data.streams.values()],
        r"config\.data\.streams: no stream has a dev",
    ),
    (of("asr/en", field="translation"), r"asr/en\.train: no utterance is left to train on: 14 wit"),
    (lambda data: data.update(min_seconds=0.95), r"asr/ar\.train: no utterance .*: 24 shorter"),
    (lambda data: data.update(labelled_speakers=9), r"9 of 4 speakers of .*asr/ar\.train"),
    (lambda data: data.update(rows_multiple=0), r"config\.data\.rows_multiple=0 must be 1"),
    (lambda data: data.update(temperature=-1.0), r"config\.data\.temperature=-1\.0 must be 0"),
    (lambda data: data.update(unlabelled_temperature=float("inf")), r"unlabelled_temperature=inf"),
    (lambda data: data.update(unlabelled_buckets=(0.1, 0.2)), r"unlabelled_buckets must be empty"),
]


@pytest.mark.parametrize(("edit", "complaint"), WRONG)
def test_a_wrong_field_is_named(folder, edit, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        load(folder, edit=edit)
    assert "\n" not in str(caught.value)


def test_empty_sources_are_named(folder, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"streams\.asr/en\.train: \S*empty\.jsonl: no utterance"):
        load(folder, edit=of("asr/en", train=str(tmp_path / "empty.jsonl")))
    bare = [{"audio_filepath": "30.flac", "text": "c0"}]
    write(folder, "bare", bare)
    said = r'bare\.jsonl:1: no utterance of \S* has a translation to score; give each its "transl'
    with pytest.raises(UserError, match=said):
        load(folder, edit=of("st/ar-en", dev=str(folder / "bare.jsonl")))
    with pytest.raises(
        UserError, match=r"streams\.asr/en\.test: \S*: no utterance is left: 1 long"
    ):
        load(folder, edit=of("asr/en", dev="", test=str(folder / "bare.jsonl")), max_seconds=1.0)


def test_utterances_with_characters_outside_the_model_are_skipped(folder, tmp_path):
    model = tmp_path / "en.model"
    for known, left in ((["c0", "c1", "0c1"], 10), (["z9"], 0)):
        model.write_bytes(learn_pieces(known, (), "bpe", len(set("".join(known))) + 1).model)
        edit = spell("asr/en", units="bpe", model=str(model))
        if left:
            corpus = load(folder, edit=edit)
            assert len(corpus.utterances("asr/en")) == left
            assert "asr/en: 4 utterances skipped: with unknown characters: '2'" in corpus.summary()
            continue
        with pytest.raises(UserError, match=r"asr/en\.train: no utterance is left .*: 14 with unk"):
            load(folder, edit=edit)


def test_a_bucket_without_utterances_of_a_stream_gets_a_length_that_has_some(folder):
    """The shortest of en lasts 0.92 s; ar, of more batches, has batches of its first bucket."""
    corpus = load(folder, **PLAIN, edit=of("asr/en", buckets=(0.9, 1.4)))
    assert corpus.driver(tuple(corpus.streams)) == "asr/ar"
    assert corpus.plans["asr/ar"].counts[0]
    plan = corpus.plans["asr/en"]
    assert plan.counts[0]
    assert 0.92 <= plan.buckets[0].seconds < 1.4
    for m in range(4):
        assert len(plan.nth_batch_of_bucket(0, m)) == plan.buckets[0].batch_size
    alone = {"without": ["asr/ar", "st/ar-en"], "edit": of("asr/en", buckets=(0.9, 1.4))}
    assert load(folder, **PLAIN, **alone).plans["asr/en"].counts[0] == 0  # it never occurs
