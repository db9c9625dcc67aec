"""Text normalisation of transcripts and references: named steps in a given order.

Training texts and references pass the same steps, so hypotheses are scored in the spelling of the
labels. Every result is in NFC, with one space between words and none at the ends.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

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


NORMALISERS: dict[str, Normaliser] = {
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
    for name in names:
        if name not in NORMALISERS:
            near = nearest(name, sorted(NORMALISERS))
            raise UserError(f"config.data.text.normalise: there is no {name!r}{near}")
    steps = [NORMALISERS[name] for name in names]

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
