"""python -m bljust_jax.evaluate --workdir RUN [--task asr/en] [--split dev] [--lm X.arpa] ...

Decodes a split with the best weights of a run's newest checkpoint, by best path and by beam search,
and prints WER and CER of both; of a translation BLEU, chrF and sacreBLEU's signatures. The
hypotheses go to RUN/samples/SPLIT-beam.jsonl (SPLIT-TASK-beam.jsonl). --tune tries values of
--alpha and --beta on the split, without running the model again: do that on dev alone, and give the
values that it finds when you score test. Exit 2: a mistake, in one line.
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

from bljust_jax.bilevel.types import Task
from bljust_jax.common import cli
from bljust_jax.common.errors import UserError
from bljust_jax.data.splits import Splits
from bljust_jax.decoding import arpa, ctc_beam
from bljust_jax.decoding.lm_weights import Trial, tune
from bljust_jax.inference import measures
from bljust_jax.inference.scoring import (
    Result,
    distributions,
    greedy_result,
    own_scores,
    said,
    sample_file,
    score_split,
    write_pairs,
)
from bljust_jax.inference.trained_run import Run, open_run, open_split
from bljust_jax.parallel.compile_cache import keep_compiled
from bljust_jax.parallel.mesh import put_batch

WIDTH = 16  # of the search in CTC's frames


class Frames(NamedTuple):
    """What the model says of a split: by utterance id, best paths [T] and log-probabilities
    [T, K]."""

    paths: dict[str, np.ndarray]
    log_probs: dict[str, np.ndarray]


def listen(opened: Run, splits: Splits, split: str) -> Frames:
    """Runs the model over a split; all of it stays in memory, 4 K bytes a frame."""
    program = jax.jit(distributions(opened.task))
    paths, log_probs = {}, {}

    def say(batch: dict) -> dict[str, Any]:
        return program(opened.weights, put_batch(batch, opened.mesh))

    for name, row in said(opened.task.split(split), splits, say):
        paths[name] = row["path"]
        log_probs[name] = row["log_probs"][row["path"] >= 0]
    return Frames(paths, log_probs)


def beam_result(
    task: Task,
    split: str,
    splits: Splits,
    frames: Frames,
    search: ctc_beam.BeamSearch,
    nbest: int = 1,
) -> Result:
    """Beam search over a split, scored. Each pair holds the `nbest` hypotheses, where above 1."""
    found = {name: search(x, nbest) for name, x in frames.log_probs.items()}
    decode = splits.tokenizer.decode
    result = score_split(task, split, splits, {n: decode(h[0].units) for n, h in found.items()})
    if nbest > 1:
        for pair in result.pairs:
            listed = [{"text": decode(h.units), **h._asdict()} for h in found[pair["id"]]]
            pair["nbest"] = [{k: v for k, v in h.items() if k != "units"} for h in listed]
    return result


def evaluate(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that the command does; returns what --json prints."""
    opened = open_run(args.workdir, args.task)
    keep_compiled(opened.config.compile_cache)
    if opened.task.translate:
        check_translation(args, opened.task)
        found = translate(opened, args, say)
    else:
        found = recognise(opened, args, say)
    about = {"split": args.split, "task": opened.task.name, "step": opened.step}
    return about | {"normalise": list(opened.config.data.text.normalise)} | found


def recognise(opened: Run, args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Best path and beam search, with a language model where one is given."""
    task, lm = opened.task, arpa.open_lm(args.lm) if args.lm else None
    width = WIDTH if args.beam is None else args.beam
    splits = open_split(opened, args.split, args.data)
    if lm is not None:
        check_tokens(lm, args, task, splits, say)
    started = time.monotonic()
    frames = listen(opened, splits, args.split)
    say(f"{len(frames.paths)} utterances through the model: {time.monotonic() - started:.1f} s")

    def decode(alpha: float, beta: float, nbest: int = 1) -> Result:
        fusion = None if lm is None else ctc_beam.Fusion(lm, alpha, beta, args.lm_over)
        search = ctc_beam.BeamSearch(
            opened.tokenizer.symbols, beam=width, prune=args.prune, fusion=fusion
        )
        return beam_result(task, args.split, splits, frames, search, nbest)

    found: dict[str, Any] = {"lm": args.lm}
    if args.tune:
        attempt = partial(try_out, task.split(args.split), decode, say)
        best, trials = tune(attempt, (args.alpha, args.beta))
        args.alpha, args.beta = best.alpha, best.beta
        found["tuned"] = [trial._asdict() for trial in trials]
    plain = greedy_result(task, args.split, splits, frames.paths)
    for note in plain.notes:
        say(note)
    started = time.monotonic()
    result = decode(args.alpha, args.beta, args.nbest)
    found |= {"beam": width, "prune": args.prune, **speed(result, started)}
    if lm is not None:
        found |= {"alpha": args.alpha, "beta": args.beta, "lm_over": args.lm_over}
    write_both(args, task, "best_path", plain, result)
    return found | {"best_path": plain.scores, "beam_search": result.scores}


def translate(opened: Run, args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Greedy decoding and beam search of a translation."""
    task = opened.task
    width = opened.config.decoder.beam if args.beam is None else args.beam
    splits = open_split(opened, args.split, args.data)

    def decode(width: int) -> Result:
        program = jax.jit(
            lambda weights, batch: task.translate(weights.params, weights.stats, batch, width)
        )
        rows = said(
            task.split(args.split),
            splits,
            lambda batch: program(opened.weights, put_batch(batch, opened.mesh)),
        )
        return greedy_result(task, args.split, splits, dict(rows))

    plain = decode(1)
    started = time.monotonic()
    result = decode(width)
    for note in dict.fromkeys((*plain.notes, *result.notes)):
        say(note)
    write_both(args, task, "greedy", plain, result)
    found = {"beam": width, **speed(result, started), "signatures": measures.signatures(task)}
    return found | {"greedy": plain.scores, "beam_search": result.scores}


def speed(result: Result, started: float) -> dict[str, int]:
    seconds = max(time.monotonic() - started, 1e-9)
    return {"utterances_per_minute": round(60 * len(result.pairs) / seconds)}


def write_both(
    args: argparse.Namespace, task: Task, name: str, plain: Result, result: Result
) -> None:
    """The pairs of the search, each with what was found without one, under `name`."""
    for pair, other in zip(result.pairs, plain.pairs, strict=True):
        pair[name] = other["hypothesis"]
    own = args.workdir / "samples" / sample_file(args.split, task.name, "beam")
    write_pairs(args.out or own, result.pairs)


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
    lm: arpa.LanguageModel,
    args: argparse.Namespace,
    task: Task,
    splits: Splits,
    say: Callable[[str], None],
) -> None:
    """Says how much of the references the model knows; UserError where that is next to nothing."""
    if args.lm_over == ctc_beam.WORDS:
        boundary = (" ", arpa.SPACE_UNIT)
        if not any(s.startswith(boundary) for s in splits.tokenizer.symbols):
            raise UserError("this run's units mark no words: give a model with --lm_over units")
        tokens = [w for line in splits.references(task.split(args.split)) for w in line.split()]
    else:
        tokens = [arpa.unit_word(s) for s in splits.tokenizer.symbols]
    known = sum(t in lm for t in tokens)
    what = "words of the references" if args.lm_over == ctc_beam.WORDS else "units"
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
    p = cli.Parser(__doc__)
    p.add_argument(
        "--workdir", type=pathlib.Path, required=True, metavar="RUN", help="a trained run"
    )
    p.add_argument("--task", default="", metavar="TASK", help="of a run of several: asr/en")
    p.add_argument("--split", default="dev", help="dev, test or train of its config (%(default)s)")
    p.add_argument("--data", default="", metavar="URI", help="other audio than the config names")
    p.add_argument(
        "--beam",
        type=int,
        help=f"width of the search ({WIDTH}; a translation's config.decoder.beam)",
    )
    p.add_argument(
        "--prune",
        type=float,
        default=1e-3,
        help="drop classes less probable than so many times the best of their frame (%(default)s)",
    )
    p.add_argument("--lm", default="", metavar="ARPA", help="an n-gram model, plain or .gz")
    p.add_argument(
        "--lm_over",
        choices=(ctc_beam.WORDS, ctc_beam.UNITS),
        default=ctc_beam.WORDS,
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
    width = WIDTH if args.beam is None else args.beam
    if width < 1 or not 1 <= args.nbest <= width:
        raise UserError(f"--beam {width} --nbest {args.nbest}: want 1 <= nbest <= beam")
    if not 0 <= args.prune < 1:
        raise UserError(f"--prune {args.prune:g} must be at least 0 and below 1")
    if args.tune and not args.lm:
        raise UserError("--tune finds the weights of a language model: give one with --lm")


OF_CTC = ("prune", "lm", "lm_over", "alpha", "beta", "tune", "nbest")


def check_translation(args: argparse.Namespace, task: Task) -> None:
    """UserError for flags that the search of a translation does not read."""
    for name in OF_CTC:
        if getattr(args, name) != parser().get_default(name):
            raise UserError(
                f"--{name} is of recognition: {task.name} is a translation, whose decoder is its "
                "own language model; leave it out"
            )


def report_lines(found: dict[str, Any]) -> list[str]:
    """What a person reads of `evaluate`."""
    split = "/".join(filter(None, (found["split"], found["task"])))
    lines = [
        f"{split} {name.replace('_', ' ')}: {measures.line(own_scores(split, found[name]))}"
        for name in ("best_path", "greedy", "beam_search")
        if name in found
    ]
    lines += [f"{name}: {text}" for name, text in found.get("signatures", {}).items()]
    weights = ""
    if found.get("lm"):
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
    return cli.run(parser(), body, argv)


if __name__ == "__main__":
    sys.exit(main())
