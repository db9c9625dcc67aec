"""Frame labels by k-means: of log-mel features and of a layer of a run, through `prepare`."""

import json

import numpy as np
import pytest
import soundfile

from bljust_jax import prepare
from bljust_jax.common.errors import UserError
from bljust_jax.data import frame_labels
from bljust_jax.data.sources import open_source
from bljust_jax.inference import cluster_frames
from bljust_jax.ops import kmeans
from configs import defaults
from tests.helpers import runs
from tests.helpers.corpora import write

RATE = 16000


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Utterances of two halves, a low and a high tone, of 0.3 to 2.7 s."""
    made = tmp_path_factory.mktemp("tones")
    entries, rng = [], np.random.default_rng(0)
    for i in range(8):
        half = np.arange(round((0.15 + 0.17 * i) * RATE)) / RATE
        audio = np.concatenate([np.sin(2 * np.pi * hertz * half) for hertz in (300, 3000)])
        audio = 8000 * audio + rng.normal(0, 30, len(audio))
        soundfile.write(made / f"{i}.wav", audio.astype(np.int16), RATE)
        entries.append({"audio_filepath": f"{i}.wav", "duration": len(audio) / RATE, "id": f"u{i}"})
    return write(made, "train", entries)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return runs.save_untrained(tmp_path_factory.mktemp("run"))


def label(manifest, out, *flags):
    assert prepare.main([manifest, "--out", str(out), *flags]) == 0
    return dict(line.split("\t") for line in out.read_text().splitlines())


def ends(labels):
    """(first, last) label of a line."""
    first, *_, last = labels.split()
    return first, last


def test_log_mel_labels_tell_the_halves_apart(manifest, tmp_path, capsys):
    found = label(manifest, tmp_path / "a.km", "--labels", "log_mel", "--classes", "2")
    assert "labels of 8 utterances, 50 per second, 2 classes of log_mel" in capsys.readouterr().out
    low, high = ends(found["u7"])
    assert low != high
    for u in open_source(manifest):
        labels = found[u.id].split()
        assert len(labels) == round(u.duration * 50)
        middle = len(labels) / 2
        expected = np.where(np.arange(len(labels)) + 0.5 < middle, low, high)
        assert np.mean(np.array(labels) == expected) > 0.9
    again = label(manifest, tmp_path / "b.km", "--labels", "log_mel", "--classes", "2")
    assert again == found
    # they are what `config.data.frame_labels` reads
    data = defaults.base().data
    data.frame_labels = str(tmp_path / "a.km")
    utterances = open_source(manifest)
    read = frame_labels.load(data, utterances, (), lambda: utterances)
    for u in utterances:
        assert read.of(u).tolist() == [int(x) for x in found[u.id].split()]


@pytest.mark.slow
def test_labels_of_a_layer_are_those_of_its_frames(manifest, run, tmp_path, capsys):
    """The class of frame floor(t / 40 ms) at the middle t of each label."""
    flags = ["--labels", str(run), "--layer", "1", "--classes", "5", "--json"]
    found = label(manifest, tmp_path / "a.km", *flags)
    summary = json.loads(capsys.readouterr().out)
    assert (summary["classes"], summary["features"]) == (5, "layer 1 of conformer")
    frames = cluster_frames.layer_of_run(str(run), 1)
    means = np.load(tmp_path / "a.km.npz")["centroids"]
    assert frames.stride == 640
    utterances = open_source(manifest)
    for members, batch in cluster_frames._batches(frames, utterances):
        for u, x in zip(members, batch, strict=True):
            classes = kmeans.assign(x, means)[0]
            labels = [int(c) for c in found[u.id].split()]
            for j, given in enumerate(labels):
                at = int((j + 0.5) * 20 // 40)
                assert given == classes[min(at, len(classes) - 1)]
    assert label(manifest, tmp_path / "b.km", *flags) == found
    other = label(manifest, tmp_path / "c.km", *flags, "--seed", "1")
    assert other != found


def test_a_dev_set_takes_the_classes_of_training(manifest, tmp_path):
    whole = label(manifest, tmp_path / "a.km", "--labels", "log_mel", "--classes", "3")
    given = ["--labels", "log_mel", "--centroids", str(tmp_path / "a.km.npz")]
    assert label(manifest, tmp_path / "b.km", *given) == whole


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--labels", "log_mel", "--classes", "100000"], "lower it, or give more audio"),
        (["--labels", "{run}", "--layer", "9"], "--layer=9 must be 1 .. 2, or 0 for half"),
        (["--labels", "{none}"], "holds no config.json"),
        (["--labels", "log_mel", "--centroids", "{none}"], "no file that --labels has written"),
    ],
)
def test_mistakes_are_one_line(manifest, run, tmp_path, capsys, flags, said):
    given = [flag.format(run=run, none=tmp_path / "none") for flag in flags]
    assert prepare.main([manifest, "--out", str(tmp_path / "a.km"), *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "a.km").exists()


def test_centroids_of_other_features_are_refused(manifest, run, tmp_path):
    np.savez(tmp_path / "a.npz", centroids=np.zeros((2, 3)), features="layer 2 of conformer")
    with pytest.raises(UserError, match="they are of layer 2 of conformer, not of log_mel"):
        cluster_frames.write_labels(
            manifest, tmp_path / "a.km", features="log_mel", centroids=tmp_path / "a.npz"
        )


def test_damaged_centroids_are_named(manifest, tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, centroids=np.zeros((2, 80)), features="log_mel")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"--centroids=.*a\.npz: no file that --labels has written"):
        cluster_frames.write_labels(manifest, tmp_path / "a.km", features="log_mel", centroids=path)


def test_it_needs_a_file_to_write(manifest, capsys):
    assert prepare.main([manifest, "--labels", "log_mel"]) == 2
    assert "--out FILE.km is required with --labels" in capsys.readouterr().err
