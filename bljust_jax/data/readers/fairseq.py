"""Reader of fairseq's manifests: `fairseq:DIR/SPLIT`, with SPLIT.tsv and SPLIT.wrd or SPLIT.ltr.

    SPLIT.tsv    the folder of the audio, then PATH<tab>FRAMES per utterance
    SPLIT.wrd    the words of each utterance, in the same order
    SPLIT.ltr    its letters: `H E L L O | W O R L D |`

(fairseq/examples/wav2vec; a split without .wrd and .ltr is unlabelled)
"""

import pathlib
import re

from bljust_jax.common.errors import UserError
from bljust_jax.data.listings import Finder, report_unlabelled, text_of
from bljust_jax.data.sources import Utterance, inside, read_lines, require, with_durations


def read(rest: str, root: str = "") -> list[Utterance]:
    """The utterances of a split (`rest`, relative to a given `root`), in the order of its table.

    id: the path without extension. The words of .wrd are taken before the letters of .ltr. Lengths
    come from the audio's headers: FRAMES count samples of a rate that the table does not name. The
    folder in line 1 must lie in `root`, by default in DIR. Raises UserError for a missing file or
    recording, a malformed line, or labels of another number of lines.
    """
    path = pathlib.Path(root, rest.removesuffix(".tsv")).absolute()
    table = path.with_name(f"{path.name}.tsv")
    require(table, f"fairseq:{rest}", "name DIR/SPLIT of a manifest DIR/SPLIT.tsv", "file")
    lines = list(read_lines(table))
    if not lines:
        raise UserError(f"{table}: is empty; its first line names the folder of the audio")
    limit = root or str(table.parent)
    folder = _folder(lines[0], table.parent, limit)
    texts, audio = _texts(path, len(lines) - 1, table), Finder((folder,), limit)
    found, seen = [], {}
    for (where, line), (text, place) in zip(lines[1:], texts, strict=True):
        named = _path(line, where)
        first = seen.setdefault(named, where)
        if first != where:
            raise UserError(f"{where}: {named!r} is in {first}, too; remove one")
        file = audio.find(named, where)
        identity = str(pathlib.PurePosixPath(named).with_suffix(""))
        place = place or where
        found.append(Utterance(identity, file, 0.0, 0.0, text_of(text), "", identity, place))
    return report_unlabelled(with_durations(found), f"fairseq:{rest}")


def listing(rest: str, root: str = "") -> list[pathlib.Path]:
    """The files that declare the utterances."""
    path = pathlib.Path(root, rest.removesuffix(".tsv")).absolute()
    files = (path.with_name(f"{path.name}{suffix}") for suffix in (".tsv", ".wrd", ".ltr"))
    return [file for file in files if file.is_file()]


def _folder(line: tuple[str, str], beside: pathlib.Path, limit: str) -> pathlib.Path:
    """The folder that the first line names."""
    where, named = line[0], line[1].strip()
    if "\t" in named:
        raise UserError(f"{where}: the first line must name the folder of the audio; insert it")
    folder = beside / named
    inside(folder, limit, where)
    require(folder, where, "correct the folder in the first line")
    return folder


def _path(line: str, where: str) -> str:
    """The path of an utterance's line."""
    fields = line.rstrip("\r\n").split("\t")
    if len(fields) != 2:
        raise UserError(f"{where}: has {len(fields)} fields; write PATH and FRAMES, with a tab")
    named, frames = fields
    if not re.fullmatch("[1-9][0-9]*", frames.strip()):
        raise UserError(f"{where}: {frames.strip()!r} is no number of frames above 0; correct it")
    if re.search(r"\.zip:\d+:\d+$", named):
        raise UserError(f"{where}: {named!r} is a place in an archive; unpack it and name the file")
    return named


def _texts(path: pathlib.Path, count: int, table: pathlib.Path) -> list[tuple[str, str]]:
    """(text, "file:line") of each utterance; empty ones without a file of labels."""
    for suffix in (".wrd", ".ltr"):
        labels = path.with_name(f"{path.name}{suffix}")
        if labels.is_file():
            lines = list(read_lines(labels, blank=True))
            if len(lines) != count:
                raise UserError(
                    f"{labels}:{len(lines)}: is its last line, but {table} lists {count}"
                    " utterances; make both again from one list"
                )
            if suffix == ".ltr":
                return [(_words(line, where), where) for where, line in lines]
            return [(line, where) for where, line in lines]
    return [("", "")] * count


def _words(line: str, where: str) -> str:
    """`H E L L O | W O R L D |` gives HELLO WORLD."""
    letters = line.split()
    word = next((letter for letter in letters if len(letter) > 1), None)
    if word is not None:
        raise UserError(f"{where}: {word!r} is no letter; write letters with spaces, | after words")
    return "".join(letters).replace("|", " ")
