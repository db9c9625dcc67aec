"""NeMo's features against their definition in float64; tests/peers compares with transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.ops import nemo
from bljust_jax.ops.log_mel import mel_filters

normalise = jax.jit(nemo.normalise)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 3000, shape).astype(np.int16)


def direct(samples, window, hop, n_fft, n_mels):
    """Each frame's window laid around its centre, and a DFT by its sum."""
    x = samples / 32768.0
    x = np.append(x[:1], x[1:] - 0.97 * x[:-1])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / (window - 1))
    wave = np.exp(-2j * np.pi * np.outer(np.arange(window), np.arange(n_fft // 2 + 1)) / n_fft)
    around = np.pad(x, (window // 2, window))
    frames = [around[n : n + window] * hann for n in range(0, len(x) // hop * hop, hop)]
    filters = mel_filters(16000, n_fft, n_mels).astype(np.float64)
    return np.log(np.abs(np.array(frames) @ wave) ** 2 @ filters + 2.0**-24)


@pytest.mark.parametrize(
    ("window", "hop", "n_fft", "size"), [(400, 160, 512, 1234), (50, 30, 64, 211)]
)
def test_log_mel_is_its_definition_and_padding_never_enters_it(window, hop, n_fft, size):
    settings = {"window": window, "hop": hop, "n_fft": n_fft, "n_mels": 10}
    audio, lengths = noise(3, size + 200), np.array([size, size // 2, hop - 1])
    out, frames = jax.jit(functools.partial(nemo.log_mel, **settings))(audio, lengths)
    assert out.dtype == jnp.float32
    assert out.shape == (3, nemo.frame_count(size + 200, window, hop), 10)
    assert frames.tolist() == [size // hop, size // 2 // hop, 0]
    for row, wave, n, t in zip(out, audio, lengths, frames.tolist(), strict=True):
        assert not np.any(row[t:])
        if t:
            # Float32 rounding of the loudest bands' power, 1e-6, where a band is a tenth of them.
            np.testing.assert_allclose(row[:t], direct(wave[:n], **settings), atol=1e-4)


def test_normalisation_divides_by_the_unbiased_deviation():
    x = jnp.asarray(np.random.default_rng(0).normal(-8, 3, (3, 7, 4)), jnp.float32)
    padded = np.array(x)
    padded[1, 3:] = np.nan
    out = np.asarray(normalise(padded, np.array([7, 3, 0])))
    for row, values, n in zip(out[:2], np.asarray(x), (7, 3), strict=False):
        frames = values[:n].astype(np.float64)
        expected = (frames - frames.mean(0)) / (frames.std(0, ddof=1) + 1e-5)
        np.testing.assert_allclose(row[:n], expected, rtol=1e-4, atol=1e-5)  # float32 sums
        assert not np.any(row[n:])
    assert not np.any(out[2])


def test_stored_statistics_look_at_no_other_frame():
    x, stats = jnp.ones((1, 4, 2)), (jnp.array([0.5, 2.0]), jnp.array([0.25, 4.0]))
    out = normalise(x, jnp.array([3]), stats)
    np.testing.assert_allclose(out[0, :3], [[2.0, -0.25]] * 3, rtol=1e-3)  # eps is 1e-5 / 0.25^2
    assert not np.any(out[0, 3])


def test_single_frames_and_constant_bands_are_finite():
    for lengths in ([5, 1], [0, 0]):
        assert np.all(np.isfinite(normalise(jnp.ones((2, 5, 3)), jnp.array(lengths))))


def test_a_transform_shorter_than_the_window_is_refused():
    with pytest.raises(ValueError, match="n_fft=256"):
        jax.eval_shape(lambda: nemo.log_mel(noise(1, 800), np.array([800]), n_fft=256))
