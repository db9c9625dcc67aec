"""The public Python API from outside the repository: lazy names, transcription, an example."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import soundfile

import bljust_jax
from bljust_jax.common.errors import UserError
from bljust_jax.data.sources import open_source, read_audio
from bljust_jax.inference.api import SpeechModel
from bljust_jax.inference.transcriber import Word
from tests.helpers.fake_recognizer import RATE, fake, sound, store
from tests.helpers.runs import save_untrained

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_python(folder, code, *args):
    """stdout of a Python process in an empty folder, with the package on its path."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_is_light_and_starts_no_backend(tmp_path):
    code = """
import sys, bljust_jax
assert not {"jax", "numpy"} & set(sys.modules)
for name in bljust_jax.__all__:
    assert callable(getattr(bljust_jax, name)), name
    assert name in dir(bljust_jax)
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
    run_python(tmp_path, code)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'load_recogniser'"):
        bljust_jax.load_recogniser  # noqa: B018


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("run"))


def test_a_run_transcribes_files_and_arrays_from_any_folder(run, tmp_path, monkeypatch):
    audio = read_audio(open_source("synthetic:tiny/dev")[0])
    path = store(tmp_path / "a.flac", audio)
    monkeypatch.chdir(tmp_path)
    model = bljust_jax.load_recognizer(run)
    samples, rate = soundfile.read(path)
    result = model.transcribe(path)
    assert result.text
    assert [w.word for w in result.words] == result.text.split()
    assert 0 <= result.words[0].start < result.words[-1].end <= result.seconds
    again = model.transcribe(samples, rate)
    assert (again.text, again.words) == (result.text, result.words)
    assert bljust_jax.transcribe(run, path) == result


def test_samples_of_any_type_rate_and_channels_are_those_of_the_file(tmp_path):
    """What the model gets is bit for bit what reading the file gives."""
    rng = np.random.default_rng(0)
    recognizer, _ = fake()
    audio = sound((0, "aab_c"), frames=50)
    model = SpeechModel(recognizer)
    result = model.transcribe(audio)
    assert result == ("", "abc", [Word("abc", 0.0, 0.2)], 2.0)
    assert model.transcribe(audio.astype(np.float64) / 32768) == result
    assert model.transcribe(np.stack([audio, audio], axis=1), RATE) == result
    batches = []
    keep = SpeechModel(
        recognizer._replace(predict=lambda b: batches.append(b["audio"]) or recognizer.predict(b))
    )
    stereo = (0.1 * rng.standard_normal((22050, 2))).astype(np.float32)
    path = tmp_path / "a.wav"
    soundfile.write(path, stereo, 22050, subtype="FLOAT")
    keep.transcribe(path)
    keep.transcribe(stereo, 22050)
    np.testing.assert_array_equal(*batches)


@pytest.mark.parametrize(
    ("audio", "rate", "words"),
    [
        (np.zeros((2, 2, 2), np.int16), None, "shape"),
        (np.zeros(9, np.int64), None, "int16, or floats"),
        (np.full(9, np.nan), None, "not finite"),
        ("none.wav", None, "none.wav"),
        ("none.wav", 8000, "leave sample_rate out"),
    ],
)
def test_mistakes_are_user_errors(audio, rate, words):
    with pytest.raises(UserError, match=words):
        SpeechModel(fake()[0]).transcribe(audio, rate)


def test_the_example_of_bilevel_training(tmp_path):
    """docs/api_example.py: the lower level makes the error on unseen points at least 5 times
    smaller (25 times here)."""
    code = (ROOT / "docs" / "api_example.py").read_text(encoding="utf-8")
    lines = run_python(tmp_path, code).splitlines()
    alone, bilevel = (float(line.split()[-1]) for line in lines)
    assert bilevel < 0.2 * alone
