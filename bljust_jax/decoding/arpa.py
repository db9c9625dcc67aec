"""Back-off n-gram language models: read, score and write ARPA files, in NumPy.

    p(w | h) = p(hw) if the model lists hw, else b(h) p(w | h without its first word)

(Katz, 1987; the format is Doug Paul's). Files hold log10; **everything here is in nats**. An n-gram
is found by (index of its context among the n-1-grams, id of its last word), one sorted int64 array
per order: 24 bytes per n-gram and a binary search.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import itertools
import logging
import math
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from bljust_jax.common.errors import UserError, one_line
from bljust_jax.common.files import expand_user

LN10 = math.log(10.0)
START, END, UNKNOWN = "<s>", "</s>", "<unk>"
BLANKS = " \t\r\n\v\f"
_BLANK = re.compile(f"[{BLANKS}]+")
MARKS = (START, END, UNKNOWN, "<UNK>")
BINARY = b"mmap lm "  # the beginning of KenLM's binary files
# log10 p of an unknown word in a model without <unk>, as in KenLM; lower values are clipped to it
MISSING = -100.0
SPACE_UNIT = "▁"  # U+2581: the space in models over characters, as in SentencePiece


def unit_word(unit: str) -> str:
    """A unit as an ARPA word: ARPA words contain no space, so " " is written "▁"."""
    return unit.replace(" ", SPACE_UNIT)


def open_lm(path: str | pathlib.Path) -> LanguageModel:
    """The model in a file, read by kenlm if installed and applicable, else by `Arpa`; logs which.
    Their scores agree to 1e-4.

    kenlm reads its own binary files, and plain ARPA of order 2 or more without a preamble. Raises
    UserError with the file and the reason.
    """
    path = pathlib.Path(expand_user(str(path)))
    if not path.is_file():
        raise UserError(f"{path}: no such language model; name an ARPA file, plain or .gz")
    with open(path, "rb") as file:
        head = file.read(4096)
    binary = head.startswith(BINARY)
    installed = importlib.util.find_spec("kenlm") is not None
    if binary and not installed:
        raise UserError(f"{path} is a binary file of KenLM: pip install kenlm, or name its ARPA")
    plain = head.startswith(b"\\data\\") and b"ngram 2=" in head
    lm = KenLM(path) if installed and (binary or plain) else Arpa.read(path)
    logging.info("language model %s: order %d, read by %s", path, lm.order, type(lm).__name__)
    return lm


class Arpa:
    """A back-off model in memory.

    A state is a hashable tuple: entry m is the index of the last m + 1 words among the (m+1)-grams,
    -1 if the model does not list them. Equivalent histories may share one.
    """

    def __init__(self, vocabulary: dict[str, int], tables: list[Table]):
        self.order = len(tables)
        self._ids, self._tables = vocabulary, tables
        self._unknown = next((vocabulary[w] for w in (UNKNOWN, "<UNK>") if w in vocabulary), -1)

    @classmethod
    def read(cls, path: str | pathlib.Path) -> Arpa:
        """Read an ARPA file (UTF-8, plain or .gz). Raises UserError with the line number."""
        return _Reader(pathlib.Path(path)).model()

    def __contains__(self, word: str) -> bool:
        """Whether the model lists the word."""
        return word in self._ids

    def words(self) -> list[str] | None:
        """The words of the model, without <s>, </s> and <unk>."""
        return [word for word in self._ids if word not in MARKS]

    def start(self) -> tuple[int, ...]:
        """The state after <s>."""
        return (self._ids[START], *[-1] * (self.order - 2))[: self.order - 1]

    def score(self, state: tuple[int, ...], word: str) -> tuple[float, tuple[int, ...]]:
        """(ln p(word | state), next state); an unlisted word counts as <unk>."""
        return self._score(state, self._ids.get(word, self._unknown))

    def end(self, state: tuple[int, ...]) -> float:
        """ln p(</s> | state)."""
        return self._score(state, self._ids[END])[0]

    def _score(self, state: tuple[int, ...], word: int) -> tuple[float, tuple[int, ...]]:
        """ln p of the longest listed n-gram plus the back-off weights of longer contexts."""
        if word < 0:
            passed = sum(t.backoff[i] for t, i in zip(self._tables, state, strict=False) if i >= 0)
            return MISSING * LN10 + float(passed), (-1,) * (self.order - 1)
        found = [word]
        logp = float(self._tables[0].logp[word])
        for length, context in enumerate(state):
            if context < 0:
                found.append(-1)
                continue
            table = self._tables[length + 1]
            at = table.find(context * len(self._ids) + word)
            found.append(at)
            if at >= 0:
                logp = float(table.logp[at])
            else:
                logp += float(self._tables[length].backoff[context])
        return logp, tuple(found[: self.order - 1])


class Table(NamedTuple):
    """All n-grams of one order: keys sorted int64 [N], of unigrams their ids; nats float64 [N]."""

    keys: np.ndarray
    logp: np.ndarray
    backoff: np.ndarray

    def find(self, key: int) -> int:
        """The index of an n-gram, -1 if it is not listed."""
        at = int(self.keys.searchsorted(key))
        return at if at < len(self.keys) and self.keys[at] == key else -1


class KenLM:
    """`kenlm.Model` with the methods of `Arpa`."""

    def __init__(self, path: pathlib.Path):
        import kenlm

        self._kenlm = kenlm
        quiet = kenlm.Config()
        quiet.show_progress = False
        quiet.arpa_complain = kenlm.ARPALoadComplain.NONE
        try:
            self._model = kenlm.Model(str(path), quiet)
        except OSError as error:
            raise UserError(f"{path}: not a language model: {one_line(error)}") from error
        self.order = self._model.order
        self._path = path
        with open(path, "rb") as file:
            self._binary = file.read(len(BINARY)) == BINARY

    def __contains__(self, word: str) -> bool:
        return word in self._model

    def words(self) -> list[str] | None:
        """The words of an ARPA file; None for a binary one, which does not list them."""
        if self._binary:
            return None
        return [word for word in _Reader(self._path).words() if word not in MARKS]

    def start(self) -> Any:
        """The state after <s>."""
        state = self._kenlm.State()
        self._model.BeginSentenceWrite(state)
        return state

    def score(self, state: Any, word: str) -> tuple[float, Any]:
        """(ln p(word | state), next state)."""
        after = self._kenlm.State()
        return self._model.BaseScore(state, word, after) * LN10, after

    def end(self, state: Any) -> float:
        """ln p(</s> | state)."""
        return self.score(state, END)[0]


LanguageModel = Arpa | KenLM


# Reading


class _Reader:
    """Parser of an ARPA file, in one pass."""

    def __init__(self, path: pathlib.Path):
        self._path, self._number = path, 0
        self._ids: dict[str, int] = {}
        self._tables: list[Table] = []

    def model(self) -> Arpa:
        with self._opened() as lines:
            model = self._model(lines)
            for _ in lines:  # a checksum follows the last line of a .gz
                pass
        return model

    def words(self) -> list[str]:
        """The words of the 1-grams."""
        with self._opened() as lines:
            self._begin(lines)
            (size, *_) = self._sizes(lines)
            return [self._entry(next(lines, ""), 1)[0][0] for _ in range(size)]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Iterator[str]]:
        """The lines of the file; an error in reading them is a UserError."""
        opener = gzip.open if self._path.suffix == ".gz" else open
        try:
            with opener(self._path, "rt", encoding="utf-8-sig", newline="\n") as file:
                yield self._lines(file)
        except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise self._wrong(f"cannot be read as UTF-8 text ({error})") from error

    def _lines(self, file: Iterable[str]) -> Iterator[str]:
        """Lines that are not empty, without blanks at their ends; counts all lines. Fields are
        separated by ASCII blanks alone: a word may hold other white space."""
        for line in file:
            self._number += 1
            if stripped := line.strip(BLANKS):
                yield stripped

    def _begin(self, lines: Iterator[str]) -> None:
        if not any(line == "\\data\\" for line in lines):
            raise self._wrong("there is no line \\data\\")

    def _wrong(self, reason: str) -> UserError:
        cure = "expected an ARPA language model"
        return UserError(f"{self._path}:{self._number}: {reason}; {cure}")

    def _model(self, lines: Iterator[str]) -> Arpa:
        self._begin(lines)
        for order, size in enumerate(self._sizes(lines), start=1):
            if order > 1:
                self._header(lines, f"\\{order}-grams:")
            self._tables.append(self._table(lines, order, size))
        self._header(lines, "\\end\\")
        return Arpa(self._ids, self._tables)

    def _sizes(self, lines: Iterator[str]) -> list[int]:
        """Number of n-grams of each order; also consumes the header of the unigrams."""
        sizes: list[int] = []
        for line in lines:
            if line == "\\1-grams:" and sizes:
                return sizes
            try:
                order, _, count = line.removeprefix("ngram ").partition("=")
                if int(order) != len(sizes) + 1:
                    raise ValueError
                sizes.append(int(count))
            except ValueError:
                raise self._wrong(f"{line!r} is not 'ngram {len(sizes) + 1}=COUNT'") from None
        raise self._wrong("the file ends early")

    def _header(self, lines: Iterator[str], wanted: str) -> None:
        found = next(lines, "the end of the file")
        if found != wanted:
            raise self._wrong(f"expected {wanted}, found {found!r}")

    def _table(self, lines: Iterator[str], order: int, size: int) -> Table:
        keys, logp, backoff = np.zeros(size, np.int64), np.zeros(size), np.zeros(size)
        for n in range(size):
            words, logp[n], backoff[n] = self._entry(next(lines, ""), order)
            keys[n] = self._key(words) if order > 1 else self._new_id(words[0])
        for word in (START, END):
            if word not in self._ids:
                raise self._wrong(f"the 1-grams lack {word}")
        by_key = np.argsort(keys, kind="stable")
        if (np.diff(keys[by_key]) == 0).any():
            raise self._wrong(f"a {order}-gram above is listed twice")
        return Table(keys[by_key], logp[by_key], backoff[by_key])

    def _new_id(self, word: str) -> int:
        if word in self._ids:
            raise self._wrong(f"{word!r} is listed twice")
        self._ids[word] = len(self._ids)
        return self._ids[word]

    def _key(self, words: list[str]) -> int:
        """Index of the context among the n-grams of the order below, and id of the last word."""
        try:
            context, *ids = (self._ids[word] for word in words)
        except KeyError as error:
            raise self._wrong(f"{error.args[0]!r} is not among the 1-grams") from None
        for table, word in zip(self._tables[1:], ids[:-1], strict=True):
            context = table.find(context * len(self._ids) + word)
            if context < 0:
                raise self._wrong(f"its context {' '.join(words[:-1])!r} is not listed")
        return context * len(self._ids) + ids[-1]

    def _entry(self, line: str, order: int) -> tuple[list[str], float, float]:
        """(words, ln p, ln back-off weight) of `log10 p  words  [log10 b]`."""
        fields = line.split() if line.isascii() else _BLANK.split(line)
        if len(fields) not in (order + 1, order + 2) or line.startswith("\\"):
            raise self._wrong(f"{line!r} is not a probability, {order} words and a back-off weight")
        try:
            logp = float(fields[0])
            backoff = float(fields[-1]) if len(fields) == order + 2 else 0.0
        except ValueError:
            raise self._wrong(f"{line!r} holds something that is not a number") from None
        if not logp <= 0 or math.isnan(backoff):
            raise self._wrong(f"log10 p = {fields[0]} is above 0 or not a number")
        return fields[1 : order + 1], max(logp, MISSING) * LN10, max(backoff, MISSING) * LN10


# Writing


def write(path: pathlib.Path, orders: list[dict[tuple[str, ...], tuple[float, float]]]) -> None:
    """Write `{words: (p, back-off weight)}` of each order, sorted, as ARPA (gzipped for *.gz).

    A probability of 0 (<s>) is written as -99, as is usual in ARPA.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    sizes = [f"ngram {n}={len(table)}" for n, table in enumerate(orders, start=1)]
    body = itertools.chain.from_iterable(
        ["", f"\\{n}-grams:", *_rows(table, n < len(orders))]
        for n, table in enumerate(orders, start=1)
    )
    with opener(path, "wt", encoding="utf-8", newline="\n") as file:
        for line in itertools.chain(["\\data\\", *sizes], body, ["", "\\end\\"]):
            file.write(line + "\n")


def _rows(table: dict[tuple[str, ...], tuple[float, float]], backed: bool) -> Iterator[str]:
    for words, (p, backoff) in sorted(table.items()):
        logp = f"{math.log10(p):.7g}" if p > 0 else "-99"
        tail = f"\t{math.log10(backoff):.7g}" if backed and backoff > 0 else ""
        yield f"{logp}\t{' '.join(words)}{tail}"
