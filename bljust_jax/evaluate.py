"""python -m bljust_jax.evaluate RUN [--task asr/en] [--split dev] [--lm X.arpa] ...

Decodes a split with the best weights of a run's newest checkpoint, by best path and by beam search,
and prints WER and CER of both; for a translation BLEU, chrF and sacreBLEU's signatures. The
hypotheses are written to RUN/samples/SPLIT-beam.jsonl (SPLIT-TASK-beam.jsonl). --tune searches
--alpha and --beta on the split, without running the model again: use it on dev only, and pass the
values that it finds when you score test. Exit 2: a mistake, reported in one line.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

from bljust_jax.bilevel.types import Task
from bljust_jax.common import cli, console, files
from bljust_jax.common.config_schema.ranges import BELOW_1
from bljust_jax.common.errors import UserError
from bljust_jax.data.splits import Splits
from bljust_jax.decoding import ctc_beam
from bljust_jax.decoding.lm_weights import Trial, tune
from bljust_jax.inference import decode_split, measures, scoring, search_options
from bljust_jax.inference.scoring import Result
from bljust_jax.inference.search_options import WIDTH
from bljust_jax.inference.trained_run import TrainedRun, load_trained_run
from bljust_jax.parallel.compile_cache import enable_compile_cache

Log = Callable[[str], None]


def evaluate(args: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Decode and score a split; returns what --json prints."""
    run = load_trained_run(args.model).select_task(args.task)
    check_writable(hypotheses(args, run.task))
    enable_compile_cache(run.config.compile_cache)
    if run.task.translate:
        check_translation(args, run.task)
        found = evaluate_translation(run, args, log)
    else:
        found = evaluate_recognition(run, args, log)
    about = {"split": args.split, "task": run.task.name, "step": run.step}
    return about | {"normalise": list(run.config.data.text.normalise)} | found


def evaluate_recognition(run: TrainedRun, args: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Scores of CTC's best path and of its beam search, with a language model if one is given; of
    recognition, or of a translation by a linear head."""
    task, lm = run.task, None
    if args.tune and measures.is_translation(task):
        raise UserError(
            f"--tune minimises WER, and {task.name} is measured by BLEU: give --alpha and --beta"
        )
    width = WIDTH if args.beam is None else args.beam
    splits = run.load_split(args.split, args.data)
    if args.lm:
        texts = splits.references(task.split(args.split))
        words = [word for text in texts for word in text.split()]
        lm, line = search_options.open_language_model(args, run.tokenizer.symbols, words)
        log(line)
    started = time.monotonic()
    output = decode_split.compute_ctc_output(run, splits, args.split)
    log(f"{len(output.paths)} utterances through the model: {time.monotonic() - started:.1f} s")

    def decode(alpha: float, beta: float, nbest: int = 1) -> Result:
        fusion = None if lm is None else ctc_beam.Fusion(lm, alpha, beta, args.lm_over)
        search = ctc_beam.BeamSearch(
            run.tokenizer.symbols, beam=width, prune=args.prune, fusion=fusion
        )
        return score_beam_search(task, args.split, splits, output, search, nbest)

    def attempt(alpha: float, beta: float) -> Trial:
        scores, split = decode(alpha, beta).scores, task.split(args.split)
        trial = Trial(alpha, beta, scores[f"{split}/wer"], scores[f"{split}/cer"])
        log(f"alpha {alpha:g} beta {beta:g}: WER {trial.wer:.2%}, CER {trial.cer:.2%}")
        return trial

    found: dict[str, Any] = {"lm": args.lm}
    if args.tune:
        best, trials = tune(attempt, (args.alpha, args.beta))
        args.alpha, args.beta = best.alpha, best.beta
        found["tuned"] = [trial._asdict() for trial in trials]
    plain = scoring.score_greedy(task, args.split, splits, output.paths)
    for note in plain.notes:
        log(note)
    started = time.monotonic()
    result = decode(args.alpha, args.beta, args.nbest)
    found |= {"beam": width, "prune": args.prune, **speed(result, started)}
    if lm is not None:
        found |= {"alpha": args.alpha, "beta": args.beta, "lm_over": args.lm_over}
    write_both(args, task, "best_path", plain, result)
    if signatures := measures.signatures(task):
        found["signatures"] = signatures
    return found | {"best_path": plain.scores, "beam_search": result.scores}


def score_beam_search(
    task: Task,
    split: str,
    splits: Splits,
    output: decode_split.CtcOutput,
    search: ctc_beam.BeamSearch,
    nbest: int = 1,
) -> Result:
    """Beam search over a split, scored. Pairs hold the `nbest` hypotheses if above 1."""
    found = {name: search(x, nbest) for name, x in output.log_probs.items()}
    decode = splits.tokenizer.decode
    best = {name: decode(hypotheses[0].units) for name, hypotheses in found.items()}
    result = scoring.score_split(task, split, splits, best)
    if nbest > 1:
        for pair in result.pairs:
            listed = [{"text": decode(h.units), **h._asdict()} for h in found[pair["id"]]]
            pair["nbest"] = [{k: v for k, v in h.items() if k != "units"} for h in listed]
    return result


def evaluate_translation(run: TrainedRun, args: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Scores of greedy decoding and of beam search."""
    task = run.task
    width = run.config.decoder.beam if args.beam is None else args.beam
    splits = run.load_split(args.split, args.data)

    def decode(width: int) -> Result:
        decoder = decode_split.translation_decoder(task, width)
        rows = decode_split.decode_with_run(run, splits, args.split, decoder)
        return scoring.score_greedy(task, args.split, splits, dict(rows))

    plain = decode(1)
    started = time.monotonic()
    result = decode(width)
    for note in dict.fromkeys((*plain.notes, *result.notes)):
        log(note)
    write_both(args, task, "greedy", plain, result)
    found = {"beam": width, **speed(result, started), "signatures": measures.signatures(task)}
    return found | {"greedy": plain.scores, "beam_search": result.scores}


def speed(result: Result, started: float) -> dict[str, int]:
    seconds = max(time.monotonic() - started, 1e-9)
    return {"utterances_per_minute": round(60 * len(result.pairs) / seconds)}


def write_both(args: Any, task: Task, name: str, plain: Result, result: Result) -> None:
    """Write the pairs of the search, with the hypothesis found without search under `name`."""
    for pair, other in zip(result.pairs, plain.pairs, strict=True):
        pair[name] = other["hypothesis"]
    scoring.write_pairs(hypotheses(args, task), result.pairs)


def check_writable(path: pathlib.Path) -> None:
    """Raises UserError, before anything is decoded, if the hypotheses cannot be written."""
    try:
        files.require_writable(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path}: {reason}; name a file with --out") from error


def hypotheses(args: Any, task: Task) -> pathlib.Path:
    """The file that hypotheses are written to."""
    own = args.model / "samples" / scoring.sample_file(args.split, task.name, "beam")
    return args.out or own


def parser() -> cli.Parser:
    p = cli.Parser(__doc__)
    p.model("a trained run", positional=True)
    p.option("--task", "", "of a run of several: asr/en", metavar="TASK")
    p.option("--split", "dev", "dev, test or train of its config")
    p.option("--data", "", "other audio than the config names", metavar="URI")
    width = f"width of the search ({WIDTH}; a translation's config.decoder.beam)"
    p.option("--beam", int, width)
    least = "drop classes less probable than this times the best of their frame"
    p.option("--prune", 1e-3, least, allowed=BELOW_1)
    search_options.add_language_model_options(p)
    p.option("--tune", False, "find alpha and beta on this split")
    p.option("--nbest", 1, "hypotheses written")
    p.option("--out", pathlib.Path, "where hypotheses go", metavar="FILE")
    p.option("--json", False, "print the results as one JSON object")
    return p


def check(args: argparse.Namespace) -> None:
    """Raises UserError for flags that exclude each other."""
    width = WIDTH if args.beam is None else args.beam
    if width < 1 or not 1 <= args.nbest <= width:
        raise UserError(f"--beam {width} --nbest {args.nbest}: want 1 <= nbest <= beam")
    if args.tune and not args.lm:
        raise UserError("--tune finds the weights of a language model: give one with --lm")


CTC_SEARCH_FLAGS = ("prune", "lm", "lm_over", "alpha", "beta", "tune", "nbest")


def check_translation(args: argparse.Namespace, task: Task) -> None:
    """Raises UserError for flags that the search of a translation does not read."""
    for name in CTC_SEARCH_FLAGS:
        if getattr(args, name) != parser().get_default(name):
            raise search_options.refuse_language_model(task.name, name)


def report_lines(found: dict[str, Any]) -> list[str]:
    """The lines that the command prints without --json."""
    split = "/".join(filter(None, (found["split"], found["task"])))
    lines = [
        f"{split} {name.replace('_', ' ')}: {measures.line(scoring.own_scores(split, found[name]))}"
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
        f"{found['utterances_per_minute']:,} utterances per minute"
    )
    return lines


def body(args: argparse.Namespace) -> None:
    check(args)
    found = evaluate(args, console.log)
    print(json.dumps(found) if args.json else "\n".join(report_lines(found)))


main = cli.command(parser, body)

if __name__ == "__main__":
    sys.exit(main())
