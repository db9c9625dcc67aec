"""Read audio files of any rate and container known to libsndfile, decoded ahead by threads."""

import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import soundfile
from jaxtyping import Float, Int16

from bljust_jax.common import threads
from bljust_jax.common.errors import UserError
from bljust_jax.data import containers
from bljust_jax.data.sources import to_int16, why

AHEAD = 4  # files decoded in advance, one thread per file


class Recording(NamedTuple):
    """A file and its samples int16 [S]."""

    path: str
    audio: np.ndarray


class Failure(NamedTuple):
    """A file that could not be read; `reason` is one line that names it."""

    path: str
    reason: str


def read_all(sources: Iterable[str | Recording], sample_rate: int) -> Iterator[Recording | Failure]:
    """Each file by `read`, in order; at most `AHEAD` decoded files wait in memory. A recording is
    passed on as it is."""

    def attempt(path: str | Recording) -> Recording | Failure:
        if isinstance(path, Recording):
            return path
        try:
            return Recording(path, read(path, sample_rate))
        except UserError as error:
            return Failure(path, str(error))

    return threads.in_order(attempt, sources, threads=AHEAD, ahead=AHEAD)


def read(path: str, sample_rate: int) -> Int16[np.ndarray, "s"]:
    """Mono int16 samples of a whole file at `sample_rate`.

    Same bits as `data.sources.read_audio`: channels are averaged, then resampled (soxr HQ), then
    rounded and saturated; in blocks, so that memory holds little more than the result. A file that
    is shorter or longer than its header declares is read to its end, with a warning, as is one of
    unlikely samples. Raises UserError naming the file if it cannot be read.
    """
    try:
        with open(path, "rb"):  # raises the system's error if this is not a file
            pass
        file, length = containers.open_whole(path)
        with file:
            rate = file.samplerate
            declared = 0 if file.frames >= containers.UNKNOWN else file.frames
            mono = containers.Mono(file)
            read = list(_resampled(mono, rate, sample_rate))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except soundfile.SoundFileError as error:
        cure = "convert it to WAV, FLAC, Ogg or MP3"
        raise UserError(f"cannot decode {path}: {why(error, path)}; {cure}") from error
    missing = max(length.seconds, declared / rate) - mono.frames / rate
    if missing > containers.SLACK:
        logging.warning("%s ends %.1f s before the duration in its header", path, missing)
    elif length.problem:
        logging.warning("%s %s", path, length.problem)
    if mono.doubt:
        logging.warning("%s %s", path, mono.doubt)
    return np.concatenate([np.zeros(0, np.int16), *read])


def _resampled(
    blocks: Iterable[Float[np.ndarray, "_"]], rate: int, sample_rate: int
) -> Iterator[Int16[np.ndarray, "_"]]:
    """Blocks of mono samples as int16 at `sample_rate`."""
    import soxr

    if rate == sample_rate:
        yield from (to_int16(block * 32768) for block in blocks)
        return
    stream = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")
    for block in blocks:
        yield to_int16(stream.resample_chunk(block, False) * 32768)
    yield to_int16(stream.resample_chunk(np.zeros(0, np.float32), True) * 32768)


def resample(
    samples: Float[np.ndarray, "s c"] | Int16[np.ndarray, "s c"], rate: int, sample_rate: int
) -> Int16[np.ndarray, "_"]:
    """Samples [S, channels] in memory as mono int16 at `sample_rate`, with the steps of `read`."""
    import soxr

    if samples.dtype == np.int16 and samples.shape[1] == 1 and rate == sample_rate:
        return samples[:, 0]
    scale = 32768 if samples.dtype == np.int16 else 1
    audio = (samples.astype(np.float32) / scale).mean(axis=1)
    if not np.isfinite(audio).all():
        raise UserError("the audio has samples that are not finite")
    if rate != sample_rate:
        audio = soxr.resample(audio, rate, sample_rate)
    return to_int16(audio * 32768)
