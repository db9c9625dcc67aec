"""Text units: characters, with the CTC blank at 0 and symbols from 1."""

import collections
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int, Int32

from bljust_jax.errors import UserError


class CharTokenizer:
    """Characters of NFC text. Id 0 is the blank and padding; `symbols[n]` has id n + 1."""

    def __init__(self, symbols: Sequence[str], lower: bool = True):
        self.symbols = tuple(symbols)
        self.lower = lower
        self._ids = {symbol: i for i, symbol in enumerate(self.symbols, start=1)}
        if len(self._ids) != len(self.symbols) or any(len(s) != 1 for s in self.symbols):
            raise ValueError("symbols must be distinct single characters")

    @classmethod
    def from_texts(
        cls, texts: Iterable[str], lower: bool = True, *, joined: bool = False
    ) -> "CharTokenizer":
        """The characters of the normalised texts, sorted; `joined` adds the space between texts."""
        bare = cls((), lower)
        symbols = set().union(*(bare.normalise(text) for text in texts))
        return cls(sorted(symbols | {" "} if joined else symbols), lower)

    @property
    def vocab_size(self) -> int:
        """Symbols and the blank: the size of a CTC head."""
        return len(self.symbols) + 1

    def normalise(self, text: str) -> str:
        """NFC, lower case where `lower`, every run of white space one space, none at the ends."""
        text = unicodedata.normalize("NFC", text)
        if self.lower:
            text = unicodedata.normalize("NFC", text.lower())
        return " ".join(text.split())

    def encode(self, text: str) -> Int32[np.ndarray, "u"]:
        """Ids [U] of the normalised text. Raises UserError naming a character that has no id."""
        normal = self.normalise(text)
        try:
            return np.array([self._ids[character] for character in normal], np.int32)
        except KeyError as error:
            raise UserError(
                f"the character {error.args[0]!r} of {normal!r} has no id in the tokenizer"
            ) from error

    def decode(self, ids: Sequence[int] | Int[np.ndarray, "u"]) -> str:
        """The text of ids; blanks and padding (0) are dropped. Raises ValueError out of range."""
        ids = [int(i) for i in ids]
        if any(not 0 <= i < self.vocab_size for i in ids):
            raise ValueError(f"ids must be in 0..{self.vocab_size - 1}")
        return "".join(self.symbols[i - 1] for i in ids if i)

    def covers(self, text: str) -> bool:
        """Whether every character of the normalised text has an id."""
        return all(character in self._ids for character in self.normalise(text))

    def uncovered(self, texts: Iterable[str]) -> dict[str, int]:
        """Characters without an id and how often each occurs, the most frequent first."""
        counts = collections.Counter(
            character
            for text in texts
            for character in self.normalise(text)
            if character not in self._ids
        )
        return dict(counts.most_common())

    def to_json(self) -> dict:
        """What `from_json` needs, as JSON types."""
        return {"kind": "characters", "lower": self.lower, "symbols": list(self.symbols)}

    @classmethod
    def from_json(cls, saved: dict) -> "CharTokenizer":
        """The tokenizer that `to_json` described."""
        return cls(saved["symbols"], saved["lower"])
