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


def open_language_model(
    args: argparse.Namespace, symbols: Sequence[str], words: Sequence[str] = ()
) -> tuple[arpa.LanguageModel, str]:
    """(model of --lm, line on the share of tokens that it lists) for a vocabulary of `symbols`.

    words: of reference texts; they are the tokens if the n-grams are over words. Raises UserError
    if the model lists under 10 % of the tokens; without references, if under 10 % of its own words
    can be spelt with the symbols; and if it is over words that no symbol begins.
    """
    lm, tokens, what = arpa.open_lm(args.lm), words, "words of the references"
    if args.lm_over == ctc_beam.UNITS:
        tokens, what = [arpa.unit_word(symbol) for symbol in symbols], "units"
    elif not any(symbol.startswith((" ", arpa.SPACE_UNIT)) for symbol in symbols):
        raise UserError("the units of the model mark no words: give --lm with --lm_over units")
    if args.lm_over == ctc_beam.WORDS and not words:
        return lm, _check_spelling(args.lm, lm, symbols)
    known = sum(token in lm for token in tokens)
    if known < LEAST_KNOWN * len(tokens):
        raise UserError(
            f"{args.lm} lists {known} of the {len(tokens)} {what}: the model must be over "
            f"{args.lm_over}, and spelt as the run's texts are (upper or lower case)"
        )
    share = known / max(len(tokens), 1)
    read_by = f"{args.lm}: order {lm.order}, read by {type(lm).__name__}"
    return lm, f"{read_by}; {share:.1%} of the {what} are in it"


def _check_spelling(path: str, lm: arpa.LanguageModel, symbols: Sequence[str]) -> str:
    """Line on the share of the model's words that symbols can spell; UserError for under 10 %."""
    read_by = f"{path}: order {lm.order}, read by {type(lm).__name__}"
    listed = lm.words()
    if listed is None:
        return f"{read_by}; its words are not listed, so their spelling is unchecked"
    letters = set("".join(symbols))
    spelt = sum(letters.issuperset(word) for word in listed)
    if spelt < LEAST_KNOWN * len(listed):
        raise UserError(
            f"{path}: {spelt} of its {len(listed)} words can be spelt with the units of the model:"
            " it must be over words, and spelt as the run's texts are (upper or lower case, script)"
        )
    return f"{read_by}; {spelt / max(len(listed), 1):.1%} of its words can be spelt"
