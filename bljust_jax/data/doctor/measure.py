"""Measure the audio of utterances: length, level, clipping, offset and channels, per utterance.

A file is decoded once, in blocks, whatever the number of utterances in it.
"""

import dataclasses
import io
import math
import zlib
from collections.abc import Sequence

import numpy as np
import soundfile

from bljust_jax.data.containers import Sound, blocks, open_whole
from bljust_jax.data.sources import Utterance, why

FRAME = 0.025  # seconds over which power is averaged
FLOOR = 1e-12  # power of digital silence, -120 dBFS
NEAR_PEAK = 0.99  # of the largest magnitude: samples above it are near the peak
HASHED = 1 << 14  # samples per block that the fingerprint covers


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """Figures of one utterance's audio; amplitudes are shares of full scale.

    error: the reason why it cannot be decoded, or ""; header: in what header and bytes of the file
    differ, or ""; seconds: decoded, of the utterance; file_seconds: of its file; level: mean power,
    dBFS; loud, quiet: 95th and 10th percentile of the power of frames, dBFS; peak: largest
    magnitude; near_peak: share of samples above `NEAR_PEAK` of it; mean: DC offset; not_finite:
    number of NaN and infinite samples; balance: power of the quietest channel over the loudest;
    mono: power of the mean of the channels over that of the loudest; fingerprint: equal for equal
    samples, "" for silence.
    """

    error: str = ""
    header: str = ""
    seconds: float = 0.0
    file_seconds: float = 0.0
    rate: int = 0
    channels: int = 0
    level: float = -120.0
    loud: float = -120.0
    quiet: float = -120.0
    peak: float = 0.0
    near_peak: float = 0.0
    mean: float = 0.0
    not_finite: int = 0
    balance: float = 1.0
    mono: float = 1.0
    fingerprint: str = ""


def measure_file(utterances: Sequence[Utterance]) -> list[Measured]:
    """The figures of utterances of one file, in their order."""
    first = utterances[0]
    try:
        source = io.BytesIO(first.fetch()) if first.fetch else first.path
        sound, length = open_whole(source)
        with sound:
            found = _segments(sound, utterances)
    except (soundfile.SoundFileError, OSError) as error:
        return [Measured(error=why(error, first.path))] * len(utterances)
    facts = {"header": length.problem, "rate": sound.samplerate, "channels": sound.channels}
    return [dataclasses.replace(m, **facts) for m in found]


def _segments(sound: Sound, utterances: Sequence[Utterance]) -> list[Measured]:
    rate, at = sound.samplerate, 0
    spans = [(round(u.offset * rate), round((u.offset + u.duration) * rate)) for u in utterances]
    sums = [_Sums(rate) for _ in utterances]
    dtype = "int16" if sound.subtype == "PCM_16" else "float32"  # a third faster
    for block in blocks(sound, dtype=dtype):
        end = at + len(block)
        for (start, stop), own in zip(spans, sums, strict=True):
            stop = stop if stop > start else end  # of unknown duration: to the end
            if start < end and stop > at:
                own.add(block[max(start - at, 0) : stop - at])
        at = end
    return [dataclasses.replace(own.figures(), file_seconds=at / rate) for own in sums]


class _Sums:
    """Sums over the blocks of one utterance."""

    def __init__(self, rate: int):
        self._rate, self._frame = rate, max(round(FRAME * rate), 1)
        self._samples = self._not_finite = self._hash = self._near = 0
        self._total = self._peak = 0.0
        self._powers = np.zeros(0)  # sums of squares of the channels
        self._power = 0.0  # of their mean
        self._frames: list[np.ndarray] = []

    def add(self, block: np.ndarray) -> None:
        """Add samples [S, channels], int16 or float32."""
        if block.dtype == np.int16:
            block = block.astype(np.float32) * np.float32(1 / 32768)
        mono = block[:, 0] if block.shape[1] == 1 else self._mean(block)
        total = float(mono.sum())
        if not math.isfinite(total):
            bad = ~np.isfinite(mono)
            self._not_finite += int(bad.sum())
            mono = np.where(bad, np.float32(0), mono)
            total = float(mono.sum())
        self._samples += len(mono)
        self._total += total
        self._hash = zlib.crc32(np.ascontiguousarray(mono[:HASHED]), self._hash)
        whole = len(mono) // self._frame * self._frame
        framed = mono[:whole].reshape(-1, self._frame)
        powers = np.einsum("ij,ij->i", framed, framed)
        rest = mono[whole:]
        self._power += float(powers.sum(dtype=np.float64)) + float(rest @ rest)
        self._frames.append(powers / self._frame if whole else np.array([rest @ rest / len(rest)]))
        self._add_peak(mono)

    def _mean(self, block: np.ndarray) -> np.ndarray:
        finite = np.nan_to_num(block, posinf=0.0, neginf=0.0)
        powers = np.einsum("ij,ij->j", finite, finite, dtype=np.float64)
        self._powers = powers if not len(self._powers) else self._powers + powers
        return block.mean(axis=1)

    def _add_peak(self, mono: np.ndarray) -> None:
        high, low = float(mono.max()), float(mono.min())
        peak = max(high, -low)
        if peak < NEAR_PEAK * self._peak or not peak:
            return
        near = np.count_nonzero(mono > NEAR_PEAK * peak) if high > NEAR_PEAK * peak else 0
        near += np.count_nonzero(mono < -NEAR_PEAK * peak) if -low > NEAR_PEAK * peak else 0
        self._near = near if self._peak < NEAR_PEAK * peak else self._near + near
        self._peak = max(peak, self._peak)

    def figures(self) -> Measured:
        if not self._samples:
            return Measured()
        n, frames = self._samples, np.concatenate(self._frames)
        quiet, loud = np.percentile(frames, [10, 95])
        most = self._powers.max() if len(self._powers) else 0.0
        fingerprint = f"{n}-{self._hash:08x}-{self._peak:.6g}-{self._power:.6g}"
        return Measured(
            seconds=n / self._rate,
            level=decibels(self._power / n),
            loud=decibels(float(loud)),
            quiet=decibels(float(quiet)),
            peak=self._peak,
            near_peak=self._near / n,
            mean=self._total / n,
            not_finite=self._not_finite,
            balance=float(self._powers.min() / most) if most else 1.0,
            mono=self._power / float(most) if most else 1.0,
            fingerprint=fingerprint if self._peak else "",
        )


def decibels(power: float) -> float:
    """Power relative to a full-scale square wave, dBFS, at least -120."""
    return 10 * math.log10(max(power, FLOOR))
