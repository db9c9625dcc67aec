"""`example.npz`: a model whose posteriors are known by construction, on audio that spells a
word."""

import types
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from bljust_jax.bilevel.types import Weights
from bljust_jax.data.sources import Utterance
from bljust_jax.data.tokenizer import CharTokenizer
from bljust_jax.ops import log_mel as log_mel_module
from bljust_jax.reporting import example
from configs import defaults

RATE, FRAME, LEVEL = 16000, 640, 1000
CONFIDENCE = 6.0
# one class a frame of 40 ms: blank, c, c, a, blank, a, b, b, b, blank: "caab"
PATH = (0, 3, 3, 1, 0, 1, 2, 2, 2, 0)


def predict(params, stats, batch):
    """Class n for a frame whose mean is about n * LEVEL: one-hot logits times `params`."""
    frames = batch["audio"].shape[1] // FRAME
    blocks = batch["audio"][:, : frames * FRAME].reshape(-1, frames, FRAME)
    classes = jnp.round(jnp.mean(blocks.astype(jnp.float32), axis=2) / LEVEL)
    logits = params * (classes[..., None] == jnp.arange(4.0)[None, None, :])
    return logits, batch["audio_lengths"] // FRAME


@pytest.fixture
def made(tmp_path):
    """(the example of one of two utterances, its audio)."""
    audio = np.repeat(np.array(PATH, np.int16) * LEVEL, FRAME)
    path = tmp_path / "a.wav"
    soundfile.write(path, audio, RATE)
    seconds = len(audio) / RATE
    known = [Utterance(name, str(path), 0.0, seconds, text, "", "") for name, text in TEXTS.items()]
    corpus = types.SimpleNamespace(
        tokenizer_of={"dev": CharTokenizer("abc")}.get,
        utterances=lambda split: {"dev": known}[split],
    )
    log_mel = partial(log_mel_module.log_mel, sample_rate=RATE, n_mels=20)
    weights = Weights(jnp.float32(CONFIDENCE), {})
    return example.make(predict, log_mel, weights, corpus, "dev", "two", RATE), audio


TEXTS = {"one": "abc", "two": "  CAAB "}


def test_what_is_recognised_and_where(made):
    found, _ = made
    assert (str(found["id"]), str(found["reference"]), str(found["hypothesis"])) == (
        *("two", "caab", "caab"),
    )
    assert found["symbols"].tolist() == ["a", "b", "c"]
    assert found["labels"].tolist() == [3, 1, 1, 2]
    # the path above is by far the most probable one that spells the reference
    assert found["starts"].tolist() == [1, 3, 5, 6]
    assert found["ends"].tolist() == [3, 4, 6, 9]


def test_log_probs_are_those_of_the_model_without_padding(made):
    found, _ = made
    assert found["log_probs"].shape == (len(PATH), 4)  # the row was padded to a second, 25 frames
    best = CONFIDENCE - np.log(np.exp(CONFIDENCE) + 3)
    # float16 keeps 11 bits: |log p| < 8 is within 2^-8
    expected = np.where(np.arange(4) == np.array(PATH)[:, None], best, best - CONFIDENCE)
    np.testing.assert_allclose(found["log_probs"].astype(np.float64), expected, atol=2**-8)


def test_log_mel_is_not_normalised(made):
    found, audio = made
    mel, frames = log_mel_module.log_mel(audio[None], np.array([len(audio)]), n_mels=20)
    assert found["log_mel"].shape == (int(frames[0]), 20)
    # log energies lie in [-17, 17]: float16 is within 2^-7 of them
    np.testing.assert_allclose(found["log_mel"], np.asarray(mel)[0], atol=2**-7)


def test_a_band_has_most_energy_of_a_tone_at_its_peak(made):
    """Bands of 20 over 8 kHz are wider than the 40 Hz of a window of 25 ms."""
    found, _ = made
    seconds = np.arange(4000) / RATE
    for band in (0, 7, 19):
        tone = np.round(8000 * np.sin(2 * np.pi * found["mel_hz"][band] * seconds))
        mel, _ = log_mel_module.log_mel(tone.astype(np.int16)[None], np.array([4000]), n_mels=20)
        assert np.argmax(np.asarray(mel)[0, 2]) == band


def test_frame_rates_are_exact(made):
    found, _ = made
    assert float(found["mel_seconds"]) == 0.01
    assert float(found["frame_seconds"]) == 0.04


def test_file_holds_the_same_arrays_without_pickle(made, tmp_path):
    found, _ = made
    path = tmp_path / "example.npz"
    example.write(path, found)
    with np.load(path, allow_pickle=False) as file:
        assert sorted(file) == sorted(found)
        for name, array in found.items():
            np.testing.assert_array_equal(file[name], array)
            assert file[name].dtype == array.dtype, name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.wav", "example.npz"]


@pytest.mark.parametrize("masks", [0, 2])
@pytest.mark.parametrize("volume", [(), (-20.0, -20.0)])
def test_what_the_encoder_receives_of_augmented_audio(masks, volume, tmp_path):
    """A gain of -20 dB lowers every log energy by 2 ln 10; masks hold the mean of their band."""
    time = np.arange(2 * RATE) / RATE
    audio = np.round(9000 * np.sin(2 * np.pi * 700 * time * (1 + time))).astype(np.int16)
    audio += np.random.default_rng(0).integers(-999, 999, audio.size).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", audio, RATE)
    utterance = Utterance("a", str(tmp_path / "a.wav"), 0.0, 2.0, "a", "", "")
    config = defaults.base()
    config.data.volume = volume
    config.specaugment.update(freq_masks=masks, time_masks=0, freq_width=9)
    log_mel = partial(log_mel_module.log_mel, sample_rate=RATE, n_mels=20)
    found = example.augmented(log_mel, utterance, config)
    if not masks and not volume:
        assert found == {}
        return
    mel, frames = log_mel(audio[None], np.array([audio.size]))
    plain = np.asarray(mel)[0, : int(frames[0])]
    gain = 2 * np.log(10) if volume else 0.0
    np.testing.assert_allclose(found["augmented"], plain - gain, atol=0.06)
    changed = np.any(found["masked"] != found["augmented"], axis=0)
    assert changed.any() == bool(masks)
    means = found["augmented"].astype(np.float32).mean(axis=0)
    np.testing.assert_allclose(
        found["masked"][:, changed], np.tile(means[changed], (len(plain), 1)), atol=0.02
    )
    assert ("volume" in str(found["steps"])) == bool(volume)
    assert ("SpecAugment" in str(found["steps"])) == bool(masks)
