"""python -m bljust_jax.transcribe --model RUN_OR_DIR FILE... [--task st/ar-en] [--json] ...

Writes what is said in audio files: the text of one file, or a line `path TAB text` for each of
several; with --json a line {"path", "text", "words": [{"word", "start", "end"}]} for each, times in
seconds. FILE is anything that libsndfile reads, at any rate; - reads paths from stdin, one a line.
Longer files are heard in windows that overlap, which an encoder that normalises each utterance by
itself hears as utterances. A translation has no times, and longer files are translated in equal
parts. A file that cannot be read is one line on stderr, and the others go on.
Exit 0: all done; 2: a mistake, or a file that could not be read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO

from bljust_jax.common import cli
from bljust_jax.common.console import StatusLine
from bljust_jax.common.errors import UserError
from bljust_jax.decoding import arpa, ctc_beam
from bljust_jax.inference.recognizer import Recognizer, Translator, open_model
from bljust_jax.inference.transcriber import Failure, Settings, Transcript, transcribe, translate

WIDTH = 16  # of the search, where a language model is given alone
STDIN = "-"
LONGEST = 3600  # seconds; a window is one row of a batch, in memory as a whole


def parser() -> argparse.ArgumentParser:
    p = cli.Parser(__doc__)
    p.add_argument("files", nargs="*", metavar="FILE", help="audio; - reads paths from stdin")
    p.add_argument(
        "--model",
        type=pathlib.Path,
        required=True,
        metavar="RUN_OR_DIR",
        help="a trained run, or a folder that export_checkpoint wrote",
    )
    p.add_argument("--task", default="", metavar="TASK", help="of a run of several: asr/en")
    p.add_argument("--list", metavar="LIST", help="a file of paths, one a line, after FILE...")
    p.add_argument("--json", action="store_true", help="a JSON object a line, with word times")
    p.add_argument("--out", type=pathlib.Path, metavar="PATH", help="write there, not to stdout")
    own = Settings()
    p.add_argument(
        "--window", type=float, default=own.window, help="seconds heard at once (%(default)g)"
    )
    p.add_argument(
        "--overlap",
        type=float,
        default=own.overlap,
        help="seconds that a window hears beyond each of its ends (%(default)g)",
    )
    p.add_argument(
        "--batch_seconds",
        type=float,
        default=own.batch_seconds,
        help="padded audio a batch (%(default)g)",
    )
    p.add_argument(
        "--beam",
        type=int,
        help=f"search with this width (the best path; {WIDTH} with --lm; of a translation that of "
        "its config)",
    )
    p.add_argument("--lm", default="", metavar="ARPA", help="an n-gram model, plain or .gz")
    p.add_argument(
        "--lm_over",
        choices=(ctc_beam.WORDS, ctc_beam.UNITS),
        default=ctc_beam.WORDS,
        help="what its n-grams are of: words, or the model's characters or pieces (%(default)s)",
    )
    p.add_argument("--alpha", type=float, default=0.5, help="weight of ln P_lm (%(default)s)")
    p.add_argument("--beta", type=float, default=1.0, help="added a word, or unit (%(default)s)")
    return p


def check(args: argparse.Namespace) -> None:
    """UserError for flags that are out of range, or name nothing to do."""
    if not args.files and args.list is None:
        raise UserError("name the audio files, or - to read their paths from stdin")
    for name in ("window", "overlap", "batch_seconds"):
        if not 0 < getattr(args, name) < float("inf"):
            raise UserError(f"--{name} {getattr(args, name):g} must be seconds above 0")
    if args.window > LONGEST:
        raise UserError(f"--window {args.window:g} must be at most {LONGEST} seconds")
    if args.beam is not None and args.beam < 1:
        raise UserError(f"--beam {args.beam} must be at least 1")


def paths_of(args: argparse.Namespace) -> Iterator[str]:
    """The paths, in order; lists are read as they are needed."""
    for path in args.files:
        if path == STDIN:
            yield from lines(sys.stdin.buffer)
        else:
            yield path
    if args.list is not None:
        with open(args.list, "rb") as file:
            yield from lines(file)


def lines(file: Iterable[bytes]) -> Iterator[str]:
    """The paths of a list, one a line, whatever bytes they are of."""
    return (os.fsdecode(line.rstrip(b"\r\n")) for line in file if line.strip())


def make_search(args: argparse.Namespace, recogniser: Recognizer) -> ctc_beam.BeamSearch | None:
    """The beam search that the flags ask for; UserError where --lm cannot be of these units."""
    if args.beam is None and not args.lm:
        return None
    fusion = None
    if args.lm:
        lm = arpa.open_lm(args.lm)
        symbols = recogniser.symbols
        if args.lm_over == ctc_beam.UNITS:
            known = sum(arpa.unit_word(symbol) in lm for symbol in symbols)
            if known < 0.1 * len(symbols):
                raise UserError(f"{args.lm} lists {known} of the {len(symbols)} units of the model")
        elif not any(symbol.startswith((" ", arpa.SPACE_UNIT)) for symbol in symbols):
            raise UserError("this model's units mark no words: give --lm with --lm_over units")
        fusion = ctc_beam.Fusion(lm, args.alpha, args.beta, args.lm_over)
    return ctc_beam.BeamSearch(recogniser.symbols, beam=args.beam or WIDTH, fusion=fusion)


def transcripts(
    args: argparse.Namespace,
    model: Recognizer | Translator,
    settings: Settings,
    heard: Callable[[float], None],
) -> Iterator[Transcript | Failure]:
    """What the model makes of each file, be it a recogniser or a translator."""
    if isinstance(model, Recognizer):
        return transcribe(model, paths_of(args), settings, make_search(args, model), heard)
    if args.lm:
        raise UserError(
            f"--lm is of recognition: {args.task or 'this task'} is a translation, whose decoder is"
            " its own language model; leave it out"
        )
    width = model.beam if args.beam is None else args.beam
    return translate(model, paths_of(args), settings, width, heard)


class Progress:
    """Transcription progress on stderr: a status line on terminals, problems, and a summary."""

    def __init__(self, name: str):
        self._name, self._status = name, StatusLine()
        self._began = time.monotonic()
        self.files, self._seconds = 0, 0.0

    def add_audio(self, seconds: float) -> None:
        self._seconds += seconds
        self._status.update(self._summary())

    def add_file(self, result: Transcript | Failure) -> None:
        self.files += 1
        if isinstance(result, Failure):
            self._status.log(f"error: {result.reason}")
        elif not result.text:
            self._status.log(f"{result.path}: no words in {result.seconds:.2f} s")
        self._status.update(self._summary())

    def clear(self) -> None:
        """Make room for a line of the output, which may be on the same terminal."""
        self._status.clear()

    def close(self) -> None:
        self._status.log(f"{self._summary()}, by {self._name}")

    def _summary(self) -> str:
        spent = max(time.monotonic() - self._began, 1e-9)
        files = f"{self.files} file" if self.files == 1 else f"{self.files} files"
        return (
            f"transcribed {files}, {self._seconds:,.1f} s of audio in {spent:.1f} s, "
            f"{self._seconds / spent:.1f} times real time"
        )


def written(found: Transcript, as_json: bool, alone: bool) -> str:
    """A transcript as one line of output."""
    if as_json:
        words = [word._asdict() for word in found.words]
        line = {"path": found.path, "text": found.text, "words": words}
        return json.dumps(line, ensure_ascii=False)
    return found.text if alone else f"{found.path}\t{found.text}"


@contextlib.contextmanager
def opened(out: pathlib.Path | None) -> Iterator[IO[str]]:
    """Where the transcripts go; paths are written with the bytes that they have."""
    if out is None:
        sys.stdout.reconfigure(errors="surrogateescape")
        yield sys.stdout
    else:
        with out.open("w", encoding="utf-8", errors="surrogateescape") as file:
            yield file


def body(args: argparse.Namespace) -> None:
    check(args)
    model = open_model(args.model, args.task)
    settings = Settings(args.window, args.overlap, args.batch_seconds)
    alone = args.list is None and len(args.files) == 1 and args.files != [STDIN]
    failed, progress = 0, Progress(model.name)
    found_in = transcripts(args, model, settings, progress.add_audio)
    with opened(args.out) as out:
        for found in found_in:
            progress.clear()
            if isinstance(found, Transcript):
                print(written(found, args.json, alone), file=out, flush=True)
            elif alone:
                raise UserError(found.reason)
            else:
                failed += 1
            progress.add_file(found)
    progress.close()
    if failed:
        raise UserError(f"{failed} of {progress.files} files could not be read, as said above")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), body, argv)


if __name__ == "__main__":
    sys.exit(main())
