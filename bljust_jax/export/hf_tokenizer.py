"""Convert a tokenizer to and from the files of a Hugging Face tokenizer.

Id 0 is the CTC blank, written as the pad token; the other ids are unchanged.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from bljust_jax.common import files
from bljust_jax.common.errors import UserError, one_line

SPACE = "\u2581"  # a space inside SentencePiece's pieces
MOST = 1 << 24  # an id above it is none
BLANKS = ("<pad>", "<blank>", "<ctc>")
DELIMITERS = ("|", SPACE, "\u2423", "\u2420")


class Vocabulary(NamedTuple):
    """Units by id in a folder: `tokens[blank]` is the CTC blank, `delimiter` is the sign for a
    space, `special` ids have no text."""

    tokens: tuple[str, ...]
    blank: int
    delimiter: str
    special: frozenset[int]

    @property
    def symbols(self) -> tuple[str, ...]:
        """The texts of all ids but the blank, in the order of a run; " " for the delimiter."""
        kept = (n for n in range(len(self.tokens)) if n != self.blank)
        texts = ("" if n in self.special else self.tokens[n] for n in kept)
        return tuple(" " if text == self.delimiter else text for text in texts)

    def decode(self, ids: Sequence[int] | Int[np.ndarray, "u"]) -> str:
        """The text of ids in the order of a run (0 = blank, dropped), stripped."""
        symbols = self.symbols
        text = "".join(symbols[i - 1] for i in ids if i)
        return text.replace(self.delimiter, " ").strip()


def write(tokenizer: Any, folder: pathlib.Path, *, words: bool) -> None:
    """Write the files of a tokenizer.

    words: characters as `Wav2Vec2CTCTokenizer` (vocab.json), which gives word times; otherwise, and
    always for pieces, a tokenizer.json for any `PreTrainedTokenizerFast`.
    """
    if words and tokenizer.unit == "character":
        files = _ctc_tokenizer(tokenizer)
    else:
        files = _fast_tokenizer(tokenizer)
    for name, content in files.items():
        write_json(folder / name, content)


def write_json(path: pathlib.Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _ctc_tokenizer(tokenizer: Any) -> dict[str, Any]:
    blank, space = _free(BLANKS, tokenizer.symbols), _free(DELIMITERS, tokenizer.symbols)
    tokens = [blank, *(space if s == " " else s for s in tokenizer.symbols)]
    settings = {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "word_delimiter_token": space,
        "do_lower_case": False,
        **_specials(blank),
    }
    vocabulary = {token: n for n, token in enumerate(tokens)}
    return {"vocab.json": vocabulary, "tokenizer_config.json": settings}


def _fast_tokenizer(tokenizer: Any) -> dict[str, Any]:
    characters = tokenizer.unit == "character"
    blank = _free(BLANKS, tokenizer.symbols)
    space = _free((SPACE, *DELIMITERS), tokenizer.symbols) if characters else SPACE
    tokens = [blank, *(space if s == " " else s for s in tokenizer.symbols)]
    scores = [0.0] * len(tokens) if characters else [0.0, *_scores(tokenizer)]
    metaspace = {
        "type": "Metaspace",
        "replacement": space,
        "prepend_scheme": "never" if characters else "always",
        "split": False,
    }
    steps = [{"type": "NFC"}]
    steps += [{"type": "Lowercase"}] if "lower" in tokenizer.to_json()["normalise"] else []
    special = {"id": 0, "content": blank, "special": True, "normalized": False}
    special |= {"single_word": False, "lstrip": False, "rstrip": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": metaspace,
        "post_processor": None,
        "decoder": metaspace,
        "model": _model(tokens, scores),
    }
    settings = {"tokenizer_class": "ParakeetTokenizerFast", **_specials(blank)}
    return {"tokenizer.json": content, "tokenizer_config.json": settings}


def _specials(blank: str) -> dict[str, Any]:
    none = dict.fromkeys(("bos_token", "eos_token", "unk_token"))
    return {"pad_token": blank, "clean_up_tokenization_spaces": False, **none}


def _model(tokens: Sequence[str], scores: Sequence[float]) -> dict[str, Any]:
    """Unigram model; BPE if scores are minus the rank of a merge, as in SentencePiece's BPE."""
    if any(score != round(score) for score in scores) or not any(scores):
        vocabulary = [list(pair) for pair in zip(tokens, scores, strict=True)]
        return {"type": "Unigram", "unk_id": None, "vocab": vocabulary, "byte_fallback": False}
    rank = {token: -score for token, score in zip(tokens[1:], scores[1:], strict=True)}
    merges = []
    for token in sorted(rank, key=rank.__getitem__):
        halves = [(token[:n], token[n:]) for n in range(1, len(token))]
        known = [(a, b) for a, b in halves if a in rank and b in rank]
        merges += [list(pair) for pair in sorted(known, key=lambda p: (rank[p[0]], rank[p[1]]))]
    vocabulary = {token: n for n, token in enumerate(tokens)}
    return {"type": "BPE", "vocab": vocabulary, "merges": merges, "fuse_unk": False}


def _scores(tokenizer: Any) -> list[float]:
    """SentencePiece's score of each piece, in the order of `symbols`."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor()
    pieces.load_from_serialized_proto(tokenizer.model)
    return [pieces.get_score(pieces.piece_to_id(symbol)) for symbol in tokenizer.symbols]


def _free(candidates: Sequence[str], taken: Sequence[str]) -> str:
    """The first candidate that no unit contains."""
    for candidate in candidates:
        if not any(candidate in symbol for symbol in taken):
            return candidate
    raise UserError(f"the run's units use all of {' '.join(candidates)}: none is left")


# Reading


def read(folder: pathlib.Path, blank: int) -> Vocabulary | None:
    """The vocabulary of a model's folder; None without tokenizer.json or vocab.json, and for one of
    several languages."""
    if (folder / "tokenizer.json").is_file():
        content = read_json(folder / "tokenizer.json")
        known, added = content["model"]["vocab"], content.get("added_tokens") or []
        ids = {t: n for n, (t, _) in enumerate(known)} if isinstance(known, list) else dict(known)
        ids |= {entry["content"]: entry["id"] for entry in added}
        special = {entry["id"] for entry in added if entry.get("special")}
        decoder = content.get("decoder")
        return _vocabulary(folder / "tokenizer.json", ids, blank, _replacement(decoder), special)
    if not (folder / "vocab.json").is_file():
        return None
    ids, about = read_json(folder / "vocab.json"), {}
    if not isinstance(ids, dict):
        raise UserError(f"{folder / 'vocab.json'}: is no JSON object of tokens and their ids")
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        about |= read_json(folder / name) if (folder / name).is_file() else {}
    if any(isinstance(n, dict) for n in ids.values()):
        return None
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    _require_ids(folder / "vocab.json", ids, blank)
    special = {ids[t] for t in (_content(about.get(k, d)) for k, d in names.items()) if t in ids}
    delimiter = _content(about.get("word_delimiter_token", "|"))
    return _vocabulary(folder / "vocab.json", ids, blank, delimiter, special)


def read_json(path: pathlib.Path) -> Any:
    try:
        return files.read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {one_line(error)}") from error


def _require_ids(path: pathlib.Path, ids: dict[str, Any], blank: int) -> None:
    """UserError unless the ids of tokens are integers, distinct, and one of them is the blank's."""
    wrong = next((t for t, n in ids.items() if type(n) is not int or not 0 <= n < MOST), None)
    if wrong is not None:
        raise UserError(
            f"{path}: the id of {wrong!r} is {ids[wrong]!r}; write a number, 0 or above"
        )
    if blank not in ids.values():
        raise UserError(f"{path}: no token has the id {blank}, pad_token_id in config.json")


def _vocabulary(
    path: pathlib.Path, ids: dict[str, int], blank: int, delimiter: str, special: set[int]
) -> Vocabulary:
    _require_ids(path, ids, blank)
    tokens = [""] * (max(ids.values()) + 1)
    for token, n in ids.items():
        tokens[n] = token
    return Vocabulary(tuple(tokens), blank, delimiter, frozenset(special - {blank}))


def _content(token: Any) -> str:
    """Special tokens are stored as texts or as tables."""
    return token["content"] if isinstance(token, dict) else token or ""


def _replacement(decoder: Any) -> str:
    """The sign that a decoder replaces by a space."""
    for step in [decoder or {}, *(decoder or {}).get("decoders", [])]:
        if step.get("type") == "Metaspace":
            return step["replacement"]
    return SPACE
