"""How a transcript is spelled before it is split into labels: named steps in a given order.

References and training texts pass through the same steps, so hypotheses are scored against what
the model was taught. Every result is in NFC, with one space between words and none at the ends.
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
    """Unicode punctuation and symbols (categories P and S) become a space.

    Apostrophes (' ’) and hyphens (- and its Unicode forms) between two letters or digits stay, as '
    and -: "don’t" gives "don't", "(well-known)" gives "well-known". Everything else parts words:
    "yes—no" gives "yes no", "U.S." gives "U S".
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
    """The Arabic alef with madda, with hamza above or below, and wasla (U+0622, 0623, 0625, 0671)
    become the bare alef, U+0627."""
    return text.translate(_ALEF)


def diacritics(text: str) -> str:
    """Drops Arabic harakat (U+064B to 0652, 0670) and tatweel (0640); accents of other scripts
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
    """NFC, the named steps of NORMALISERS in the given order, white space collapsed.

    NFC follows every step, and all is repeated until nothing changes (a dropped tatweel can leave a
    hamza on an alef), so the result is a fixed point. A lone surrogate, which no file can hold,
    becomes U+FFFD. Raises UserError for an unknown name.
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
