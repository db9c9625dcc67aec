"""Text normalisation of transcripts and references: named steps in a given order.

Training texts and references pass the same steps, so hypotheses are scored in the spelling of the
labels. Every result is in NFC, with one space between words and none at the ends.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from bljust_jax.common.errors import UserError, nearest

Normaliser = Callable[[str], str]

APOSTROPHES = "'\u2019"  # ' and ’
HYPHENS = "-\u2010\u2011"  # -, hyphen, non-breaking hyphen
_ALEF = dict.fromkeys([0x0622, 0x0623, 0x0625, 0x0671], "\u0627")
_DIACRITICS = dict.fromkeys([*range(0x064B, 0x0653), 0x0670, 0x0640])
_NOT_WORD = re.compile(r"[^\w\s]|_")
_SURROGATE = re.compile("[\ud800-\udfff]")


def punctuation(text: str) -> str:
    """Replace Unicode punctuation and symbols (categories P and S) by a space.

    Apostrophes (' ’) and hyphens (- and its Unicode forms) between two letters or digits stay, as '
    and -: "don’t" gives "don't", "(well-known)" gives "well-known". Everything else separates
    words: "yes—no" gives "yes no", "U.S." gives "U S".
    """
    return _NOT_WORD.sub(_spell_mark, text)


def _spell_mark(match: re.Match) -> str:
    mark, text, at = match[0], match.string, match.start()
    if unicodedata.category(mark)[0] not in "PS":  # a combining or a format character
        return mark
    neighbours = (text[at - 1 : at], text[at + 1 : at + 2])
    within = all(c and unicodedata.category(c)[0] in "LMN" for c in neighbours)
    if within and mark in APOSTROPHES:
        return "'"
    return "-" if within and mark in HYPHENS else " "


def alef(text: str) -> str:
    """Replace the Arabic alef with madda, with hamza above or below, and wasla (U+0622, 0623, 0625,
    0671) by the bare alef, U+0627."""
    return text.translate(_ALEF)


def diacritics(text: str) -> str:
    """Remove Arabic harakat (U+064B to 0652, 0670) and tatweel (0640); accents of other scripts
    stay."""
    return text.translate(_DIACRITICS)


def invisible(text: str) -> str:
    """Remove characters that cannot be seen: control and format characters (zero-width space, byte
    order mark, direction marks, soft hyphen), fillers and variation selectors.

    White space stays. So does a zero-width joiner or non-joiner between two letters of a script
    that shapes them by it, Arabic or Indic. The Arabic signs that enclose numbers are visible.
    """
    seen = text.replace("\n", "")
    if seen.isascii() and seen.isprintable():
        return text
    if all(map(is_visible, set(text))):
        return text
    return "".join(c for i, c in enumerate(text) if is_visible(c) or _joins(text, i))


def is_visible(character: str) -> bool:
    """Whether a character is white space or leaves a mark."""
    if unicodedata.category(character) in ("Cc", "Cf"):
        return character.isspace() or character in _ENCLOSING
    return character not in _FILLERS


def _joins(text: str, at: int) -> bool:
    """Whether a joiner stands between two letters that it shapes."""
    neighbours = text[max(at - 1, 0) : at], text[at + 1 : at + 2]
    return text[at] in "\u200c\u200d" and all("\u0600" <= c <= "\u18ff" for c in neighbours)


_ENCLOSING = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2")
_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0").union(
    map(chr, [*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)])
)


NORMALISERS: dict[str, Normaliser] = {
    "invisible": invisible,
    "lower": str.lower,
    "upper": str.upper,
    "punctuation": punctuation,
    "alef": alef,
    "diacritics": diacritics,
}


def make(names: Sequence[str]) -> Normaliser:
    """Function that applies NFC, the steps of NORMALISERS in the given order, and collapses space.

    NFC follows every step, and all steps repeat until nothing changes (a removed tatweel can leave
    a hamza on an alef), so the result is a fixed point. A lone surrogate becomes U+FFFD. Raises
    UserError for an unknown name.
    """
    steps = _steps(names)

    def normalise(text: str) -> str:
        text, before = _SURROGATE.sub("\ufffd", text), None
        while text != before:
            before = text
            text = unicodedata.normalize("NFC", text)
            for step in steps:
                text = unicodedata.normalize("NFC", step(text))
            text = " ".join(text.split())
        return text

    return normalise


def _steps(names: Sequence[str]) -> list[Normaliser]:
    for name in names:
        if name not in NORMALISERS:
            near = nearest(name, sorted(NORMALISERS))
            raise UserError(f"config.data.text.normalise: there is no {name!r}{near}")
    return [NORMALISERS[name] for name in names]


def make_for_lines(names: Sequence[str]) -> Callable[[Sequence[str]], list[str]]:
    """As `make`, for many texts at a time: they pass all steps as the lines of one text.

    No step looks across a newline, so that each line is what `make` gives. Texts that hold a
    newline are normalised one by one.
    """
    steps, normalise = _steps(names), make(names)

    def normalise_all(texts: Sequence[str]) -> list[str]:
        text, before = "\n".join(texts), None
        if text.count("\n") >= len(texts):
            return [normalise(text) for text in texts]
        if not text.isascii():
            text = _SURROGATE.sub("\ufffd", text)
        while text != before:
            before = text
            text = unicodedata.normalize("NFC", text)
            for step in steps:
                text = unicodedata.normalize("NFC", step(text))
            if _is_loose(text):
                text = "\n".join(" ".join(line.split()) for line in text.split("\n"))
        return text.split("\n")

    return normalise_all


def _is_loose(lines: str) -> bool:
    """Whether a line has spaces at an end, two in a row, or white space of another kind."""
    if lines[:1] == " " or lines[-1:] == " ":
        return True
    codes = np.frombuffer(lines.encode("utf-8"), np.uint8)  # several times faster than `in`
    space = codes == ord(" ")
    gap = space | (codes == ord("\n"))
    if np.any(space[1:] & gap[:-1]) or np.any(space[:-1] & gap[1:]):
        return True
    others = _ASCII_SPACES if lines.isascii() else _OTHER_SPACES
    return any(space in lines for space in others)


_OTHER_SPACES = [c for c in map(chr, range(0x10000)) if c.isspace() and c not in " \n"]
_ASCII_SPACES = [c for c in _OTHER_SPACES if c.isascii()]
