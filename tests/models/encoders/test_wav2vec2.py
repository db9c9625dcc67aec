"""wav2vec 2.0 as an encoder: its waveforms, its masks, and the model behind it."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bljust_jax.models import encoders
from bljust_jax.models.encoders.wav2vec2 import SIZES

SAMPLES, LENGTHS = 2400, jnp.array([2400, 1500, 0])
FRAMES = [7, 4, 0]


def encoder(**mask):
    spans = {"time_prob": 0.5, "time_length": 2, "channel_prob": 0.3, "channel_length": 2}
    config = {
        "model": {**SIZES["tiny"], "normalise": True},
        "mask": {**spans, **mask},
        "features": {"n_mels": 8, "window": 400, "hop": 160, "n_fft": 512, "frontend": "log_mel"},
        "data": {"sample_rate": 16000},
    }
    return encoders.load("wav2vec2")(ConfigDict(config))


def recordings(samples=SAMPLES):
    draw = np.random.default_rng(4).integers(-3000, 5000, (3, samples))
    valid = np.arange(samples)[None, :] < np.asarray(LENGTHS)[:, None]
    return jnp.asarray(np.where(valid, draw, 77), jnp.int16)  # padding need not be 0


def test_waveforms_have_mean_0_and_variance_1_over_the_utterance():
    x, lengths, input_mask = encoder().features(recordings(), LENGTHS, keys=None, train=False)
    assert input_mask is None
    np.testing.assert_array_equal(lengths, LENGTHS)
    assert x.dtype == jnp.float32
    for row, audio, n in zip(x, np.asarray(recordings()), LENGTHS.tolist(), strict=True):
        assert not np.any(row[n:])
        if n:
            wave = audio[:n].astype(np.float64) / 32768
            expected = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
            np.testing.assert_allclose(row[:n], expected, atol=1e-5)  # float32 sums of 2400 terms


def test_masks_are_drawn_in_training_from_the_utterances_key():
    bound = encoder()
    keys = jax.random.split(jax.random.key(3), 3)
    features = jax.jit(lambda x, n, keys: bound.features(x, n, keys=keys, train=True)[2])
    drawn = features(recordings(), LENGTHS, keys)
    assert drawn.time.shape == (3, 7)
    assert drawn.channels.shape == (3, 96)
    assert np.all(np.any(drawn.time, axis=1) == np.array([True, True, False]))
    assert np.all(np.any(drawn.channels, axis=1))
    assert not np.any(drawn.time[1, 4:])
    order = jnp.array([1, 2, 0])
    permuted = features(recordings()[order], LENGTHS[order], keys[order])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[order]), permuted, drawn)
    padded = features(jnp.pad(recordings(), ((0, 0), (0, 200))), LENGTHS, keys)
    np.testing.assert_array_equal(padded.time[:, :7], drawn.time)
    np.testing.assert_array_equal(padded.channels, drawn.channels)


def test_the_encoder_binds_the_model():
    bound = encoder()
    params, stats = jax.jit(bound.init)(jax.random.key(0))
    assert (bound.dim, bound.latent_dim, bound.blocks, bound.masks_input) == (96, 64, 4, True)
    assert stats == {} == bound.statistics([])
    assert bound.frames(SAMPLES) == FRAMES[0]
    assert bound.flops(SAMPLES, 1) < bound.flops(SAMPLES)
    mel, frames = bound.log_mel(jnp.zeros((1, 800), jnp.int16), jnp.array([800]))
    assert mel.shape == (1, 3, 8)
    assert frames.tolist() == [3]

    def run(params, audio):
        x, lengths, input_mask = bound.features(audio, LENGTHS, keys=None, train=False)
        how = {
            "context": "full",
            "input_mask": input_mask,
            "depth": None,
            "train": False,
            "rng": None,
        }
        return bound.apply(params, x, lengths, stats={}, **how)

    out, lengths, hidden, _ = jax.eval_shape(run, params, recordings())
    assert out.shape == (3, 7, 96)
    assert lengths.shape == (3,)
    assert hidden["latents"].shape == (3, 7, 64)
