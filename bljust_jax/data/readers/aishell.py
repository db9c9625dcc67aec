"""Reader of AISHELL-1: `aishell:ROOT/SPLIT`, splits train, dev, test.

The published layout, in ROOT/data_aishell or in ROOT itself (Bu et al., AISHELL-1, O-COCOSDA 2017):

    transcript/aishell_transcript_v0.8.txt      ID WORD WORD ... of all splits
    wav/train/S0002/BAC009S0002W0122.wav        the archives wav/S*.tar.gz, unpacked
"""

import pathlib
import re

from bljust_jax.common.errors import UserError
from bljust_jax.common.files import visible
from bljust_jax.data.sources import Utterance, inside, nfc, read_lines, require, with_durations

SPLITS = ("train", "dev", "test")
TRANSCRIPT = "transcript/aishell_transcript_v0.8.txt"
# The transcript separates all words by spaces; spaces beside a Chinese character are removed.
_HAN = "[\u3007\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_NO_SPACE = re.compile(f"(?<={_HAN}) | (?={_HAN})")


def read(rest: str, root: str = "") -> list[Utterance]:
    """The recordings of one split, ordered by speaker and id.

    text: the words of the transcript, NFC, with spaces only between words of Latin letters; None
    for a recording without a line in the transcript; lang: zh; speaker: the folder, S0002. Lines
    without a recording belong to other splits. Raises UserError for another split, a missing folder
    or transcript, a malformed or repeated line, or a folder or recording outside a given `root`.
    """
    top, split = _locate(rest, root)
    transcript, folder = top / TRANSCRIPT, top / "wav" / split
    cure = "unpack data_aishell.tgz"
    archives = f"{cure} and, in its folder wav, each of the archives S*.tar.gz"
    require(folder, f"aishell:{rest}", archives)
    require(transcript, f"aishell:{rest}", cure, "file")
    lines = _transcripts(transcript)
    found = []
    for recording in visible(folder.glob("*/*.wav")):
        text, where = lines.get(recording.stem, (None, str(recording)))
        path = inside(recording, root, where)
        speaker = recording.parent.name
        found.append(Utterance(recording.stem, path, 0.0, 0.0, text, "zh", speaker, where))
    return with_durations(found)


def _locate(rest: str, root: str) -> tuple[pathlib.Path, str]:
    """(folder with `transcript` and `wav`, split)."""
    path = pathlib.Path(root, rest).absolute()
    if path.name not in SPLITS:
        usage = f"name ROOT/SPLIT, for instance ROOT/train; splits are {', '.join(SPLITS)}"
        raise UserError(f"aishell:{rest}: {usage}")
    top = path.parent / "data_aishell"
    top = top if top.is_dir() else path.parent
    inside(top, root, f"aishell:{rest}")
    return top, path.name


def _transcripts(path: pathlib.Path) -> dict[str, tuple[str, str]]:
    """{id: (text, "file:line")}"""
    found: dict[str, tuple[str, str]] = {}
    for where, line in read_lines(path):
        identity, *words = line.split()
        if not words:
            raise UserError(f"{where}: expected an id and its words, with spaces between them")
        if identity in found:
            first = found[identity][1]
            raise UserError(f"{where}: {identity} was transcribed before, at {first}; remove one")
        found[identity] = spell(words), where
    return found


def spell(words: list[str]) -> str:
    """The text of a line's words: 播放 iron man 的 歌 gives 播放iron man的歌."""
    return nfc(_NO_SPACE.sub("", " ".join(words)))
