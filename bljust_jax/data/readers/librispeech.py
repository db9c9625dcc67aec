"""Reader of LibriSpeech: ROOT/split/speaker/chapter/*.flac with one *.trans.txt per chapter."""

import pathlib

from bljust_jax.common.errors import UserError
from bljust_jax.common.files import visible
from bljust_jax.data.sources import Utterance, inside, nfc, read_lines, require, with_durations


def read(rest: str, root: str = "") -> list[Utterance]:
    """The utterances of a split folder (`rest`, relative to a given `root`), ordered by id.

    Ids and speakers come from the file names, texts from the transcripts, durations from the FLAC
    headers. Raises UserError for a missing folder, a malformed transcript line, a transcript
    without its recording, or a split or recording outside a given `root`.
    """
    split = pathlib.Path(root, rest).absolute()
    inside(split, root, f"librispeech:{rest}")
    require(split, f"librispeech:{rest}", "name one as LibriSpeech/train-clean-100")
    found = []
    for transcript in visible(split.glob("*/*/*.trans.txt")):
        recordings = {path.stem for path in transcript.parent.iterdir() if path.suffix == ".flac"}
        for where, line in read_lines(transcript):
            found.append(_utterance(line, where, transcript.parent, recordings, root))
    return with_durations(found)


def listing(rest: str, root: str = "") -> list[pathlib.Path]:
    """The split's folder, those of its chapters, and their transcripts."""
    split = pathlib.Path(root, rest).absolute()
    transcripts = visible(split.glob("*/*/*.trans.txt"))
    return [split, *(file for path in transcripts for file in (path.parent, path))]


def _utterance(
    line: str, where: str, folder: pathlib.Path, recordings: set[str], root: str
) -> Utterance:
    """The utterance of one transcript line `ID TEXT`, without its duration."""
    identity, space, text = line.strip().partition(" ")
    if not space:
        raise UserError(f"{where}: expected an id and its text, separated by a space")
    if identity not in recordings:
        problem = f"its recording {identity}.flac is missing from the folder"
        raise UserError(f"{where}: {problem}; unpack the archive again")
    path = inside(folder / f"{identity}.flac", root, where)
    return Utterance(identity, path, 0.0, 0.0, nfc(text), "en", identity.split("-")[0], where)
