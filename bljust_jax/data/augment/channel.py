"""Transmission channels: volume, telephone band, and codecs of telephony."""

import functools
import io

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Int16

from bljust_jax.data.augment import waveform
from bljust_jax.data.containers import Sound, blocks
from bljust_jax.data.sources import to_int16

BAND = (300.0, 3400.0)  # Hz, of a telephone (ITU-T G.712)
TRANSITION = 80.0  # Hz, width of the band's edges
CODEC_RATE = 8000
CODECS = ("ULAW", "GSM610")  # G.711 mu-law; GSM full rate, 06.10


def volume(audio: Int16[np.ndarray, "s"], gain_db: float) -> Int16[np.ndarray, "s"]:
    """The audio at a gain in dB; saturates."""
    return to_int16(audio.astype(np.float32) * np.float32(10 ** (gain_db / 20)))


def telephone(audio: Int16[np.ndarray, "s"], sample_rate: int) -> Int16[np.ndarray, "s"]:
    """Band-pass of 300 to 3400 Hz, without delay; edges are `TRANSITION` wide."""
    taps = _band_pass(sample_rate)
    return to_int16(waveform.convolve(audio, taps, len(taps) // 2))


@functools.cache
def _band_pass(rate: int) -> Float[np.ndarray, "n"]:
    """Windowed-sinc band-pass (Hamming), an odd number of taps."""
    half = round(3.3 * rate / TRANSITION / 2)
    n = np.arange(-half, half + 1)
    low, high = (2 * min(edge, rate / 2) / rate for edge in BAND)
    return (high * np.sinc(high * n) - low * np.sinc(low * n)) * np.hamming(len(n))


def codec(audio: Int16[np.ndarray, "s"], sample_rate: int, name: str) -> Int16[np.ndarray, "s"]:
    """Encode and decode at 8 kHz by a codec of `CODECS`; same length."""
    narrow = soxr.resample(audio.astype(np.float32) / 32768, sample_rate, CODEC_RATE)
    file = io.BytesIO()
    soundfile.write(file, narrow, CODEC_RATE, format="WAV", subtype=name)
    file.seek(0)
    with Sound(file) as sound:
        decoded = np.concatenate([block[:, 0] for block in blocks(sound)])
    wide = soxr.resample(decoded, CODEC_RATE, sample_rate)[: len(audio)]
    return to_int16(32768 * np.pad(wide, (0, len(audio) - len(wide))))
