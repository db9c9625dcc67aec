"""Scripts of letters, those without spaces between words, and how such texts are measured."""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
SPACED = 0.1  # spaces per letter from which on a text is taken as divided into words
ALPHABETS = ("LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC")
_JAPANESE = ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC")
_FORMS = ("FULLWIDTH", "HALFWIDTH", "MODIFIER", "MATHEMATICAL")  # before the script in a name
MIXED = 0.05  # share of letters of the rarer kind from which on texts mix both


@functools.cache
def script(character: str) -> str:
    """The script of a letter by its Unicode name, such as LATIN; "" for other characters and for
    forms of letters. Chinese characters and kana, which Japanese mixes, are one."""
    if not character.isalpha():
        return ""
    name = unicodedata.name(character, "").split(" ")[0]
    return "CHINESE AND KANA" if name in _JAPANESE else "" if name in _FORMS else name


def alphabet(character: str) -> str:
    """The alphabet of a letter that has look-alikes in others, "" for other characters."""
    found = script(character)
    return found if found in ALPHABETS else ""


@functools.cache
def is_unspaced(character: str) -> bool:
    """Whether a letter is of a script of `UNSPACED`."""
    name = unicodedata.name(character, "")
    return name.startswith(UNSPACED) and unicodedata.category(character)[0] in "LM"


def measure_of(texts: Iterable[str]) -> str:
    """The error rate that suits texts: "cer" where letters of unspaced scripts stand without
    spaces, "mer" where they and letters of other scripts are each `MIXED` of all, else "wer"."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.strip())
    letters = sum(n for c, n in counts.items() if c.isalpha())
    unspaced = sum(n for c, n in counts.items() if is_unspaced(c))
    if unspaced <= MIXED * letters:
        return "wer"
    if unspaced < (1 - MIXED) * letters:
        return "mer"
    return "wer" if counts[" "] >= SPACED * letters else "cer"


def mixed_tokens(text: str) -> str:
    """The text with spaces around each letter of an unspaced script: the tokens of the mixed error
    rate (MER), characters of such scripts and words of the others."""
    spread = "".join(f" {c} " if is_unspaced(c) else c for c in text)
    return re.sub(r"\s+", " ", spread).strip()
