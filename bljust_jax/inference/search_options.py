"""Command-line options of beam search and n-gram models for evaluate and transcribe."""

import argparse
from collections.abc import Sequence

from bljust_jax.common.errors import UserError
from bljust_jax.decoding import arpa, ctc_beam

WIDTH = 16  # default beam of CTC prefix search
LEAST_KNOWN = 0.1  # share of tokens that a language model must list


def add_language_model_options(parser: argparse.ArgumentParser) -> None:
    """--lm, --lm_over, --alpha, --beta."""
    parser.add_argument("--lm", default="", metavar="ARPA", help="an n-gram model, plain or .gz")
    parser.add_argument(
        "--lm_over",
        choices=(ctc_beam.WORDS, ctc_beam.UNITS),
        default=ctc_beam.WORDS,
        help="tokens of the n-grams: words, or characters or pieces of the run (%(default)s)",
    )
    parser.add_argument("--alpha", type=float, default=0.5, help="weight of ln P_lm (%(default)s)")
    parser.add_argument("--beta", type=float, default=1.0, help="per word, or unit (%(default)s)")


def refuse_language_model(task: str, flag: str) -> UserError:
    """The error for a CTC search option given to a translation task."""
    return UserError(
        f"--{flag} is of recognition: {task or 'this task'} is a translation, whose decoder is its "
        "own language model; leave it out"
    )


def known_unit_count(lm: arpa.LanguageModel, symbols: Sequence[str]) -> int:
    """Number of a model's units that `lm` lists."""
    return sum(arpa.unit_word(symbol) in lm for symbol in symbols)


def check_marks_words(symbols: Sequence[str], owner: str) -> None:
    """Raises UserError if no unit begins a word, as a language model over words requires."""
    if not any(symbol.startswith((" ", arpa.SPACE_UNIT)) for symbol in symbols):
        raise UserError(f"{owner}'s units mark no words: give --lm with --lm_over units")
