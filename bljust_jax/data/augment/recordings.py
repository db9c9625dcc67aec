"""Recordings to mix into speech or to convolve it with, from a folder or a URI of config.data."""

import collections
import dataclasses
import os
import pathlib
import threading

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from bljust_jax.common.errors import UserError
from bljust_jax.common.files import expand_user, visible
from bljust_jax.data.containers import blocks, open_sound
from bljust_jax.data.sources import (
    Utterance,
    open_source,
    read_audio,
    to_int16,
    why,
    with_durations,
)

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".sph", ".aiff", ".au")
KEPT = 512  # impulse responses kept decoded


class Recordings:
    """Audio files of a folder, its subfolders included, or of a URI; sorted, so that all hosts draw
    the same ones. `field` names the config field in messages.

    Raises UserError without a readable recording.
    """

    def __init__(self, where: str, sample_rate: int, field: str):
        self._rate, self._field = sample_rate, field
        folder = pathlib.Path(expand_user(where))
        found = _files(folder) if folder.is_dir() else open_source(where)
        self._found = [u for u in found if not u.fault and u.duration > 0]
        if not self._found:
            kinds = ", ".join(SUFFIXES)
            raise UserError(f"{field}={where}: no readable recording; it must hold {kinds}")
        self._impulses: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()

    def cut(self, samples: int, rng: np.random.Generator) -> Float[np.ndarray, "s"]:
        """A stretch of `samples` of a recording, both drawn uniformly; a shorter recording is
        repeated."""
        u = self._found[int(rng.integers(len(self._found)))]
        seconds = min(samples / self._rate, u.duration)
        start = u.offset + rng.uniform(0.0, u.duration - seconds)
        piece = read_audio(dataclasses.replace(u, offset=start, duration=seconds), self._rate)
        return np.take(piece.astype(np.float32), np.arange(samples), mode="wrap")

    def impulse(self, rng: np.random.Generator) -> Float[np.ndarray, "r"]:
        """The first channel of a recording drawn uniformly: an impulse response."""
        n = int(rng.integers(len(self._found)))
        with self._lock:
            if n not in self._impulses:
                self._impulses[n] = self._read_impulse(self._found[n])
                if len(self._impulses) > KEPT:
                    self._impulses.popitem(last=False)
            return self._impulses[n]

    def _read_impulse(self, u: Utterance) -> np.ndarray:
        try:
            with open_sound(u.path) as file:
                rate, found = file.samplerate, [block[:, 0] for block in blocks(file)]
        except (soundfile.SoundFileError, OSError) as error:
            reason = why(error, u.path)
            raise UserError(
                f"{self._field}: cannot decode {u.path}: {reason}; remove it"
            ) from error
        response = np.concatenate(found)
        if not np.isfinite(response).all() or not response.any():
            raise UserError(f"{self._field}: {u.path} is silent or not finite; remove it")
        return response if rate == self._rate else soxr.resample(response, rate, self._rate)


def _files(folder: pathlib.Path) -> list[Utterance]:
    paths = [
        path
        for where, _, names in os.walk(folder)
        for path in visible(pathlib.Path(where) / name for name in names)
        if path.suffix.lower() in SUFFIXES
    ]
    return with_durations(
        [
            Utterance(str(path), str(path.resolve()), 0.0, 0.0, None, "", "", str(path))
            for path in sorted(paths)
        ]
    )


def mix(audio: np.ndarray, added: Float[np.ndarray, "s"], snr_db: float) -> np.ndarray:
    """int16 [S]: `audio` with `added` scaled to an SNR of `snr_db`, relative to the mean power of
    both; the sum is scaled down where it would clip, so that the SNR holds."""
    signal, power = audio.astype(np.float32), float(np.mean(np.square(added)))
    if not power:
        return audio
    wanted = float(np.mean(np.square(signal))) * 10 ** (-snr_db / 10)
    total = signal + added * np.float32(np.sqrt(wanted / power))
    return to_int16(total * np.float32(min(1.0, 32767 / max(float(np.abs(total).max()), 1.0))))


def babble(
    recordings: Recordings, samples: int, voices: int, rng: np.random.Generator
) -> Float[np.ndarray, "s"]:
    """The sum of `voices` stretches of speech, each of mean power 1."""
    total = np.zeros(samples, np.float32)
    for _ in range(voices):
        voice = recordings.cut(samples, rng)
        total += voice / np.float32(np.sqrt(max(float(np.mean(np.square(voice))), 1e-12)))
    return total
