"""python -m bljust_jax.transcribe --model RUN_OR_DIR FILE... [--task st/ar-en] [--json] ...

Transcribes audio files: prints the text of one file, or a line `path TAB text` for each of several;
with --json an object {"path", "text", "words": [{"word", "start", "end"}]} per line, times in
seconds; with --srt the subtitles of one file. FILE is anything that libsndfile reads, at any rate;
- reads paths from stdin, one per line. Long files are decoded in overlapping windows; an encoder
that normalises by utterance treats each window as an utterance. A translation has no times, and
long files are translated in equal parts. A file that cannot be read is one line on stderr; the
others are still transcribed.
Exit 0: all done; 2: a mistake, or a file that could not be read.
"""

import argparse
import codecs
import contextlib
import json
import os
import pathlib
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from bljust_jax.common import cli
from bljust_jax.common.config_schema.field import Range
from bljust_jax.common.config_schema.ranges import ABOVE_0, AT_LEAST_1
from bljust_jax.common.console import StatusLine
from bljust_jax.common.errors import UserError
from bljust_jax.common.files import expand_user
from bljust_jax.decoding import ctc_beam
from bljust_jax.inference import search_options
from bljust_jax.inference.load import load_model
from bljust_jax.inference.recognizer import Recognizer, Translator
from bljust_jax.inference.search_options import WIDTH
from bljust_jax.inference.subtitles import srt
from bljust_jax.inference.transcriber import (
    Failure,
    Transcript,
    WindowOptions,
    transcribe,
    translate,
)

STDIN = "-"
SECONDS = Range("seconds above 0", ABOVE_0.holds)
LONGEST = 3600  # seconds; a window is one row of a batch, held in memory as a whole


def parser() -> cli.Parser:
    p, own = cli.Parser(__doc__), WindowOptions()
    p.add_argument("files", nargs="*", metavar="FILE", help="audio; - reads paths from stdin")
    p.model("a trained run, or a folder that export_checkpoint wrote")
    p.option("--task", "", "of a run of several: asr/en", metavar="TASK")
    p.option("--list", str, "a file of paths, one per line, after FILE...", metavar="LIST")
    p.option("--json", False, "a JSON object per line, with word times")
    p.option("--srt", False, "subtitles of one file, in the SRT format")
    p.option("--out", pathlib.Path, "write there, not to stdout", metavar="PATH")
    for name, default, what in (
        ("--window", own.window, "seconds per window"),
        ("--overlap", own.overlap, "seconds of overlap on each side of a join"),
        ("--batch_seconds", own.batch_seconds, "seconds of padded audio per batch"),
    ):
        p.option(name, default, what, allowed=SECONDS)
    width = f"width of the search (default: the best path; {WIDTH} with --lm; for a translation "
    p.option("--beam", int, f"{width}config.decoder.beam)", allowed=AT_LEAST_1)
    search_options.add_language_model_options(p)
    return p


def check(args: argparse.Namespace) -> None:
    """Raises UserError for too long windows, without any file, and for subtitles of several."""
    if not args.files and args.list is None:
        raise UserError("name the audio files, or - to read their paths from stdin")
    if args.srt and (args.json or not is_alone(args)):
        raise UserError("--srt writes the subtitles of one file: name one, without --json")
    if args.window > LONGEST:
        raise UserError(f"--window {args.window:g} must be at most {LONGEST} seconds")


def is_alone(args: argparse.Namespace) -> bool:
    """Whether a single file is named."""
    return args.list is None and len(args.files) == 1 and args.files != [STDIN]


def paths_of(args: argparse.Namespace) -> Iterator[str]:
    """The paths, in order; lists are read lazily."""
    for path in args.files:
        if path == STDIN:
            yield from lines(sys.stdin.buffer)
        else:
            yield path
    if args.list is not None:
        with open(expand_user(args.list), "rb") as file:
            yield from lines(file)


def lines(file: Iterable[bytes]) -> Iterator[str]:
    """The paths of a list, one per line, of any bytes; a byte order mark is skipped."""
    for number, line in enumerate(file):
        line = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
        if line.strip():
            yield os.fsdecode(line.rstrip(b"\r\n"))


def make_search(args: argparse.Namespace, recognizer: Recognizer) -> ctc_beam.BeamSearch | None:
    """The beam search of the flags, None for the best path; UserError if --lm does not fit."""
    if args.beam is None and not args.lm:
        return None
    fusion = None
    if args.lm:
        lm, _ = search_options.open_language_model(args, recognizer.symbols)
        fusion = ctc_beam.Fusion(lm, args.alpha, args.beta, args.lm_over)
    return ctc_beam.BeamSearch(recognizer.symbols, beam=args.beam or WIDTH, fusion=fusion)


def transcripts(
    args: argparse.Namespace,
    model: Recognizer | Translator,
    progress: Callable[[float], None],
) -> Iterator[Transcript | Failure]:
    """The transcript or translation of each file."""
    options = WindowOptions(args.window, args.overlap, args.batch_seconds)
    if isinstance(model, Recognizer):
        return transcribe(model, paths_of(args), options, make_search(args, model), progress)
    if args.lm:
        raise search_options.refuse_language_model(args.task, "lm")
    width = model.beam if args.beam is None else args.beam
    return translate(model, paths_of(args), options, width, progress)


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


def output_line(found: Transcript, as_json: bool, alone: bool) -> str:
    """A transcript as one line of output."""
    if as_json:
        words = [word._asdict() for word in found.words]
        line = {"path": found.path, "text": found.text, "words": words}
        return json.dumps(line, ensure_ascii=False)
    return found.text if alone else f"{found.path}\t{found.text}"


@contextlib.contextmanager
def open_output(out: pathlib.Path | None) -> Iterator[IO[str]]:
    """File `out`, else stdout; paths are written as their original bytes."""
    if out is None:
        yield sys.stdout
    else:
        with out.open("w", encoding="utf-8", errors="surrogateescape") as file:
            yield file


def body(args: argparse.Namespace) -> None:
    check(args)
    model = load_model(args.model, args.task)
    if args.srt and not isinstance(model, Recognizer):
        raise UserError(
            "--srt: a translation has no times: name a --task of recognition, such as asr/en"
        )
    alone = is_alone(args)
    failed, progress = 0, Progress(model.name)
    found_files = transcripts(args, model, progress.add_audio)
    with open_output(args.out) as out:
        for found in found_files:
            progress.clear()
            if isinstance(found, Transcript):
                text = srt(found.words) if args.srt else output_line(found, args.json, alone)
                print(text, end="" if args.srt else "\n", file=out, flush=True)
            elif alone:
                raise UserError(found.reason)
            else:
                failed += 1
            progress.add_file(found)
    progress.close()
    if failed:
        raise UserError(f"{failed} of {progress.files} files could not be read, see above")


main = cli.command(parser, body)


class _CallableModule(types.ModuleType):
    """`bljust_jax.transcribe` is this command and, when called, the function of the Python API."""

    def __call__(
        self, path: str | os.PathLike, audio: Any, sample_rate: int | None = None, task: str = ""
    ) -> Transcript:
        """`load_recognizer(path, task).transcribe(audio, sample_rate)`."""
        from bljust_jax.inference.api import load_recognizer

        return load_recognizer(path, task).transcribe(audio, sample_rate)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    sys.exit(main())
