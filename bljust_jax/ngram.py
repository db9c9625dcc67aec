"""python -m bljust_jax.ngram --data URI [--order 3] --out X.arpa

Estimates an n-gram language model (interpolated modified Kneser-Ney) from the texts of a source, or
of a file with one sentence per line, and writes it as ARPA for `bljust evaluate --lm`. --model
RUN normalises texts as in that run; with --over units the tokens are its characters or pieces
instead of words. Exit 2: a mistake, in one line.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from bljust_jax.common import cli
from bljust_jax.common.console import log
from bljust_jax.common.errors import UserError
from bljust_jax.data import normalise, sources, tokenizer_files
from bljust_jax.decoding import arpa, kneser_ney


def parser() -> cli.Parser:
    p = cli.Parser(__doc__)
    p.option("--data", "", "as config.data.train", metavar="URI")
    p.option("--root", "", "as config.data.root")
    p.option("--text", pathlib.Path, "UTF-8, one sentence per line", metavar="FILE")
    p.option("--order", 3, "longest n-gram")
    p.option("--out", pathlib.Path, "X.arpa[.gz]", metavar="FILE", required=True)
    p.option("--normalise", "invisible,lower", "steps of config.data.text.normalise, by commas")
    p.model("normalise as in this run", required=False)
    p.option("--task", "", "of a run of several: asr/en", metavar="TASK")
    p.option("--over", "words", "its tokens", choices=("words", "units"))
    p.option("--json", False, "print the summary as a JSON object")
    return p


def read_texts(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """(file and line, text) of the texts of --data and --text, unchanged, without empty ones."""
    if not args.data and args.text is None:
        raise UserError("give --data URI or --text FILE to learn from; see --help")
    if args.data:
        found = sources.open_source(args.data, args.root)
        yield from ((u.line or u.id, u.text) for u in found if u.text)
    if args.text is not None:
        yield from sources.read_lines(args.text)


def sentences(args: argparse.Namespace) -> Iterator[list[str]]:
    """The tokens of each text; texts that the units of --model do not cover are skipped."""
    if args.over == "units" and args.model is None:
        raise UserError("--over units needs --model RUN, whose units are the tokens")
    tokenizer = tokenizer_files.load_one(args.model, args.task) if args.model else None
    steps = [name for name in args.normalise.split(",") if name]
    spell = tokenizer.normalise if tokenizer else normalise.make(steps)
    for place, text in read_texts(args):
        line = spell(text)
        if tokenizer is None or args.over == "words":
            tokens = line.split()
        elif tokenizer.covers(line):
            ids = tokenizer.encode(line).tolist()
            tokens = [arpa.unit_word(tokenizer.symbols[i - 1]) for i in ids]
        else:
            continue
        marks = kneser_ney.RESERVED.intersection(tokens)
        if marks:
            raise UserError(
                f"{place}: the text has the word {min(marks)}, a mark of language models;"
                " remove it from the text"
            )
        if tokens:
            yield tokens


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Estimate and write a model; returns what --json prints."""
    found = list(sentences(args))
    model = kneser_ney.estimate(found, args.order)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    arpa.write(args.out, model.orders)
    return {
        "out": str(args.out),
        "over": args.over,
        "sentences": len(found),
        "tokens": sum(map(len, found)),
        "ngrams": [len(table) for table in model.orders],
        "discounts": [list(d) for d in model.discounts],
        "fallback": model.fallback,
    }


def body(args: argparse.Namespace) -> None:
    summary = run(args)
    if summary["fallback"]:
        orders = ", ".join(map(str, summary["fallback"]))
        log(
            f"note: too little text to estimate the discounts of order {orders}; "
            f"{kneser_ney.FALLBACK} are used there"
        )
    counts = ", ".join(f"{n} {k}-grams" for k, n in enumerate(summary["ngrams"], start=1))
    line = f"{summary['out']}: {counts} from {summary['sentences']} sentences"
    print(json.dumps(summary) if args.json else f"{line}, {summary['tokens']} {args.over}")


main = cli.command(parser, body)

if __name__ == "__main__":
    sys.exit(main())
