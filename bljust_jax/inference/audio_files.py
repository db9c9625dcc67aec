"""Read audio files of any rate and container known to libsndfile, decoded ahead by threads."""

import logging
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import soundfile
from jaxtyping import Float, Int16

from bljust_jax.common import threads
from bljust_jax.common.errors import UserError
from bljust_jax.data.sources import DURATION_SLACK, to_int16

BLOCK = 1 << 18  # frames decoded at a time
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
    is shorter than its header claims is read to its end, with a warning. Raises UserError naming
    the file if it cannot be read.
    """
    try:
        with open(path, "rb"):  # raises the system's error if this is not a file
            pass
        with soundfile.SoundFile(os.fsencode(path)) as file:
            blocks = list(_blocks(file, sample_rate))
            missing = (file.frames - file.tell()) / file.samplerate
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a name of headerless audio
        reason = getattr(error, "error_string", str(error)).removeprefix("Error : ").rstrip(".")
        cure = "convert it to WAV, FLAC, Ogg or MP3"
        raise UserError(f"cannot decode {path}: {reason}; {cure}") from error
    if missing > DURATION_SLACK:
        logging.warning("%s ends %.1f s before the duration in its header", path, missing)
    return np.concatenate([np.zeros(0, np.int16), *blocks])


def _blocks(file: soundfile.SoundFile, sample_rate: int) -> Iterator[Int16[np.ndarray, "_"]]:
    """Blocks of the file as mono int16 at `sample_rate`."""
    import soxr

    if file.subtype == "PCM_16" and file.channels == 1 and file.samplerate == sample_rate:
        yield file.read(dtype="int16")
        return
    resample = None
    if file.samplerate != sample_rate:
        resample = soxr.ResampleStream(file.samplerate, sample_rate, 1, dtype="float32")
    ended = False
    while not ended:
        audio: Float[np.ndarray, "_"] = file.read(BLOCK, "float32", always_2d=True).mean(axis=1)
        ended = not len(audio)
        if not np.isfinite(audio).all():
            raise soundfile.SoundFileError("it has samples that are not finite")
        yield to_int16((resample.resample_chunk(audio, ended) if resample else audio) * 32768)


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
