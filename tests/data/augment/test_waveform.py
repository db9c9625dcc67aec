"""Waveform augmentation: speed, noise, joining, reproducible draws."""

import numpy as np
import pytest

from bljust_jax.data.augment import waveform

RATE = 16000
TONE = np.round(8000 * np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE)).astype(np.int16)


def peak_hz(audio):
    return np.argmax(np.abs(np.fft.rfft(audio))) * RATE / len(audio)


@pytest.mark.parametrize("factor", [0.88, 1.0, 1.12])
def test_speed_scales_length_and_pitch(factor):
    audio = waveform.speed(TONE, factor)
    assert audio.dtype == np.int16
    assert abs(len(audio) - RATE / factor) <= 1
    assert abs(peak_hz(audio) - 500 * factor) <= 2  # one bin is 1 Hz


@pytest.mark.parametrize("draw", range(4))
@pytest.mark.parametrize("snr_db", [0.0, 20.0])
def test_noise_has_the_requested_snr(snr_db, draw):
    noisy = waveform.noise(TONE, snr_db, waveform.generator(0, 1, draw))
    added = noisy.astype(float) - TONE
    ratio = 10 * np.log10(np.mean(TONE.astype(float) ** 2) / np.mean(added**2))
    assert abs(ratio - snr_db) < 0.05  # rounding, and a few saturated samples


def test_noise_is_sometimes_pink_and_sometimes_white():
    tilts = set()
    for draw in range(12):
        added = waveform.noise(TONE, 0.0, waveform.generator(0, 1, draw)).astype(float) - TONE
        power = np.abs(np.fft.rfft(added)) ** 2
        tilts.add(bool(np.mean(power[10:400]) > 4 * np.mean(power[4000:])))
    assert tilts == {True, False}


def test_loud_sums_saturate():
    loud = np.full(4000, 32767, np.int16)
    noisy = waveform.noise(loud, 0.0, waveform.generator(0, 0, 0))
    assert noisy.max() == 32767
    joined = waveform.join([loud, -loud], (0, 0), (6.0, 6.0), waveform.generator(0, 0, 0))
    assert (joined[0], joined[-1]) == (32767, -32768)


def test_silence_and_a_single_sample_are_augmented():
    rng = waveform.generator(0, 0, 0)
    assert not waveform.noise(np.zeros(100, np.int16), 10.0, rng).any()
    assert len(waveform.noise(np.ones(1, np.int16), 10.0, rng)) == 1


def test_join_puts_gaps_within_bounds_between_parts():
    parts = [np.full(10, n, np.int16) for n in (1, 2, 3)]
    for draw in range(20):
        audio = waveform.join(parts, (2, 5), (0.0, 0.0), waveform.generator(0, 0, draw))
        assert 34 <= len(audio) <= 40
        assert [int(np.sum(audio == n)) for n in (1, 2, 3)] == [10, 10, 10]
        assert audio[0] == 1
        assert audio[-1] == 3


def test_gains_are_decibels_of_amplitude_and_gaps_reach_both_ends():
    part = np.full(10, 1000, np.int16)
    assert set(waveform.join([part], (0, 0), (-20.0, -20.0), waveform.generator(0, 0, 0))) == {100}
    lengths = {
        len(waveform.join([part, part], (2, 4), (0.0, 0.0), waveform.generator(0, 0, draw)))
        for draw in range(60)  # a length is missed by chance once in 10^10
    }
    assert lengths == {22, 23, 24}


def test_draws_are_a_function_of_seed_key_and_draw():
    made = [
        waveform.generator(*key).random() for key in [(0, 1, 2), (0, 1, 2), (1, 1, 2), (0, 2, 1)]
    ]
    assert made[0] == made[1]
    assert len(set(made)) == 3
