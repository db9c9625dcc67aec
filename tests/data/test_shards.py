"""ArrayRecord shards: equal bits, damaged files, TFDS folders."""

import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from ml_collections import ConfigDict

from bljust_jax.common.errors import UserError
from bljust_jax.data import shard_writing, shards
from bljust_jax.data.corpus import Segment, load_corpus
from bljust_jax.data.sources import open_source, read_audio
from configs import defaults
from tests.helpers.segments import RATE, assert_same, segments

JOINT = [Segment(0, 3, ("unlabelled",)), Segment(3, 6, ("labelled", "unlabelled"))]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return segments(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def prepared(corpus):
    """The corpus written as shards, and the summary of `write`."""
    out = corpus / "shards"
    return shard_writing.write(
        open_source(str(corpus / "train.jsonl")), out, "train", sample_rate=RATE, shards=3
    )


def test_shards_equal_the_manifest(corpus, prepared):
    original = open_source(str(corpus / "train.jsonl"))
    stored = open_source(f"tfds:{corpus}/shards/train")
    assert_same(original, stored, RATE)
    assert open_source("tfds:train", str(corpus / "shards"))[3].id == original[3].id
    assert stored[1].line.endswith("utterances-train.jsonl:2")
    assert prepared.utterances == 24
    assert prepared.seconds == pytest.approx(sum(u.duration for u in original), abs=1e-9)
    assert len(list(pathlib.Path(prepared.folder).glob("*.array_record-*"))) == 3
    assert shards.verify(prepared.folder, "train") == prepared


def test_crops_are_the_same_samples(corpus, prepared):
    """Crops as in training: offset and duration are replaced before decoding."""
    original = open_source(str(corpus / "train.jsonl"))
    stored = open_source(f"tfds:{corpus}/shards/train")
    rng = np.random.default_rng(1)
    for u, v in zip(original, stored, strict=True):
        for start in rng.uniform(0, u.duration - 0.3, 20):
            a, b = (dataclasses.replace(w, offset=w.offset + start, duration=0.25) for w in (u, v))
            np.testing.assert_array_equal(read_audio(a, RATE), read_audio(b, RATE))


def batches(train, dev, **changes):
    """Digest and first batches of a corpus with joining, cropping, speed perturbation and noise."""
    c = defaults.base()
    c.data.update(sample_rate=RATE, buckets=(0.5, 1.2), batch_seconds=4.0, join=(2, 3))
    c.data.update(unlabelled_batch_seconds=4.0, join_share=0.5, speed=(0.9, 1.1), min_seconds=0.0)
    c.data.update(train=train, dev=dev, noise_snr=(10.0, 20.0), **changes)
    made = load_corpus(ConfigDict(c.data), seed=0)
    return made.digest(), list(made.train_batches(JOINT, 0))


def assert_same_batches(manifest, folder, **changes):
    digest, expected = batches(manifest, manifest, **changes)
    again, found = batches(folder, folder, **changes)
    assert digest == again
    for a, b in zip(expected, found, strict=True):
        for stream in a:
            for name in a[stream]:
                np.testing.assert_array_equal(a[stream][name], b[stream][name])
    assert any(np.any(step[s]["audio"]) for step in found for s in step)


def test_training_batches_are_bit_equal(corpus, prepared):
    assert_same_batches(str(corpus / "train.jsonl"), f"tfds:{corpus}/shards/train")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["en", "digits_ar"])
def test_real_recordings_give_the_same_bits(speech, tmp_path, name):
    lines = (speech / name / "train.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    (tmp_path / "real.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "train").symlink_to(speech / name / "train")
    uri, folder = str(tmp_path / "real.jsonl"), f"tfds:{tmp_path}/out/real"
    original = open_source(uri, "/")
    shard_writing.write(original, tmp_path / "out", "real")
    assert_same(original, open_source(folder), 16000)
    changes = {"sample_rate": 16000, "buckets": (1.0, 3.0), "batch_seconds": 9.0}
    assert_same_batches(uri, folder, root="/", **changes)


def test_threads_read_one_folder(corpus, prepared):
    stored = list(open_source(f"tfds:{corpus}/shards/train")) * 4
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda u: read_audio(u, RATE), stored))
    for u, audio in zip(stored, found, strict=True):
        np.testing.assert_array_equal(audio, read_audio(u, RATE))


@pytest.fixture
def copy(tmp_path, corpus):
    """Shards of four utterances, to be damaged."""
    utterances = open_source(str(corpus / "train.jsonl"))[:4]
    return pathlib.Path(shard_writing.write(utterances, tmp_path, "c", sample_rate=RATE).folder)


def test_a_damaged_shard_is_named(copy):
    (shard,) = copy.glob("*.array_record-*")
    data = bytearray(shard.read_bytes())
    data[200:20000] = bytes(19800)
    shard.write_bytes(data)
    (first, *_) = open_source(f"tfds:{copy}")
    with pytest.raises(UserError, match=r"utterances-c\.jsonl:1: .*#0: record 0: .*Corrupted"):
        read_audio(first, RATE)
    with pytest.raises(UserError, match=r"utterances-c\.jsonl:1: .*Corrupted"):
        shards.verify(str(copy), "c")
    shard.unlink()
    with pytest.raises(UserError, match=r"utterances-c\.jsonl:1: "):
        read_audio(open_source(f"tfds:{copy}")[0], RATE)


def rewrite(copy, change):
    """Rewrite the index: `change` modifies the list of its rows."""
    path = shards.index_path(copy, "c")
    rows = change([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_verify_compares_the_samples_with_the_index(copy):
    rewrite(copy, lambda rows: [rows[0], rows[1] | {"sha256": "0" * 64}, *rows[2:]])
    with pytest.raises(UserError, match=r"utterances-c\.jsonl:2: the samples of 'ü/1'"):
        shards.verify(str(copy), "c")
    rewrite(copy, lambda rows: rows[:2])
    with pytest.raises(UserError, match="4 records, but the index lists 2"):
        shards.verify(str(copy), "c")


def test_verify_compares_the_bytes_of_a_shard(copy):
    """Bytes that no record shows; the file of checksums is one of sha256sum."""
    listing = shards.checksums_path(copy, "c")
    check = ["sha256sum", "--check", "--quiet", listing.name]
    assert subprocess.run(check, cwd=copy, check=False).returncode == 0
    (shard,) = copy.glob("*.array_record-*")
    listing.write_text(listing.read_text().replace(shard.name, "other"))
    with pytest.raises(UserError, match=r"shards-c\.sha256:1: other .*No such file"):
        shards.verify(str(copy), "c")
    listing.write_text("0" * 64 + f"  {shard.name}\n")
    with pytest.raises(UserError, match=r"shards-c\.sha256:1: .*-00000 does not have the bytes"):
        shards.verify(str(copy), "c")
    listing.unlink()  # as in a folder of an earlier version
    assert shards.verify(str(copy), "c").utterances == 4


def test_an_index_of_other_records_is_refused(copy):
    rewrite(copy, lambda rows: rows[::-1])
    with pytest.raises(UserError, match=r"utterances-c\.jsonl:1: names 'ü/3', .* holds 'ü/0'"):
        read_audio(open_source(f"tfds:{copy}")[0], RATE)


def test_damaged_index_lines_are_named(copy):
    rewrite(copy, lambda rows: [rows[0], {"id": "x"}])
    with pytest.raises(UserError, match=r"utterances-c\.jsonl:2: lacks 'text'"):
        open_source(f"tfds:{copy}")
    shards.index_path(copy, "c").write_text("{\n")
    with pytest.raises(UserError, match=r"utterances-c\.jsonl:1: is not JSON"):
        open_source(f"tfds:{copy}")


# Folders and data sets of other builders


def foreign(folder, features, records, split="train", file_format="array_record"):
    """A TFDS folder written by another builder."""
    api = shards.tfds()

    class Builder(api.core.GeneratorBasedBuilder, skip_registration=True):
        name, VERSION, code_path = "foreign", api.core.Version("2.0.0"), None

        def _info(self):
            described = api.features.FeaturesDict(features(api))
            return api.core.DatasetInfo(builder=self, features=described, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(records)

    builder = Builder(data_dir=folder, file_format=file_format)
    builder.download_and_prepare()
    return f"tfds:{builder.data_dir}/{split}"


def samples_features(api):
    audio = api.features.Tensor(shape=(None,), dtype=np.int64)
    numbers = {"sample_rate": np.int64, "speaker_id": np.int64}
    return {"speech": audio, "text": api.features.Text(), **numbers}


def test_samples_of_other_tfds_folders_are_scanned(tmp_path):
    audio = np.random.default_rng(0).integers(-32768, 32768, RATE)
    record = {"speech": audio, "text": "e\u0301", "sample_rate": RATE, "speaker_id": 7}
    uri = foreign(tmp_path, samples_features, [record, record | {"speech": audio[:400]}])
    first, second = open_source(uri)
    assert (first.id, first.text, first.speaker, first.lang) == ("train-0", "é", "7", "")
    assert (first.duration, second.duration) == (1.0, 0.05)
    np.testing.assert_array_equal(read_audio(first, RATE), audio)
    np.testing.assert_array_equal(read_audio(second, RATE), audio[:400])


def test_files_of_other_tfds_folders_are_scanned(tmp_path, corpus):
    flac = (corpus / "a.flac").read_bytes()

    def features(api):
        return {"audio": api.features.Scalar(np.object_), "id": api.features.Text()}

    (u,) = open_source(foreign(tmp_path, features, [{"audio": flac, "id": "x"}]))
    assert (u.id, u.text, u.speaker, u.duration) == ("x", None, "x", 40.0)
    np.testing.assert_array_equal(
        read_audio(u, RATE), soundfile.read(corpus / "a.flac", dtype="int16")[0]
    )


@pytest.mark.parametrize(
    ("features", "record", "complaint"),
    [
        (lambda api: {"text": api.features.Text()}, {"text": "a"}, "none of the features audio"),
        (
            lambda api: {"audio": api.features.Tensor(shape=(None,), dtype=np.float32)},
            {"audio": np.zeros(9, np.float32)},
            r"record 0 of train: audio is float32 \(9,\), not integer",
        ),
        (
            lambda api: {"audio": api.features.Tensor(shape=(None,), dtype=np.int64)},
            {"audio": np.zeros(9, np.int64)},
            "sample_rate",
        ),
    ],
)
def test_features_that_cannot_be_used(tmp_path, features, record, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        open_source(foreign(tmp_path, features, [record]))
    assert "\n" not in str(caught.value)


def test_other_file_formats_cannot_be_read_at_random(tmp_path):
    record = {"speech": np.zeros(9, int), "text": "a", "sample_rate": RATE, "speaker_id": 7}
    uri = foreign(tmp_path, samples_features, [record])
    (info,) = tmp_path.glob("*/*/dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"tfds build --file_format=array_record"):
        open_source(uri)


def test_features_that_need_tensorflow_are_named(tmp_path, capsys):
    if importlib.util.find_spec("tensorflow"):
        pytest.skip("TensorFlow is installed")
    record = {"speech": np.zeros(9, int), "text": "a", "sample_rate": RATE, "speaker_id": 7}
    uri = foreign(tmp_path, samples_features, [record])
    (features,) = tmp_path.glob("*/*/features.json")
    described = json.loads(features.read_text())
    speech = {"pythonClassName": "tensorflow_datasets.core.features.audio_feature.Audio"}
    shape = {"dimensions": ["-1"]}
    speech |= {"audio": {"shape": shape, "dtype": "int64", "encoding": "none"}}
    described["featuresDict"]["features"]["speech"] = speech
    features.write_text(json.dumps(described))
    capsys.readouterr()
    with pytest.raises(UserError, match="pip install tensorflow-cpu"):
        open_source(uri)
    assert capsys.readouterr().out == ""


def test_official_names_need_tensorflow_and_a_build(tmp_path):
    """The message names TensorFlow's installation if it is missing, else the build command."""
    with pytest.raises(UserError, match=r"pip install tensorflow-cpu|tfds build") as caught:
        open_source("tfds:librispeech/train_clean100", str(tmp_path))
    assert "\n" not in str(caught.value)
    (tmp_path / "librispeech").mkdir()  # the folder of a build of another version
    with pytest.raises(UserError, match=r"pip install tensorflow-cpu|tfds build"):
        open_source("tfds:librispeech/train_clean100", str(tmp_path))


@pytest.mark.parametrize("rest", ["{}/none/train", "{}/train", "{}", "train", "no_such/x"])
def test_missing_folders_are_named(tmp_path, rest):
    with pytest.raises(UserError, match=r"no dataset_info\.json in .*prepare"):
        open_source("tfds:" + rest.format(tmp_path))


def test_shards_stay_inside_the_root(corpus, prepared, tmp_path):
    with pytest.raises(UserError, match=r"^tfds:.* outside the data root"):
        open_source(f"tfds:{corpus}/shards/train", str(tmp_path))
    (tmp_path / "train").symlink_to(corpus / "shards" / "train")
    with pytest.raises(UserError, match=r"^tfds:train: .* outside the data root"):
        open_source("tfds:train", str(tmp_path))


def test_no_tensorflow_was_loaded(prepared):
    assert "tensorflow" not in sys.modules
