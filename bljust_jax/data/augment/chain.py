"""The chain of augmentations of `config.data` after speed and joining, in physical order.

Room, other voices, noise, volume, telephone band, codec. Each draws from a generator of its own, a
function of (seed, item, draw number, name): no number depends on hosts, threads or restarts, nor on
which other augmentations are on.
"""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int16

from bljust_jax.common.errors import UserError
from bljust_jax.data.augment import channel, recordings, reverb, waveform
from bljust_jax.data.sources import Utterance, read_audio

VOICES = (3, 7)  # of babble, as in MUSAN's recipes (arXiv:1510.08484)

Step = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class Chain:
    """The augmentations that `config.data` turns on; reads the names of its recordings.

    Raises UserError for recordings that are not there.
    """

    def __init__(self, data: Any, seed: int):
        self._seed, self._data = seed, data
        self.steps: dict[str, tuple[float, Step]] = {}  # name: (share of the items, function)
        rate = data.sample_rate
        if data.reverb == reverb.SIMULATED:
            reverb.library()
            self._add("reverb", lambda x, rng: reverb.reverberate(x, reverb.simulated(rng, rate)))
        elif data.reverb:
            rooms = recordings.Recordings(data.reverb, rate, "config.data.reverb")
            self._add("reverb", lambda x, rng: reverb.reverberate(x, rooms.impulse(rng)))
        if data.babble:
            voices = recordings.Recordings(data.babble, rate, "config.data.babble")
            self._add("babble", lambda x, rng: self._babble(x, voices, rng))
        if data.noise:
            found = recordings.Recordings(data.noise, rate, "config.data.noise")
            self._add("noise", lambda x, rng: self._noise(x, found, rng))
        elif data.noise_snr:
            self._add("noise", self._made_noise)
        if data.volume:
            self._add("volume", lambda x, rng: channel.volume(x, rng.uniform(*data.volume)))
        self._add("telephone", lambda x, rng: channel.telephone(x, rate))
        self._add("codec", lambda x, rng: channel.codec(x, rate, str(rng.choice(channel.CODECS))))

    def _add(self, name: str, step: Step) -> None:
        share = float(self._data.get(f"{name}_share", 1.0))
        if share > 0:
            self.steps[name] = share, step

    def __call__(
        self, audio: Int16[np.ndarray, "s"], key: int, draw: int, rng: np.random.Generator
    ) -> Int16[np.ndarray, "s"]:
        """The augmented audio of an item, as long as it is.

        key, draw: as of `waveform.generator`. rng: the item's own generator, from which white and
        pink noise are drawn.
        """
        for name, own in self.drawn(key, draw).items():
            made = name == "noise" and not self._data.noise
            audio = self.steps[name][1](audio, rng if made else own)
        return audio

    def drawn(self, key: int, draw: int) -> dict[str, np.random.Generator]:
        """{step that an item is drawn for: its generator}, in order."""
        found = {}
        for name, (share, _) in self.steps.items():
            own = np.random.default_rng([self._seed, key, draw, zlib.crc32(name.encode())])
            if share >= 1 or own.random() < share:
                found[name] = own
        return found

    def _made_noise(self, audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return waveform.noise(audio, rng.uniform(*self._data.noise_snr), rng)

    def _noise(
        self, audio: np.ndarray, found: recordings.Recordings, rng: np.random.Generator
    ) -> np.ndarray:
        snr = rng.uniform(*self._data.noise_snr)
        return recordings.mix(audio, found.cut(len(audio), rng), snr)

    def _babble(
        self, audio: np.ndarray, voices: recordings.Recordings, rng: np.random.Generator
    ) -> np.ndarray:
        number = int(rng.integers(VOICES[0], VOICES[1] + 1))
        snr = rng.uniform(*self._data.babble_snr)
        return recordings.mix(audio, recordings.babble(voices, len(audio), number, rng), snr)


DRAWS = 16  # of which `preview` takes the one with the most steps


def preview(u: Utterance, data: Any, seed: int) -> tuple[np.ndarray, list[str]]:
    """(audio of an utterance, int16, as training would augment it; names of what is applied)."""
    key, made = zlib.crc32(u.id.encode()), Chain(data, seed)
    draw = max(range(DRAWS), key=lambda n: len(made.drawn(key, n)))
    rng = waveform.generator(seed, key, draw)
    factor = round(float(rng.uniform(*data.speed)), 2)
    audio = waveform.speed(read_audio(u, data.sample_rate), factor)
    names = [f"speed {factor:g}"] if factor != 1 else []
    return made(audio, key, draw, rng), [*names, *made.drawn(key, draw)]


def check(data: Any) -> None:
    """UserError for recordings without a range of SNR."""
    for name in ("noise", "babble"):
        if data[name] and not data[f"{name}_snr"]:
            field = f"config.data.{name}"
            raise UserError(f"{field}={data[name]} needs {field}_snr, such as 5,20")
