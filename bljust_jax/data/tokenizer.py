"""Tokenizers: texts to label ids and back, by characters or SentencePiece pieces.

Id 0 is the CTC blank and padding; `symbols[n]` has id n + 1. There is no id for unknown characters:
training skips utterances with a character that has no label.
"""

import abc
import collections
import hashlib
import io
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Int64

from bljust_jax.common import files
from bljust_jax.common.errors import UserError, nearest
from bljust_jax.data import normalise as spelling
from bljust_jax.data.strings import Builder, Strings, character_counts

UNITS = ("characters", "unigram", "bpe")
SPACE = "\u2581"  # the space inside pieces; in a text it counts as a space
RESERVED = frozenset("\0\u2585")  # reserved by SentencePiece: in no piece
LONGEST = 1 << 20  # bytes; SentencePiece skips longer texts
SHOWN = 30  # characters without an id that `coverage` lists


class Tokenizer(abc.ABC):
    """Texts to labels and back: decode(encode(text)) == normalise(text) for covered texts.

    symbols: the units, id = index + 1; steps: of text normalisation, names of
    `normalise.NORMALISERS`; unit: "character" or "piece", for messages; sha256: checksum of the
    SentencePiece model, "" without one.
    """

    symbols: tuple[str, ...]
    steps: tuple[str, ...]
    unit: str
    sha256: str

    @property
    def vocab_size(self) -> int:
        """Symbols and the blank: the size of a CTC head."""
        return len(self.symbols) + 1

    @abc.abstractmethod
    def normalise(self, text: str) -> str:
        """The text in the spelling of training and scoring, a fixed point (`data/normalise.py`)."""

    def normalise_all(self, texts: Iterable[str | None]) -> Strings:
        """`normalise` of each text, "" for None."""
        return normalised(texts, lambda chunk: [self.normalise(text) for text in chunk])

    def count_labels(self, texts: Iterable[str]) -> Int64[np.ndarray, "2 n"]:
        """Number of labels, and of labels equal to the one before, of normalised texts."""
        encoded = map(self.encode, texts)
        counts = [(len(ids), int(np.sum(ids[1:] == ids[:-1]))) for ids in encoded]
        return np.array(counts, np.int64).reshape(-1, 2).T

    @abc.abstractmethod
    def encode(self, text: str) -> Int32[np.ndarray, "u"]:
        """Ids [U] of the normalised text. Raises UserError naming the characters without an id."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int] | Int[np.ndarray, "u"]) -> str:
        """The text of ids; blanks and padding (0) are dropped. Raises ValueError out of range."""

    def covers(self, text: str) -> bool:
        """Whether every character of the normalised text has an id."""
        return not self.uncovered([text])

    @abc.abstractmethod
    def uncovered(self, texts: Iterable[str]) -> dict[str, int]:
        """Characters without an id and how often each occurs, the most frequent first."""

    @abc.abstractmethod
    def to_json(self) -> dict:
        """The content of `tokenizer.json`, which identifies the tokenizer."""

    def save(self, folder: pathlib.Path) -> None:
        """Write the files that `load_tokenizer` reads into an existing folder."""
        text = json.dumps(self.to_json(), ensure_ascii=False, indent=1)
        files.write_text(folder / "tokenizer.json", text + "\n")


class CharTokenizer(Tokenizer):
    """A `Tokenizer` of single characters."""

    unit = "character"
    sha256 = ""

    def __init__(self, symbols: Sequence[str], steps: Sequence[str] = ("lower",)):
        self.symbols = tuple(symbols)
        self.steps = tuple(steps)
        self._normalise = spelling.make(self.steps)
        self._ids = {symbol: i for i, symbol in enumerate(self.symbols, start=1)}
        if len(self._ids) != len(self.symbols) or any(len(s) != 1 for s in self.symbols):
            raise ValueError("symbols must be distinct single characters")

    def normalise(self, text: str) -> str:
        return self._normalise(text)

    def encode(self, text: str) -> Int32[np.ndarray, "u"]:
        normal = self.normalise(text)
        if not self._ids.keys() >= set(normal):
            raise _no_id_error(normal, self.uncovered([text]))
        return np.array([self._ids[character] for character in normal], np.int32)

    def decode(self, ids: Sequence[int] | Int[np.ndarray, "u"]) -> str:
        return "".join(self.symbols[i - 1] for i in _labels(ids, self.vocab_size))

    def normalise_all(self, texts: Iterable[str | None]) -> Strings:
        return normalised(texts, spelling.make_for_lines(self.steps))

    def count_labels(self, texts: Iterable[str]) -> Int64[np.ndarray, "2 n"]:
        counts = [np.zeros((2, 0), np.int64)]
        for chunk in Strings.of(texts).chunks():
            lengths = np.fromiter(map(len, chunk), np.int64, len(chunk))
            text = "".join(chunk)
            if not self._ids.keys() >= set(text):
                return super().count_labels(texts)  # names the text
            points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
            counts.append(np.stack([lengths, _repeats(points, lengths)]))
        return np.concatenate(counts, axis=1)

    def uncovered(self, texts: Iterable[str]) -> dict[str, int]:
        normal = self.normalise_all(texts)
        if self._ids.keys() >= character_counts(normal).keys():
            return {}
        counts = collections.Counter(c for text in normal for c in text)
        return {c: n for c, n in counts.most_common() if c not in self._ids}

    def to_json(self) -> dict:
        return {"kind": "characters", "normalise": list(self.steps), "symbols": list(self.symbols)}


class PieceTokenizer(Tokenizer):
    """A `Tokenizer` of SentencePiece pieces (Kudo and Richardson 2018), from a model's bytes.

    Unknown, control and unused pieces have no label. The model's own normalisation follows the
    named steps. Raises ValueError if the bytes are no model.
    """

    unit = "piece"

    def __init__(self, model: bytes, steps: Sequence[str] = ("lower",)):
        self.model = model
        self.steps = tuple(steps)
        self.sha256 = hashlib.sha256(model).hexdigest()
        self._spell = spelling.make(self.steps)
        self._pieces = p = _processor(model)
        self._numbers = [  # the labels' ids in the model
            n for n in range(len(p)) if not (p.is_unknown(n) or p.is_control(n) or p.is_unused(n))
        ]
        self.symbols = tuple(p.id_to_piece(n) for n in self._numbers)
        self._ids = np.zeros(len(p), np.int32)
        self._ids[self._numbers] = np.arange(1, self.vocab_size)

    def normalise(self, text: str) -> str:
        text = self._spell(text)
        own = self._pieces.normalize(text).replace(SPACE, " ").strip()
        return text if own == text else self._spell(own)

    def encode(self, text: str) -> Int32[np.ndarray, "u"]:
        normal = self.normalise(text)
        ids = self._ids[np.array(self._pieces.encode(normal), np.int32)]
        if not ids.all():
            raise _no_id_error(normal, self.uncovered([text]))
        return ids

    def decode(self, ids: Sequence[int] | Int[np.ndarray, "u"]) -> str:
        labels = _labels(ids, self.vocab_size)
        return self._pieces.decode([self._numbers[i - 1] for i in labels])

    def count_labels(self, texts: Iterable[str]) -> Int64[np.ndarray, "2 n"]:
        counts = [np.zeros((2, 0), np.int64)]
        for chunk in Strings.of(texts).chunks():
            numbers = self._pieces.encode(chunk)
            lengths = np.fromiter(map(len, numbers), np.int64, len(chunk))
            ids = self._ids[np.fromiter(itertools.chain.from_iterable(numbers), np.int32)]
            if not ids.all():
                return super().count_labels(texts)  # names the text
            counts.append(np.stack([lengths, _repeats(ids, lengths)]))
        return np.concatenate(counts, axis=1)

    def uncovered(self, texts: Iterable[str]) -> dict[str, int]:
        counts: collections.Counter[str] = collections.Counter()
        for text in map(self.normalise, texts):
            numbers = np.array(self._pieces.encode(text), np.int32)
            if not self._ids[numbers].all():  # an unknown piece is a run of characters
                pieces = self._pieces.encode(text, out_type=str)
                for piece, number in zip(pieces, numbers, strict=True):
                    counts.update("" if self._ids[number] else piece)
        return dict(counts.most_common())

    def to_json(self) -> dict:
        return {"kind": "pieces", "normalise": list(self.steps), "sha256": self.sha256}

    def save(self, folder: pathlib.Path) -> None:
        scores = map(self._pieces.get_score, self._numbers)
        rows = zip(self.symbols, range(1, self.vocab_size), scores, strict=True)
        table = "".join(f"{piece}\t{i}\t{score:g}\n" for piece, i, score in rows)
        with files.replacing(folder / "tokenizer.model") as file:
            file.write(self.model)
        files.write_text(folder / "tokenizer.vocab", table)
        super().save(folder)


def normalised(
    texts: Iterable[str | None], normalise_all: Callable[[list[str]], list[str]]
) -> Strings:
    """Texts that pass a function of several texts, "" for None."""
    made = Builder()
    for chunk in Strings.of(texts).chunks():
        made.extend(normalise_all([text or "" for text in chunk]))
    return made.finish()


def _repeats(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Number of ids equal to the one before in each run of `lengths` [N]: [N]."""
    ends = np.cumsum(lengths)
    same = np.zeros(len(ids) + 1, np.int64)
    same[1:-1] = ids[1:] == ids[:-1]
    same[ends - lengths] = 0  # the one before is of another run
    before = np.append(0, np.cumsum(same))
    return before[ends] - before[ends - lengths]


def make_tokenizer(
    settings: Any, texts: Iterable[str], *, joined: bool = False, where: str = "config.data"
) -> Tokenizer:
    """The tokenizer of the config group `<where>.text`, read from `settings.model` or learned.

    `joined`: texts will also be joined by spaces, so the space needs an id (pieces always have
    one). Characters are sorted. Pieces are learned without randomness: exactly
    `settings.vocab_size`, every character of the texts among them. A given model has its own size.
    Raises UserError for unknown units, a size that the texts do not allow (naming the bounds), and
    a model that cannot be read or has another checksum than `settings.sha256` ("": any).
    """
    if settings.units not in UNITS:
        near = nearest(settings.units, sorted(UNITS))
        raise UserError(f"{where}.text.units: there is no {settings.units!r}{near}")
    steps = tuple(settings.normalise)
    if settings.units == "characters":
        if settings.model:
            raise UserError(f"{where}.text.model is of pieces; set units to unigram or bpe")
        tokenizer: Tokenizer = learn_characters(texts, steps, joined=joined)
    elif settings.model:
        tokenizer = _read_model(pathlib.Path(files.expand_user(settings.model)), steps)
    else:
        tokenizer = learn_pieces(texts, steps, settings.units, settings.vocab_size, where=where)
    if settings.sha256 and settings.sha256 != tokenizer.sha256:
        source = settings.model or f"what {where}.train gives as {settings.units}"
        raise UserError(
            f"{where}.text.sha256 is {settings.sha256}, of another model than {source}"
            f" ({tokenizer.sha256 or 'no model'}); restore the model or texts, or clear the field"
        )
    return tokenizer


def learn_characters(
    texts: Iterable[str], steps: Sequence[str], *, joined: bool = False
) -> CharTokenizer:
    """Tokenizer of the characters of the normalised texts; `joined` adds the space."""
    symbols = set(" ") if joined else set()
    found = character_counts(normalised(texts, spelling.make_for_lines(steps)))
    return CharTokenizer(sorted(symbols.union(found)), steps)


def learn_pieces(
    texts: Iterable[str], steps: Sequence[str], kind: str, size: int, *, where: str = "config.data"
) -> PieceTokenizer:
    """Tokenizer of `size` pieces, by SentencePiece's model type `kind` ("unigram" or "bpe").

    Texts with a character of RESERVED are skipped, as no pieces can write them. Raises UserError if
    the texts have more characters than `size` or give fewer pieces.
    """
    spell = spelling.make(steps)
    normal = [spell(text.replace(SPACE, " ")) for text in texts]
    normal = [text for text in normal if text and not RESERVED & set(text)]
    least = len({SPACE, *"".join(normal)} - {" "})
    if not normal:
        raise UserError(f"{where}.train has no text to learn pieces from; check its texts")
    given = f"{where}.text.vocab_size is {size}"
    if size < least:
        bound = f"the texts need at least {least} pieces, one for each character"
        raise UserError(f"{given}; {bound}: set that or more, or units characters")
    made = PieceTokenizer(_train_sentencepiece(normal, kind, size), steps)
    if len(made.symbols) != size:
        bound = f"the texts give at most {len(made.symbols)} {kind} pieces"
        raise UserError(f"{given}; {bound}: set that, or units characters")
    return made


def _train_sentencepiece(texts: Sequence[str], kind: str, size: int) -> bytes:
    """A SentencePiece model of at most `size` pieces and the <unk> that it requires."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=written,
        model_type=kind,
        vocab_size=size + 1,
        hard_vocab_limit=False,  # fewer pieces are no error here
        character_coverage=1.0,
        normalization_rule_name="identity",
        bos_id=-1,
        eos_id=-1,
        max_sentence_length=LONGEST,
        shuffle_input_sentence=False,
        num_threads=1,
        minloglevel=3,
    )
    return written.getvalue()


def load_tokenizer(folder: pathlib.Path) -> Tokenizer:
    """The tokenizer that `save` wrote into a folder.

    Raises UserError if it is missing or damaged, or its model has another checksum.
    """
    path = folder / "tokenizer.json"
    try:
        saved = files.read_json(path)
        if saved["kind"] == "characters":
            return CharTokenizer(saved["symbols"], saved["normalise"])
        sha256, steps = saved["sha256"], saved["normalise"]
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; name the folder of a run") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged, or of another version: {error!r}; restore it or train again"
        ) from error
    made = _read_model(folder / "tokenizer.model", steps)
    if made.sha256 != sha256:
        raise UserError(
            f"{folder / 'tokenizer.model'} is not the model that was saved (sha256 {made.sha256},"
            f" {path.name} has {sha256}); restore it"
        )
    return made


def coverage(tokenizer: Tokenizer, references: Sequence[str]) -> list[str]:
    """Log lines on how labels cover the references; blank ones are ignored."""
    texts = [text for text in map(tokenizer.normalise, references) if text]
    if not texts:
        return []
    lines = []
    unknown = tokenizer.uncovered(texts)
    if unknown:
        shown = [f"{character!r} x {n}" for character, n in list(unknown.items())[:SHOWN]]
        rest = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        lines.append(f"characters without a label: {', '.join(shown)}{rest}")
    covered = [text for text in texts if tokenizer.covers(text)]
    share = f"{len(covered)} of {len(texts)} texts ({100 * len(covered) / len(texts):.1f} %)"
    lines.append(f"{share} have a label for every character")
    if covered:
        labels = sum(len(tokenizer.encode(text)) for text in covered)
        words = sum(len(text.split()) for text in covered)
        lines.append(f"{labels / words:.2f} {tokenizer.unit}s per word")
    return lines


def _read_model(path: pathlib.Path, steps: Sequence[str]) -> PieceTokenizer:
    try:
        return PieceTokenizer(path.read_bytes(), steps)
    except OSError as error:
        raise UserError(f"cannot read the SentencePiece model {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}; restore it") from error


def _processor(model: bytes) -> Any:
    import sentencepiece

    made = sentencepiece.SentencePieceProcessor()
    try:
        made.load_from_serialized_proto(model)
    except RuntimeError as error:
        raise ValueError("not a SentencePiece model") from error
    return made


def _labels(ids: Sequence[int] | Int[np.ndarray, "u"], vocab_size: int) -> list[int]:
    """The ids without blanks; ValueError for a number that is no id."""
    ids = [int(i) for i in ids]
    if any(not 0 <= i < vocab_size for i in ids):
        raise ValueError(f"ids must be in 0..{vocab_size - 1}")
    return [i for i in ids if i]


def _no_id_error(text: str, characters: Iterable[str]) -> UserError:
    listed = ", ".join(map(repr, characters))
    return UserError(f"the tokenizer has no id for {listed} of {text!r}; leave the text out")
