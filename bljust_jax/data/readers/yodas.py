"""Reader of YODAS: `yodas:ROOT/en000`, a subset, or `yodas:ROOT/en000/00000000`, one shard.

The published layout, under ROOT or ROOT/data (Li et al., YODAS, ASRU 2023):

    en000/audio/00000000.tar.gz     ID.wav of each utterance
    en000/text/00000000.txt         ID TEXT
    en000/duration/00000000.txt     ID SECONDS

with ID = VIDEO-NUMBER-START-END in hundredths of a second. gzip has no random access: a shard must
be unpacked to a plain tar file (`gunzip`), in which recordings are read at their offsets.
"""

import concurrent.futures
import functools
import math
import pathlib
import re

from bljust_jax.common.errors import UserError
from bljust_jax.common.files import visible
from bljust_jax.data import archives
from bljust_jax.data.byte_ranges import ByteRange
from bljust_jax.data.sources import Utterance, inside, nfc, read_lines, require, to_seconds


def read(rest: str, root: str = "") -> list[Utterance]:
    """The utterances of a subset's shards, ordered by shard, then as in its text.

    Shards are those with audio. lang: the letters of the subset (en000 gives en; 000 has manual
    captions, 100 automatic ones); speaker: the video; an empty caption is no text. The index of a
    shard comes from its tar headers. An utterance that the tar file lacks, for instance a truncated
    one, has a `fault`. Raises UserError for a missing folder, shard, text or duration file, a
    compressed shard, a malformed line, or a folder or shard outside a given `root`.
    """
    subset, shard = _locate(rest, root)
    tars = (p.name for p in visible((subset / "audio").iterdir()) if ".tar" in p.suffixes)
    names = [shard] if shard else sorted({name.split(".")[0] for name in tars})
    if not names:
        raise UserError(
            f"yodas:{rest}: no audio in {subset / 'audio'}; download its shards (*.tar.gz) there"
        )
    tars = [_tar(subset, name, rest, root) for name in names]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        shards = pool.map(functools.partial(_shard, subset), tars)
        return [u for utterances in shards for u in utterances]


def _locate(rest: str, root: str) -> tuple[pathlib.Path, str]:
    """(folder of the subset, name of the shard or "")."""
    path = pathlib.Path(root, rest).absolute()
    path, shard = (path.parent, path.name) if path.name.isdigit() else (path, "")
    if not path.is_dir():
        path = path.parent / "data" / path.name
    inside(path, root, f"yodas:{rest}")
    folders = (path, path / "audio", path / "text", path / "duration")
    missing = next((folder for folder in folders if not folder.is_dir()), None)
    if missing or not re.match("[a-z]", path.name):
        raise UserError(
            f"yodas:{rest}: no such folder: {missing or path}; name ROOT/en000 or"
            " ROOT/en000/00000000, where en000 holds audio, text and duration"
        )
    return path, shard


def _tar(subset: pathlib.Path, name: str, rest: str, root: str) -> pathlib.Path:
    tar = subset / "audio" / f"{name}.tar"
    packed = tar.with_suffix(".tar.gz")
    cure = f"unpack it once: gunzip {packed}" if packed.is_file() else "download it"
    require(tar, f"yodas:{rest}", cure, "file")
    return pathlib.Path(inside(tar, root, f"yodas:{rest}"))


def _shard(subset: pathlib.Path, tar: pathlib.Path) -> list[Utterance]:
    lang = re.match("[a-z]+", subset.name)[0]
    durations = {}
    for fields, where in _lines(subset / "duration" / f"{tar.stem}.txt"):
        durations[fields[0]] = _seconds(fields, where)
    places = _index(tar)
    utterances = []
    for (identity, *text), where in _lines(subset / "text" / f"{tar.stem}.txt"):
        caption = nfc(" ".join(text).strip())
        fault, place = "", places.get(identity)
        if place is None:
            fault = f"{where}: {tar} lacks {identity}.wav: it is damaged; fetch it again"
        elif identity not in durations:
            fault = f"{where}: {identity} has no line in the shard's duration file; add it"
        utterances.append(
            Utterance(
                id=identity,
                path=f"{tar}#{identity}",
                offset=0.0,
                duration=durations.get(identity, 0.0),
                text=caption or None,
                lang=lang,
                speaker=identity.rsplit("-", 3)[0],
                line=where,
                fetch=place,
                fault=fault,
            )
        )
    return utterances


def _lines(path: pathlib.Path) -> list[tuple[list[str], str]]:
    """([ID, rest of the line], "file:line") of each line."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; download it with the shard's audio")
    found = []
    for where, line in read_lines(path):
        fields = line.split(maxsplit=1)
        if len(fields[0].rsplit("-", 3)) != 4:
            raise UserError(f"{where}: {fields[0]!r} is no id as VIDEO-NUMBER-START-END; remove it")
        found.append((fields, where))
    return found


def _seconds(fields: list[str], where: str) -> float:
    seconds = to_seconds(fields[-1]) if len(fields) == 2 else math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"{where}: expected an id and its seconds, above 0, with a space between")
    return seconds


def _index(tar: pathlib.Path) -> dict[str, ByteRange]:
    """{name without extension: place} of the complete files in a plain tar file.

    In a damaged file, those before the damage.
    """
    members = archives.read_index(tar).members
    return {pathlib.PurePosixPath(member.name).stem: member.place for member in members}
