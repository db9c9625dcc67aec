"""Waveform augmentation: speed perturbation, added noise and concatenation of int16 audio."""

import functools
from collections.abc import Sequence

import numpy as np
import soxr
from jaxtyping import Float, Int16, Shaped

from bljust_jax.data.sources import to_int16

NOISE_SAMPLES = 1 << 19


def generator(seed: int, key: int, draw: int) -> np.random.Generator:
    """Random generator of one row: a function of the run's seed, the item and the draw number."""
    return np.random.default_rng([seed, key, draw])


def speed(audio: Int16[np.ndarray, "s"], factor: float) -> Int16[np.ndarray, "r"]:
    """Speed perturbation by resampling, which changes the pitch: R = about S / factor samples."""
    if factor == 1.0:
        return audio
    return to_int16(soxr.resample(audio.astype(np.float32), factor, 1.0, quality="MQ"))


def convolve(
    x: Shaped[np.ndarray, "s"], response: Shaped[np.ndarray, "r"], start: int
) -> Float[np.ndarray, "s"]:
    """Samples `start` to start + S - 1 of the linear convolution, by FFT in the precision of the
    arguments."""
    size = 1 << (len(x) + len(response) - 2).bit_length()
    spectrum = np.fft.rfft(x, size) * np.fft.rfft(response, size)
    return np.fft.irfft(spectrum, size)[start : start + len(x)]


def noise(
    audio: Int16[np.ndarray, "s"], snr_db: float, rng: np.random.Generator
) -> Int16[np.ndarray, "s"]:
    """Add white or pink noise (with equal probability) at an SNR of `snr_db` dB, relative to the
    mean power of the audio; saturates.

    The noise is cut, at a random place, from a fixed recording of half a minute.
    """
    signal = audio.astype(np.float32)
    kind, start = int(rng.integers(2)), int(rng.integers(NOISE_SAMPLES))
    indices = np.arange(start, start + len(audio))
    added = np.take(_noises()[kind], indices, mode="wrap")
    power = np.mean(np.square(signal)) / max(float(np.mean(np.square(added))), 1e-12)
    return to_int16(signal + added * np.float32(np.sqrt(power * 10 ** (-snr_db / 10))))


@functools.cache
def _noises() -> np.ndarray:
    """White and pink (1 / f power) noise [2, NOISE_SAMPLES], float32, periodic."""
    white = np.random.default_rng(0).standard_normal(NOISE_SAMPLES)
    bins = np.arange(NOISE_SAMPLES // 2 + 1)
    # Pink noise is flat below the 64th of about 260,000 bins, which is inaudible.
    pink = np.fft.irfft(np.fft.rfft(white) / np.sqrt(np.maximum(bins, 64)), NOISE_SAMPLES)
    return np.stack([white, pink / np.std(pink)]).astype(np.float32)


def join(
    parts: Sequence[Int16[np.ndarray, "_"]],
    gaps: tuple[int, int],
    gains_db: tuple[float, float],
    rng: np.random.Generator,
) -> Int16[np.ndarray, "s"]:
    """Concatenate parts, each at a gain drawn from `gains_db` (dB) and, from the second on, after a
    silence drawn from `gaps` (samples, both ends included)."""
    pieces = []
    for n, part in enumerate(parts):
        if n:
            pieces.append(np.zeros(rng.integers(gaps[0], gaps[1] + 1), np.int16))
        gain = np.float32(10 ** (rng.uniform(*gains_db) / 20))
        pieces.append(to_int16(part.astype(np.float32) * gain))
    return np.concatenate(pieces)
