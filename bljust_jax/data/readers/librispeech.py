"""The LibriSpeech layout: ROOT/split/speaker/chapter/*.flac with one *.trans.txt a chapter."""

import pathlib
import unicodedata

from bljust_jax.data.sources import Utterance, header_seconds, inside
from bljust_jax.errors import UserError


def read(rest: str, root: str = "") -> list[Utterance]:
    """The utterances of a split folder (`rest`, relative to `root` where given), ordered by id.

    ids, speakers and chapters come from the file names, texts from the transcripts, durations from
    the FLAC headers. Raises UserError for a missing folder, a bad transcript line, a transcript
    without its recording, or, where `root` is given, a split or a recording that is not in it.
    """
    split = pathlib.Path(root, rest).absolute()
    if root:
        inside(split, root, f"librispeech:{rest}")
    if not split.is_dir():
        raise UserError(f"librispeech:{rest}: no such folder: {split}")
    found = []
    for transcript in sorted(split.glob("*/*/*.trans.txt")):
        recordings = {path.stem for path in transcript.parent.iterdir() if path.suffix == ".flac"}
        with transcript.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    found.append(_utterance(line, transcript, number, recordings, root))
    lengths = header_seconds([path for _, path, _, _ in found], [line for *_, line in found])
    return [
        Utterance(identity, path, 0.0, seconds, text, "en", identity.split("-")[0], line)
        for (identity, path, text, line), seconds in zip(found, lengths, strict=True)
    ]


def _utterance(
    line: str, transcript: pathlib.Path, number: int, recordings: set[str], root: str
) -> tuple[str, str, str, str]:
    """(id, path, text, "file:line") of one transcript line `ID TEXT`."""
    where = f"{transcript}:{number}"
    identity, space, text = line.strip().partition(" ")
    if not space:
        raise UserError(f"{where}: expected an id and its text, separated by a space")
    if identity not in recordings:
        raise UserError(f"{where}: its recording {identity}.flac is missing from the folder")
    path = str(transcript.parent / f"{identity}.flac")
    if root:
        path = inside(path, root, where)
    return identity, path, unicodedata.normalize("NFC", text), where
