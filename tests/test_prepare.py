import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from bljust_jax import prepare
from bljust_jax.data.sources import open_source, read_audio
from configs import librispeech, tedlium, variants


@pytest.fixture
def manifest(tmp_path):
    noise = np.random.default_rng(0).integers(-999, 999, 4000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", noise, 8000)
    lines = [
        json.dumps({"audio_filepath": "a.wav", "offset": 0.1 * i, "duration": 0.1, "text": "a"})
        for i in range(4)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "train.jsonl")


def test_a_manifest_becomes_shards(manifest, tmp_path, capsys):
    out = str(tmp_path / "out")
    flags = ["--out", out, "--sample_rate", "8000", "--shards", "2", "--verify", "--json"]
    assert prepare.main([manifest, *flags]) == 0
    told = capsys.readouterr()
    summary = json.loads(told.out)
    assert summary["folder"] == f"{out}/train"
    assert (summary["utterances"], summary["bad"]) == (4, 0)
    assert summary["seconds"] == pytest.approx(0.4)
    assert "prepared 4/4 utterances" in told.err
    assert "verified 4/4 utterances" in told.err
    for u, v in zip(open_source(manifest), open_source(f"tfds:{out}/train"), strict=True):
        np.testing.assert_array_equal(read_audio(u, 8000), read_audio(v, 8000))
    assert prepare.main([f"tfds:{out}/train", "--verify"]) == 0
    assert f"{out}/train: 4 utterances, 0.4 s" in capsys.readouterr().out
    assert prepare.main([manifest, *flags]) == 2  # never overwritten
    assert "exists already" in capsys.readouterr().err
    copy = [f"tfds:{out}/train", "--out", out, "--split", "copy", "--sample_rate", "8000"]
    assert prepare.main(copy) == 0  # shards are a source like any other


def test_left_out_audio_is_said(manifest, tmp_path, capsys):
    with open(manifest, "a", encoding="utf-8") as file:
        file.write('\n{"audio_filepath": "a.wav", "offset": 9, "duration": 1}\n')
    flags = ["--out", str(tmp_path / "out"), "--split", "x", "--max_bad_fraction"]
    assert prepare.main([manifest, *flags, "0.1"]) == 2
    told = capsys.readouterr()
    assert "train.jsonl:5: " in told.err
    assert "1 of 5 utterances are bad by now" in told.err
    assert prepare.main([manifest, *flags, "0.2"]) == 0
    assert "; 1 skipped, see quarantine-*.jsonl" in capsys.readouterr().out
    row = json.loads((tmp_path / "out" / "quarantine-x.jsonl").read_text())
    assert row["line"].endswith("train.jsonl:5")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ([], "required: URI"),
        (["{}"], "--out is required"),
        (["{}", "--verify"], "--out is required"),
        (["tfds:none", "--verify"], "was not written by"),
        (["{}.none.jsonl", "--out", "o"], "none.jsonl"),
        (["nowhere:x", "--out", "o"], "SCHEME one of"),
        (["{}", "--out", "o", "--shards", "0"], "neither auto nor a number"),
        (["{}", "--out", "o", "--sample_rate", "fast"], "--sample_rate"),
        (["{}", "--out", "o", "--sample_rate", "0"], "--sample_rate 0"),
        (["{}", "--out", "o", "--max_bad_fraction", "2"], "from 0 to 1"),
        (["{}", "--out", "o", "--split", "a/b"], "split 'a/b'"),
        (["{}+{}", "--out", "o"], "name the result by --split"),
        (["{}", "--out", "o", "--colour"], "--colour"),
    ],
)
def test_mistakes_are_one_line(manifest, tmp_path, monkeypatch, capsys, flags, complaint):
    monkeypatch.chdir(tmp_path)
    assert prepare.main([flag.replace("{}", manifest) for flag in flags]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert complaint in told.err
    assert not (tmp_path / "o").exists()


def test_the_command_helps_and_needs_no_jax():
    code = "import sys; from bljust_jax import prepare; assert 'jax' not in sys.modules; "
    command = [sys.executable, "-c", code + "prepare.main(['--help'])"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--max_bad_fraction" in done.stdout


@pytest.mark.parametrize(
    ("uri", "split"),
    [
        ("data/train.jsonl", "train"),
        ("librispeech:LS/dev-clean", "dev-clean"),
        ("tedlium:train", "train"),
        ("tfds:librispeech/train_clean100/", "train_clean100"),
        ("table:data/t.csv?audio=a/b&text=c", "t"),
        ("lhotse:cuts_train.jsonl.gz", "cuts_train"),
        ("webdataset:a/train-{000..099}.tar", "train"),
        ("nemo:a/manifest__OP_0..7_CL_.json?tars=a/b.tar", "manifest"),
        ("folder:a/b", "b"),
    ],
)
def test_default_split(uri, split):
    assert prepare.default_split(uri) == split


@pytest.mark.parametrize(
    "arg", [None, "S", "L,ptft", "tenth,chunked", "smoke", "overfit", *variants.METHODS]
)
def test_tedlium_config_takes_variants(arg):
    c = tedlium.get_config(arg)
    assert c.keys() == librispeech.get_config().keys()
    named = c.data.train, c.data.dev, c.data.test
    if arg in ("smoke", "overfit"):
        assert all(uri.startswith("synthetic:") for uri in named if uri)
        assert bool(named[2]) == (arg == "smoke")
    else:
        assert named == ("tedlium:train", "tedlium:dev", "tedlium:test")
    assert c.data.labelled_fraction == (0.1 if arg == "tenth,chunked" else 1.0)


def test_the_progress_line_is_rare_and_tells_the_time_left(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(prepare.time, "monotonic", lambda: clock[0])
    line = prepare.Progress("prepared")
    for done in range(1, 101):
        clock[0] = float(done)
        line(done, 100, 36.0 * done)
    lines = [text.rstrip() for text in capsys.readouterr().err.splitlines()]
    assert [text.split()[1] for text in lines] == ["30/100", "60/100", "90/100", "100/100"]
    assert lines[0] == "prepared 30/100 utterances, 0.30 h of audio, 1.2 min left"
    assert lines[-1] == "prepared 100/100 utterances, 1.00 h of audio, in 1.7 min"
