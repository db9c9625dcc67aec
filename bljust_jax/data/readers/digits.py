"""Reader of spoken digits with translations: `digits:ROOT/SET/SPLIT`, SET digits_ar or digits_en.

ROOT/SET/SPLIT.jsonl is a manifest of isolated words; those that are one of the ten digits are read,
each with the digit's word in the other language as its translation. `digits:ROOT/SET/SPLIT/strings`
are connected strings of 3 to 7 of them, concatenated on demand; `.../strings-3-5` of 3 to 5.
"""

import dataclasses
import functools
import logging
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from bljust_jax.common.errors import UserError
from bljust_jax.data.readers import manifest
from bljust_jax.data.sources import Utterance, encode_audio, inside, read_audio, require

WORDS = {
    "ar": ["صفر", "واحد", "اثنان", "ثلاثة", "أربعة", "خمسة", "ستة", "سبعة", "ثمانية", "تسعة"],
    "en": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
}
OTHER = {"ar": "en", "en": "ar"}
LENGTHS = (3, 7)  # digits per string
STRINGS = re.compile(r"strings(?:-(\d+)-(\d+))?")  # the last part of a URI
PASSES = 2  # strings per digit
PAUSE = (0.02, 0.15)  # seconds between the digits of a string
RATE = 16000  # Hz, of strings


def read(rest: str, root: str = "") -> list[Utterance]:
    """The digits of a split, in the manifest's order, or strings of them, by speaker.

    A string has 3 to 7 digits of one speaker, or as its name says, and each digit is in PASSES of
    them; strings and pauses are a function of the ids, not of their order. text and translation:
    the digits' words, joined by spaces; id: SPEAKER-PASS.NUMBER-NUMERALS, for instance
    fsdd_george-1.042-30714; line: that of the first digit. Speakers of fewer digits have no
    strings, with a warning. Raises UserError for a name that is not SET/SPLIT, a missing manifest,
    a malformed line, or a manifest or recording outside `root` (by default the manifest's folder).
    """
    path = pathlib.Path(root, rest).absolute()
    strings = STRINGS.fullmatch(path.name)
    path = path.parent if strings else path
    name, _, lang = path.parent.name.partition("_")
    if name != "digits" or lang not in WORDS:
        usage = "name ROOT/SET/SPLIT or ROOT/SET/SPLIT/strings, for instance ROOT/digits_ar/train"
        sets = ", ".join(f"digits_{known}" for known in WORDS)
        raise UserError(f"digits:{rest}: {usage}; sets are {sets}")
    path = path.with_name(f"{path.name}.jsonl")
    inside(path, root, f"digits:{rest}")
    require(path, f"digits:{rest}", "name the one to read", "manifest")
    words = dict(zip(WORDS[lang], WORDS[OTHER[lang]], strict=True))
    digits = [
        dataclasses.replace(u, lang=lang, translation=words[u.text])
        for u in manifest.read(str(path), root)
        if u.text in words
    ]
    return list(_strings(digits, path, _lengths(strings, rest))) if strings else digits


def _lengths(strings: re.Match, rest: str) -> tuple[int, int]:
    """(least, most) digits per string. UserError unless most >= 2 least - 1: any number of digits,
    from the least on, is then a sum of lengths of that range."""
    low, high = map(int, strings.groups()) if strings[1] else LENGTHS
    if not (low >= 1 and high >= 2 * low - 1):
        raise UserError(f"digits:{rest}: name strings-LEAST-MOST with MOST of 2 LEAST - 1 or more")
    return low, high


def _strings(
    digits: Sequence[Utterance], path: pathlib.Path, lengths: tuple[int, int]
) -> Iterator[Utterance]:
    speakers: dict[str, list[Utterance]] = {}
    for u in sorted(digits, key=lambda u: u.id):
        speakers.setdefault(u.speaker, []).append(u)
    few = [speaker for speaker, spoken in speakers.items() if len(spoken) < lengths[0]]
    if few:
        logging.warning(
            "%s: no strings of %d of %d speakers, who have fewer than %d digits, one is %s",
            *(path, len(few), len(speakers), lengths[0], min(few)),
        )
    for speaker in sorted(speakers.keys() - few):
        spoken = speakers[speaker]
        for turn in range(1, PASSES + 1):
            rng = np.random.default_rng(zlib.crc32(f"{speaker}/{turn}".encode()))
            for number, members in enumerate(_cut(spoken, rng, lengths), start=1):
                yield _string(members, f"{speaker}-{turn}.{number:03d}", path, rng)


def _cut(
    spoken: Sequence[Utterance], rng: np.random.Generator, lengths: tuple[int, int] = LENGTHS
) -> Iterator[list[Utterance]]:
    """Cut a permutation into pieces of `lengths` (least, most), drawn so that the rest is empty or
    at least the least."""
    low, high = lengths
    order = [spoken[i] for i in rng.permutation(len(spoken))]
    while order:
        fitting = [n for n in range(low, high + 1) if len(order) - n == 0 or len(order) - n >= low]
        n = int(rng.choice(fitting))
        yield order[:n]
        order = order[n:]


def _string(
    digits: Sequence[Utterance], name: str, path: pathlib.Path, rng: np.random.Generator
) -> Utterance:
    """The utterance of several digits with pauses between them."""
    low, high = (round(seconds * RATE) for seconds in PAUSE)
    lengths = np.array([round(u.duration * RATE) for u in digits])
    pauses = rng.integers(low, high + 1, len(digits) - 1)
    starts = np.concatenate([[0], np.cumsum(lengths[:-1] + pauses)]).tolist()
    samples = starts[-1] + int(lengths[-1])
    first = digits[0]
    numerals = "".join(str(WORDS[first.lang].index(u.text)) for u in digits)
    return dataclasses.replace(
        first,
        id=f"{name}-{numerals}",
        path=f"{path}#{name}-{numerals}",
        offset=0.0,
        duration=samples / RATE,
        text=" ".join(u.text for u in digits),
        translation=" ".join(u.translation for u in digits),
        fetch=functools.partial(_concatenate, digits, starts, samples),
        fault=next((u.fault for u in digits if u.fault), ""),
    )


def _concatenate(digits: Sequence[Utterance], starts: Sequence[int], samples: int) -> bytes:
    """A WAV file of S `samples` at RATE: each digit at its start, silence between them."""
    audio = np.zeros(samples, np.int16)
    for u, start in zip(digits, starts, strict=True):
        digit = read_audio(u, RATE)
        audio[start : start + len(digit)] = digit
    return encode_audio(audio, RATE, "WAV")
