"""Synthetic speech corpora of spoken commands, made by eSpeak NG once and cached.

eSpeak NG comes with the wheel `espeakng-loader`. It is licensed under GPL-3.0-or-later, serves the
demonstration and the tests only, and is imported nowhere else. It runs in a process of its own, as
it is not thread safe and keeps state between utterances.
"""

import ctypes
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Int16

from bljust_jax.common.console import StatusLine
from bljust_jax.common.errors import UserError, nearest
from bljust_jax.common.files import expand_user
from bljust_jax.data.sources import to_int16, write_json_lines

FORMAT = 1  # increase it when the same settings give other audio
SPLITS = ("train", "dev", "test")

WORDS = {
    "ROOM": "kitchen bedroom garden office hallway",
    "DEVICE": "light heater radio fan lamp",
    "NUMBER": "two three four five six seven eight nine ten twenty",
    "GENRE": "jazz rock piano folk",
    "COLOUR": "red green blue yellow",
    "SIDE": "left right back",
}
COMMANDS = (
    "turn|switch on|off the ROOM DEVICE",
    "set the ROOM timer|alarm to NUMBER",
    "play|stop GENRE music in the ROOM",
    "open|close the COLOUR ROOM door|window|box",
    "move|push|pull the box NUMBER steps SIDE",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a corpus; a hash of them is part of the name of its folder.

    templates: sentences whose words may be alternatives (`on|off`) or a class of `WORDS`;
    utterances, variants: per split, in the order of `SPLITS` (a speaker is a voice with a variant,
    `en-us+f1`); held_out: shares of the sentences that only dev and only test contain; same: dev
    and test are train itself; rate: words per minute; pitch: 0 to 99; snr_db: dB; peak: largest
    sample over full scale; silence: seconds at either end.
    """

    templates: tuple[str, ...] = COMMANDS
    utterances: tuple[int, int, int] = (1500, 90, 180)
    held_out: tuple[float, float] = (0.10, 0.15)
    same: bool = False
    voices: tuple[str, ...] = ("en-us", "en", "en-gb-scotland")
    variants: tuple[str, str, str] = ("m1 m2 m3 m5 m7 f1 f3 f5", "m6 f2", "m4 f4")
    rate: tuple[int, int] = (130, 180)
    pitch: tuple[int, int] = (35, 65)
    snr_db: tuple[float, float] = (15.0, 35.0)
    peak: tuple[float, float] = (0.3, 0.8)
    silence: tuple[float, float] = (0.05, 0.10)
    sample_rate: int = 16_000
    seed: int = 0


CORPORA = {
    "commands": Settings(),
    "tiny": Settings(
        templates=("open|close|move COLOUR", "ROOM light|fan|radio"),
        utterances=(48, 8, 8),
        held_out=(0.15, 0.15),
    ),
    "overfit": Settings(utterances=(8, 8, 8), same=True),
}


@dataclasses.dataclass(frozen=True)
class Line:
    """One utterance to synthesise."""

    id: str
    text: str
    speaker: str
    rate: int
    pitch: int


def make_corpus(name: str = "commands", *, cache: str | os.PathLike | None = None) -> pathlib.Path:
    """Folder of a synthetic corpus, which is made if the cache lacks it.

    It holds `{train,dev,test}.jsonl` (see `readers/manifest.py`) and one FLAC file per utterance
    (mono, 16 kHz, 16 bit). Dev and test have sentences and voices that train lacks, except in
    `overfit`. The same settings give the same bytes. The folder is renamed when complete, so
    several processes may make it at once.

    name: `commands` (1,500 / 90 / 180 utterances of 5 to 7 words), `tiny` (48 / 8 / 8 of two words)
    or `overfit` (eight of the `commands`, the same in all splits); cache: parent folder, by default
    `$XDG_CACHE_HOME/bljust_jax/synthetic`, with `~/.cache` if unset, or a
    folder for temporary files if the home folder is unknown.

    Raises UserError for another name, and if eSpeak NG is not installed, cannot be loaded or fails.
    """
    if name not in CORPORA:
        raise UserError(f"synthetic:{name}: no such corpus{nearest(name, CORPORA)}")
    settings = CORPORA[name]
    parent = pathlib.Path(cache) if cache is not None else cache_folder()
    folder = parent / f"{name}-{fingerprint(settings)}"
    if folder.is_dir():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=parent) as scratch:
        made = pathlib.Path(scratch) / "corpus"
        made.mkdir()
        _make(settings, made, f"synthetic:{name}")
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process made it, with the same bytes
                raise
    return folder


def cache_folder() -> pathlib.Path:
    """Folder of all corpora: `bljust_jax/synthetic` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME")
    if not cache:
        try:
            cache = expand_user("~/.cache")
        except UserError:  # a user without a home, as in some containers
            cache = os.path.join(tempfile.gettempdir(), f"cache-{os.getuid()}")
    return pathlib.Path(cache) / "bljust_jax" / "synthetic"


def fingerprint(settings: Settings) -> str:
    """Hash of settings, words, format and eSpeak NG's version, 16 hexadecimal digits."""
    try:
        voice = importlib.metadata.version("espeakng-loader")
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            "synthetic speech needs the package espeakng-loader: `pip install espeakng-loader`, or"
            " name your own data with config.data.train and config.data.dev"
        ) from error
    text = json.dumps([FORMAT, voice, WORDS, dataclasses.asdict(settings)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sentences(template: str) -> list[str]:
    """All sentences of a template: the product of its words' alternatives."""
    choices = [WORDS[w].split() if w in WORDS else w.split("|") for w in template.split()]
    return [" ".join(words) for words in itertools.product(*choices)]


def script(settings: Settings, split: str) -> list[Line]:
    """Texts and speakers of a split.

    Templates alternate; the sentences of each, and the speakers, come in random order and repeat
    only when all have been used.
    """
    n = SPLITS.index(split)
    rng = np.random.default_rng([settings.seed, zlib.crc32(split.encode())])
    pairs = itertools.product(settings.voices, settings.variants[n].split())
    speakers = ["+".join(pair) for pair in pairs]
    own = [_split_sentences(settings, template)[n] for template in settings.templates]
    texts = [_shuffled_forever(sentences, rng) for sentences in own]
    speaker = _shuffled_forever(speakers, rng)
    lines = []
    for i in range(settings.utterances[n]):
        rate = int(rng.integers(settings.rate[0], settings.rate[1] + 1))
        pitch = int(rng.integers(settings.pitch[0], settings.pitch[1] + 1))
        text = next(texts[i % len(texts)])
        lines.append(Line(f"{split}-{i:05d}", text, next(speaker), rate, pitch))
    return lines


def _split_sentences(settings: Settings, template: str) -> tuple[list[str], list[str], list[str]]:
    """A template's sentences of train, of dev and of test."""
    everything = sentences(template)
    np.random.default_rng([settings.seed, zlib.crc32(template.encode())]).shuffle(everything)
    dev, test = (max(1, round(share * len(everything))) for share in settings.held_out)
    return everything[dev + test :], everything[:dev], everything[dev : dev + test]


def _shuffled_forever(values: list[str], rng: np.random.Generator) -> Iterator[str]:
    while True:
        yield from (values[i] for i in rng.permutation(len(values)))


def _make(settings: Settings, folder: pathlib.Path, title: str) -> None:
    splits = SPLITS[:1] if settings.same else SPLITS
    scripts = {split: script(settings, split) for split in splits}
    lines = [line for split in splits for line in scripts[split]]
    voices = _synthesise(lines, settings.sample_rate, folder)
    status, done = StatusLine(redraw=0.2), 0
    status.log(f"{title}: synthesising {len(lines)} utterances, once")
    for split in splits:
        (folder / split).mkdir()
        rows = []
        for line in scripts[split]:
            audio = record(next(voices), settings, zlib.crc32(line.id.encode()))
            path = f"{split}/{line.id}.flac"
            soundfile.write(folder / path, audio, settings.sample_rate, subtype="PCM_16")
            seconds = len(audio) / settings.sample_rate
            labels = {"text": line.text, "lang": "en", "speaker": line.speaker, "id": line.id}
            rows.append({"audio_filepath": path, "duration": seconds, **labels})
            done += 1
            status.update(f"{done}/{len(lines)} utterances")
        for target in SPLITS if settings.same else (split,):
            write_json_lines(folder / f"{target}.jsonl", rows)
    status.clear()
    next(voices, None)  # the process ends, and its exit code is checked


def record(
    speech: Float[np.ndarray, " n"], settings: Settings, key: int
) -> Int16[np.ndarray, " s"]:
    """Simulate a recording: random level, random silence at either end, added noise.

    Speech is first trimmed to the samples less than 40 dB below the largest. The noise has a random
    tilt between white and pink, and a random SNR relative to the mean power of the trimmed speech.
    speech: samples in [-1, 1] at `settings.sample_rate`; key: seeds the draws, with settings.seed.
    """
    rng = np.random.default_rng([settings.seed, key])
    loud = np.flatnonzero(np.abs(speech) > 0.01 * np.abs(speech).max())
    speech = speech[loud[0] : loud[-1] + 1].astype(np.float64)
    speech *= rng.uniform(*settings.peak) / np.abs(speech).max()
    power = np.mean(speech**2) * 10 ** (-rng.uniform(*settings.snr_db) / 10)
    margins = [round(rng.uniform(*settings.silence) * settings.sample_rate) for _ in range(2)]
    speech = np.pad(speech, margins)
    size = 1 << len(speech).bit_length()  # the transform is fast for powers of two
    spectrum = np.fft.rfft(rng.standard_normal(size))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1.0) ** -rng.uniform(0.0, 0.5)
    noise = np.fft.irfft(spectrum, size)[: len(speech)]
    noise *= np.sqrt(power / np.mean(noise**2))
    return to_int16((speech + noise) * 32767)


def _synthesise(lines: list[Line], rate: int, scratch: pathlib.Path) -> Iterator[np.ndarray]:
    """Run this module as a process; yields float32 audio [S] at `rate` Hz per line."""
    requests = scratch / "script.jsonl"
    write_json_lines(requests, map(dataclasses.asdict, lines))
    package = pathlib.Path(__file__).parents[2]
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-m", "bljust_jax.data.synthetic", str(requests)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    with process:
        while header := process.stdout.read(8):
            spoken_rate, size = np.frombuffer(header, np.int32)
            speech = np.frombuffer(process.stdout.read(2 * size), np.int16)
            yield soxr.resample(speech.astype(np.float32) / 32768, spoken_rate, rate)
        message = process.stderr.read().decode(errors="replace").strip().splitlines()
    requests.unlink()
    if process.returncode:
        reason = message[-1] if message else f"exit code {process.returncode}"
        raise UserError(f"the synthetic corpus cannot be made ({reason}); name your own data")


class Espeak:
    """eSpeak NG's C interface (`speak_lib.h`): text to int16 samples at `sample_rate`."""

    RETRIEVAL, DONT_EXIT, UTF8 = 2, 0x8000, 1  # RETRIEVAL: synchronous output to the callback
    RATE, PITCH = 1, 3

    def __init__(self):
        import espeakng_loader

        self.data = espeakng_loader.get_data_path()
        self.espeak = ctypes.CDLL(espeakng_loader.get_library_path())
        size, uint, pointer = ctypes.c_size_t, ctypes.c_uint, ctypes.c_void_p
        self.espeak.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, size, uint, ctypes.c_int, uint, uint, pointer, pointer)
        ]
        self.espeak.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        options = self.RETRIEVAL, 0, self.data.encode(), self.DONT_EXIT
        self.sample_rate = self.espeak.espeak_Initialize(*options)
        if self.sample_rate <= 0:
            raise UserError(f"eSpeak NG does not start with its data in {self.data}")
        samples, count = ctypes.POINTER(ctypes.c_short), ctypes.c_int
        signature = ctypes.CFUNCTYPE(ctypes.c_int, samples, count, pointer)
        self.chunks: list[bytes] = []
        self.callback = signature(self._receive)  # a reference: the library holds only its address
        self.espeak.espeak_SetSynthCallback(self.callback)

    def _receive(self, samples, count: int, events) -> int:
        if samples and count:
            self.chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def speak(self, text: str, speaker: str, rate: int, pitch: int, seed: int) -> bytes:
        """Bytes of int16 samples; UserError for an unknown voice or variant, and without output."""
        variant = speaker.partition("+")[2]
        if variant and not os.path.exists(os.path.join(self.data, "voices", "!v", variant)):
            raise UserError(f"eSpeak NG has no voice variant {variant}")
        self.espeak.espeak_ng_SetRandSeed(seed)  # of breath noise; the clock by default
        self.chunks.clear()
        library, encoded = self.espeak, text.encode()
        size = len(encoded) + 1
        for action, code in (
            (f"use the voice {speaker}", library.espeak_SetVoiceByName(speaker.encode())),
            (f"speak at rate {rate}", library.espeak_SetParameter(self.RATE, rate, 0)),
            (f"speak at pitch {pitch}", library.espeak_SetParameter(self.PITCH, pitch, 0)),
            (f"say {text!r}", library.espeak_Synth(encoded, size, 0, 1, 0, self.UTF8, None, None)),
        ):
            if code:
                raise UserError(f"eSpeak NG cannot {action}: error {code}")
        if not self.chunks:
            raise UserError(f"eSpeak NG makes no audio for {text!r}")
        return b"".join(self.chunks)


def _serve(requests: pathlib.Path, out: BinaryIO) -> None:
    """Write each line's audio: int32 sample rate, int32 number of samples, int16 samples."""
    espeak = Espeak()
    for request in requests.read_text(encoding="utf-8").splitlines():
        line = Line(**json.loads(request))
        seed = zlib.crc32(line.id.encode())
        speech = espeak.speak(line.text, line.speaker, line.rate, line.pitch, seed)
        out.write(np.int32([espeak.sample_rate, len(speech) // 2]).tobytes() + speech)


if __name__ == "__main__":
    try:
        _serve(pathlib.Path(sys.argv[1]), sys.stdout.buffer)
    except UserError as error:
        sys.exit(str(error))
