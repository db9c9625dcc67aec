"""The LibriSpeech layout: ROOT/split/speaker/chapter/*.flac with one *.trans.txt a chapter."""

import pathlib
import unicodedata

from bljust_jax.common.errors import UserError
from bljust_jax.data.sources import Utterance, inside, read_lines, with_durations


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
        raise UserError(
            f"librispeech:{rest}: no such folder: {split}; name one as LibriSpeech/train-clean-100"
        )
    found = []
    for transcript in sorted(split.glob("*/*/*.trans.txt")):
        recordings = {path.stem for path in transcript.parent.iterdir() if path.suffix == ".flac"}
        for where, line in read_lines(transcript):
            found.append(_utterance(line, where, transcript.parent, recordings, root))
    return with_durations(found)


def _utterance(
    line: str, where: str, folder: pathlib.Path, recordings: set[str], root: str
) -> Utterance:
    """One transcript line `ID TEXT`; its duration is not known yet."""
    identity, space, text = line.strip().partition(" ")
    if not space:
        raise UserError(f"{where}: expected an id and its text, separated by a space")
    if identity not in recordings:
        raise UserError(
            f"{where}: its recording {identity}.flac is missing from the folder; unpack the archive"
            " again"
        )
    path = str(folder / f"{identity}.flac")
    if root:
        path = inside(path, root, where)
    text = unicodedata.normalize("NFC", text)
    return Utterance(identity, path, 0.0, 0.0, text, "en", identity.split("-")[0], where)
