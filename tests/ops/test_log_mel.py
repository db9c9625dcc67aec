"""Log-mel features: framing, filters and spectrum against float64 by definition, and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bljust_jax.ops import log_mel as ft


def noise(*shape, scale=3000, seed=0):
    return np.clip(np.random.default_rng(seed).normal(0, scale, shape), -32768, 32767).astype(
        np.int16
    )


def direct_log_mel(samples, window, hop, n_fft, filters):
    """The definition in float64: a DFT by its sum, frame by frame."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / (window - 1))
    wave = np.exp(-2j * np.pi * np.outer(np.arange(window), np.arange(n_fft // 2 + 1)) / n_fft)
    starts = range(0, len(samples) - window + 1, hop)
    frames = np.array([samples[s : s + window] / 32768.0 * hann for s in starts])
    return np.log(np.abs(frames @ wave) ** 2 @ filters.astype(np.float64) + 2.0**-24)


@given(samples=st.integers(0, 3000), window=st.integers(1, 500), hop=st.integers(1, 300))
@settings(deadline=None, max_examples=30)
def test_frame_count_is_the_number_of_windows_that_fit(samples, window, hop):
    expected = len(range(0, samples - window + 1, hop))
    assert ft.frame_count(samples, window, hop) == expected
    assert ft.frame_count(np.array([samples]), window, hop).tolist() == [expected]
    assert ft.frame_count(jnp.array([samples]), window, hop).tolist() == [expected]


@pytest.mark.parametrize(
    ("window", "hop", "n_fft", "size"), [(400, 160, 512, 1234), (50, 30, 64, 211)]
)
def test_log_mel_matches_its_definition(window, hop, n_fft, size):
    audio = noise(2, size)
    settings = {"window": window, "hop": hop, "n_fft": n_fft, "n_mels": 10}
    out, lengths = ft.log_mel(audio, np.array([size, size]), **settings)
    filters = ft.mel_filters(16000, n_fft, 10)
    expected = [direct_log_mel(row, window, hop, n_fft, filters) for row in audio]
    assert out.dtype == jnp.float32
    assert lengths.tolist() == [len(expected[0])] * 2
    # float32 rounding of the power is 1e-6 relative, so 1e-5 in its logarithm is generous.
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_a_tone_lands_in_the_filter_of_its_frequency():
    tone = (10000 * np.sin(2 * np.pi * 1000 * np.arange(4000) / 16000)).astype(np.int16)[None]
    out, _ = ft.log_mel(tone, np.array([4000]))
    peak = int(np.argmax(np.mean(out[0], axis=0)))
    hertz = np.arange(257) * 16000 / 512
    filters = ft.mel_filters(16000, 512, 80)
    centre = np.sum(hertz * filters[:, peak]) / np.sum(filters[:, peak])
    assert abs(centre - 1000) < 40  # within one filter's spacing


def test_mel_filters_are_triangles_of_unit_area_with_known_corners():
    filters = ft.mel_filters(16000, 4096, 80).astype(np.float64)
    # Sampled every 3.9 Hz, the narrowest triangle (75 Hz wide) has its area to about 1 %.
    np.testing.assert_allclose(filters.sum(0) * 16000 / 4096, 1.0, rtol=2e-2)
    peaks = filters.argmax(0) * 16000 / 4096
    assert np.all(np.diff(peaks) > 0)
    # 8 kHz is 15 + 27 log(8) / log(6.4) = 45.245 mel, a corner every 45.245 / 81 mel, linear below.
    np.testing.assert_allclose(peaks[:20], (np.arange(20) + 1) * 45.2453 / 81 * 1000 / 15, atol=2)
    for column in filters.T:
        assert np.all(np.diff(np.flatnonzero(column)) == 1)


def test_padding_changes_no_bit_and_padded_frames_are_zero():
    audio, lengths = noise(3, 1600), np.array([1600, 1000, 399])
    longer = np.concatenate([audio, noise(3, 320, seed=1)], axis=1)
    longer[1, 1000:], longer[2, 399:] = 12345, -999
    short, frames = ft.log_mel(audio, lengths)
    out, same = ft.log_mel(longer, lengths)
    assert frames.tolist() == same.tolist() == [8, 4, 0]
    for row, n in enumerate(frames):
        # Different shapes are different programs; one row's sums may round differently.
        np.testing.assert_allclose(out[row, :n], short[row, :n], atol=1e-5)
        assert not np.any(out[row, n:])


def test_audio_shorter_than_a_window_has_no_frames():
    out, lengths = ft.log_mel(noise(1, 100), np.array([100]), n_mels=8)
    assert out.shape == (1, 0, 8)
    assert lengths.tolist() == [0]


def test_digital_silence_is_the_logarithm_of_the_floor():
    out, _ = ft.log_mel(np.zeros((1, 800), np.int16), np.array([800]))
    np.testing.assert_allclose(out, np.log(2.0**-24), rtol=1e-6)


def test_a_transform_shorter_than_the_window_is_refused():
    with pytest.raises(ValueError, match="n_fft=256"):
        ft.log_mel(noise(1, 800), np.array([800]), n_fft=256)


@pytest.fixture
def ragged():
    x = jnp.asarray(np.random.default_rng(0).normal(-8, 3, (3, 7, 4)), jnp.float32)
    lengths = jnp.array([7, 3, 0])
    return jnp.where(ft.valid_frames(7, lengths)[..., None], x, jnp.nan), lengths


def test_utterance_normalisation_gives_mean_0_and_variance_1(ragged):
    x, lengths = ragged
    out = ft.normalise(x, lengths)
    for row, n in enumerate(lengths.tolist()):
        assert not np.any(out[row, n:])
        if n:
            np.testing.assert_allclose(out[row, :n].mean(0), 0, atol=1e-5)
            np.testing.assert_allclose(out[row, :n].var(0), 1, atol=1e-4)
    assert np.all(np.isfinite(out))


def test_constant_bands_have_finite_gradients():
    grad = jax.grad(lambda x: jnp.sum(ft.normalise(x, jnp.array([5, 0])) ** 2))
    assert np.all(np.isfinite(grad(jnp.ones((2, 5, 3)))))


def test_moments_add_up_to_the_statistics_that_normalise_all_frames(ragged):
    x, lengths = ragged
    parts = [ft.moments(x[i : i + 1], lengths[i : i + 1]) for i in range(3)]
    total, squares, count = (sum(np.asarray(p[i], np.float64) for p in parts) for i in range(3))
    mean, std = ft.mean_and_std(total, squares, float(count))
    frames = np.concatenate([x[0], x[1, :3]]).astype(np.float64)
    assert count == 10
    np.testing.assert_allclose(mean, frames.mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, frames.std(0), rtol=1e-4)
    out = ft.normalise(x, lengths, (jnp.asarray(mean), jnp.asarray(std)))
    expected = (np.asarray(x[1, :3]) - mean) / np.sqrt(std**2 + 1e-5)
    np.testing.assert_allclose(out[1, :3], expected, atol=1e-5)
    assert not np.any(out[1, 3:])
