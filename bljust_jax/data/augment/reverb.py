"""Reverberation: convolution with a recorded impulse response, or with that of a simulated room."""

import functools

import numpy as np
from jaxtyping import Float, Int16

from bljust_jax.common.errors import UserError
from bljust_jax.data.augment import waveform
from bljust_jax.data.sources import to_int16

ROOMS = 256  # simulated rooms, each computed when it is first drawn
SIMULATED = "simulated"


def reverberate(
    audio: Int16[np.ndarray, "s"], response: Float[np.ndarray, "r"]
) -> Int16[np.ndarray, "s"]:
    """Convolve with an impulse response: same length, the direct sound, its largest peak, in place,
    and the mean power of the dry audio; scaled down where it would clip."""
    dry, direct = audio.astype(np.float32), int(np.argmax(np.abs(response)))
    wet = waveform.convolve(dry, response.astype(np.float32), direct)
    power = float(np.mean(np.square(wet)))
    if not power:
        return audio
    wet = wet * np.sqrt(float(np.mean(np.square(dry))) / power)
    return to_int16(wet * min(1.0, 32767 / max(float(np.abs(wet).max()), 1.0)))


def simulated(rng: np.random.Generator, sample_rate: int) -> Float[np.ndarray, "r"]:
    """The impulse response of one of `ROOMS` rooms, drawn uniformly."""
    return room(int(rng.integers(ROOMS)), sample_rate)


@functools.lru_cache(ROOMS)
def room(number: int, sample_rate: int) -> Float[np.ndarray, "r"]:
    """The impulse response of the room of this number, a box of 3 x 3 x 2.5 to 10 x 8 x 4 m with
    absorption 0.15 to 0.6, by the image method (Allen and Berkley 1979).

    Raises UserError without the package pyroomacoustics.
    """
    acoustics = library()
    rng = np.random.default_rng([number, 1979])
    size = rng.uniform([3.0, 3.0, 2.5], [10.0, 8.0, 4.0])
    walls = acoustics.Material(float(rng.uniform(0.15, 0.6)))
    box = acoustics.ShoeBox(size, fs=sample_rate, materials=walls, max_order=12)
    box.add_source(rng.uniform(0.5, size - 0.5))
    box.add_microphone(rng.uniform(0.5, size - 0.5))
    box.compute_rir()
    return np.asarray(box.rir[0][0], np.float32)


def library():
    """The module pyroomacoustics; UserError without it."""
    try:
        import pyroomacoustics
    except ImportError as error:
        raise UserError(
            f"config.data.reverb={SIMULATED} needs pyroomacoustics: pip install pyroomacoustics, or"
            " name a folder of impulse responses"
        ) from error
    return pyroomacoustics
