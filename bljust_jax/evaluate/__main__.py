"""python -m bljust_jax.evaluate --workdir RUN [--split dev] [--lm X.arpa] [--tune] ...

Decodes a split with the best weights of a run's newest checkpoint, by best path and by beam search,
and prints WER and CER of both. The hypotheses go to RUN/samples/SPLIT-beam.jsonl. --tune tries
values of --alpha and --beta on the split, without running the model again: do that on dev alone,
and give the values that it finds when you score test. Exit 2: a mistake, in one line.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from bljust_jax import command, programs, sharding
from bljust_jax.data.splits import Splits
from bljust_jax.decode import arpa, beam
from bljust_jax.decode.tune import Trial, tune
from bljust_jax.errors import UserError
from bljust_jax.evaluate import (
    Result,
    distributions,
    errors,
    greedy_result,
    predictions,
    score_split,
    write_samples,
)
from bljust_jax.evaluate.trained import Run, open_run, open_split


class Frames(NamedTuple):
    """What the model says of a split: by utterance id, best paths [T] and log-probabilities
    [T, K]."""

    paths: dict[str, np.ndarray]
    log_probs: dict[str, np.ndarray]


def listen(opened: Run, splits: Splits, split: str) -> Frames:
    """Runs the model over a split; all of it stays in memory, 4 K bytes a frame."""
    program = jax.jit(partial(distributions, opened.recipe))
    paths, log_probs = {}, {}

    def predict(batch: dict) -> dict[str, Any]:
        return program(opened.weights, sharding.put_batch(batch, opened.mesh))

    for name, row in predictions(split, splits, predict):
        paths[name] = row["path"]
        log_probs[name] = row["log_probs"][row["path"] >= 0]
    return Frames(paths, log_probs)


def beam_result(
    split: str, splits: Splits, frames: Frames, search: beam.BeamSearch, nbest: int = 1
) -> Result:
    """Beam search over a split, scored. Each pair holds the `nbest` hypotheses, where above 1."""
    found = {name: search(x, nbest) for name, x in frames.log_probs.items()}
    decode = splits.tokenizer.decode
    result = score_split(split, splits, {n: decode(h[0].units) for n, h in found.items()})
    if nbest > 1:
        for pair in result.pairs:
            listed = [{"text": decode(h.units), **h._asdict()} for h in found[pair["id"]]]
            pair["nbest"] = [{k: v for k, v in h.items() if k != "units"} for h in listed]
    return result


def evaluate(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that the command does; returns what --json prints."""
    opened = open_run(args.workdir)
    programs.keep_compiled(opened.config.compile_cache)
    lm = arpa.open_lm(args.lm) if args.lm else None
    splits = open_split(opened, args.split, args.data)
    if lm is not None:
        check_tokens(lm, args, splits, say)
    started = time.monotonic()
    frames = listen(opened, splits, args.split)
    say(f"{len(frames.paths)} utterances through the model: {time.monotonic() - started:.1f} s")

    def decode(alpha: float, beta: float, nbest: int = 1) -> Result:
        fusion = None if lm is None else beam.Fusion(lm, alpha, beta, args.lm_over)
        symbols = opened.tokenizer.symbols
        search = beam.BeamSearch(symbols, beam=args.beam, prune=args.prune, fusion=fusion)
        return beam_result(args.split, splits, frames, search, nbest)

    found: dict[str, Any] = {"split": args.split, "step": opened.step, "lm": args.lm}
    found |= {"normalise": list(opened.config.data.text.normalise)}
    if args.tune:
        best, trials = tune(partial(try_out, args.split, decode, say), (args.alpha, args.beta))
        args.alpha, args.beta = best.alpha, best.beta
        found["tuned"] = [trial._asdict() for trial in trials]
    plain = greedy_result(args.split, splits, frames.paths)
    for note in plain.notes:
        say(note)
    started = time.monotonic()
    result = decode(args.alpha, args.beta, args.nbest)
    seconds = max(time.monotonic() - started, 1e-9)
    for pair, other in zip(result.pairs, plain.pairs, strict=True):
        pair["best_path"] = other["hypothesis"]
    write_samples(args.out or args.workdir / "samples" / f"{args.split}-beam.jsonl", result.pairs)
    per_minute = round(60 * len(result.pairs) / seconds)
    settings = {"beam": args.beam, "prune": args.prune, "utterances_per_minute": per_minute}
    if lm is not None:
        settings |= {"alpha": args.alpha, "beta": args.beta, "lm_over": args.lm_over}
    return found | settings | {"best_path": plain.scores, "beam_search": result.scores}


def try_out(
    split: str,
    decode: Callable[[float, float], Result],
    say: Callable[[str], None],
    alpha: float,
    beta: float,
) -> Trial:
    """The errors of one pair of weights, said as they are found."""
    scores = decode(alpha, beta).scores
    trial = Trial(alpha, beta, scores[f"{split}/wer"], scores[f"{split}/cer"])
    say(f"alpha {alpha:g} beta {beta:g}: WER {trial.wer:.2%}, CER {trial.cer:.2%}")
    return trial


def check_tokens(
    lm: arpa.LanguageModel, args: argparse.Namespace, splits: Splits, say: Callable[[str], None]
) -> None:
    """Says how much of the references the model knows; UserError where that is next to nothing."""
    if args.lm_over == beam.WORDS:
        boundary = (" ", arpa.SPACE_UNIT)
        if not any(s.startswith(boundary) for s in splits.tokenizer.symbols):
            raise UserError("this run's units mark no words: give a model with --lm_over units")
        tokens = [w for line in splits.references(args.split) for w in line.split()]
    else:
        tokens = [arpa.unit_word(s) for s in splits.tokenizer.symbols]
    known = sum(t in lm for t in tokens)
    what = "words of the references" if args.lm_over == beam.WORDS else "units"
    if known < 0.1 * len(tokens):
        raise UserError(
            f"{args.lm}: lists {known} of {len(tokens)} {what}: the model must be over "
            f"{args.lm_over}, and spelt as the run's texts are (upper or lower case)"
        )
    say(
        f"{args.lm}: order {lm.order}, read by {type(lm).__name__}; {known / len(tokens):.1%} of "
        f"the {what} are in it"
    )


def parser() -> argparse.ArgumentParser:
    p = command.Parser(__doc__)
    p.add_argument(
        "--workdir", type=pathlib.Path, required=True, metavar="RUN", help="a trained run"
    )
    p.add_argument("--split", default="dev", help="dev, test or train of its config (%(default)s)")
    p.add_argument("--data", default="", metavar="URI", help="other audio than the config names")
    p.add_argument("--beam", type=int, default=16, help="width of the search (%(default)s)")
    p.add_argument(
        "--prune",
        type=float,
        default=1e-3,
        help="drop classes less probable than so many times the best of their frame (%(default)s)",
    )
    p.add_argument("--lm", default="", metavar="ARPA", help="an n-gram model, plain or .gz")
    p.add_argument(
        "--lm_over",
        choices=(beam.WORDS, beam.UNITS),
        default=beam.WORDS,
        help="what its n-grams are of: words, or the run's characters or pieces (%(default)s)",
    )
    p.add_argument("--alpha", type=float, default=0.5, help="weight of ln P_lm (%(default)s)")
    p.add_argument("--beta", type=float, default=1.0, help="added a word, or unit (%(default)s)")
    p.add_argument("--tune", action="store_true", help="find alpha and beta on this split")
    p.add_argument("--nbest", type=int, default=1, help="hypotheses written (%(default)s)")
    p.add_argument("--out", type=pathlib.Path, metavar="FILE", help="where hypotheses go")
    p.add_argument("--json", action="store_true", help="print the results as one JSON object")
    return p


def check(args: argparse.Namespace) -> None:
    """UserError for flags that are out of range or make no sense together."""
    if args.beam < 1 or not 1 <= args.nbest <= args.beam:
        raise UserError(f"--beam {args.beam} --nbest {args.nbest}: want 1 <= nbest <= beam")
    if not 0 <= args.prune < 1:
        raise UserError(f"--prune {args.prune:g} must be at least 0 and below 1")
    if args.tune and not args.lm:
        raise UserError("--tune finds the weights of a language model: give one with --lm")


def report_lines(found: dict[str, Any]) -> list[str]:
    """What a person reads of `evaluate`."""
    split = found["split"]
    lines = []
    for name in ("best_path", "beam_search"):
        scores = {k.removeprefix(f"{split}/"): v for k, v in found[name].items()}
        lines.append(f"{split} {name.replace('_', ' ')}: {errors(scores)}")
    weights = ""
    if found["lm"]:
        weights = f", {found['lm']}, alpha {found['alpha']:g}, beta {found['beta']:g}"
    lines.append(
        f"best weights of checkpoint {found['step']}, beam {found['beam']}{weights}, "
        f"texts through {', '.join(found['normalise']) or 'no step'} of data.text.normalise, "
        f"{found['utterances_per_minute']:,} utterances a minute"
    )
    return lines


def body(args: argparse.Namespace) -> None:
    check(args)
    found = evaluate(args, lambda line: print(line, file=sys.stderr, flush=True))
    print(json.dumps(found) if args.json else "\n".join(report_lines(found)))


def main(argv: Sequence[str] | None = None) -> int:
    return command.run(parser(), body, argv)


if __name__ == "__main__":
    sys.exit(main())
