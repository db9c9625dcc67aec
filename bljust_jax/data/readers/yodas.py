"""YODAS: `yodas:ROOT/en000`, all shards of a subset, or `yodas:ROOT/en000/00000000`, one of them.

The published layout, under ROOT or ROOT/data (Li et al., YODAS, ASRU 2023):

    en000/audio/00000000.tar.gz     ID.wav of each utterance
    en000/text/00000000.txt         ID TEXT
    en000/duration/00000000.txt     ID SECONDS

with ID = VIDEO-NUMBER-START-END in hundredths of a second. gzip cannot be read from the middle, so
a shard is unpacked once to a plain tar file (`gunzip`); recordings then are read at their places in
it and nothing more is unpacked.
"""

import concurrent.futures
import contextlib
import functools
import math
import pathlib
import re
import tarfile
import unicodedata

from bljust_jax.common.errors import UserError
from bljust_jax.data.sources import Utterance, inside, read_lines


def read(rest: str, root: str = "") -> list[Utterance]:
    """The utterances of a subset's shards, ordered by shard, then as in its text.

    Shards are those whose audio is there. lang: the letters of the subset (en000 gives en; 000 has
    captions of hand, 100 automatic ones); speaker: the video; a caption without words is no text.
    The index of a shard is read from its tar headers, its audio only when it is asked for. An
    utterance that the tar file lacks, as one that was cut off does, has a `fault`. Raises UserError
    for a missing folder, shard, text or duration file, a shard that is still compressed, a bad
    line, or, where `root` is given, a folder or shard outside it.
    """
    subset, shard = _locate(rest, root)
    names = [shard] if shard else sorted({p.name.split(".")[0] for p in _tars(subset)})
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
    if root:
        inside(path, root, f"yodas:{rest}")
    folders = (path, path / "audio", path / "text", path / "duration")
    missing = next((folder for folder in folders if not folder.is_dir()), None)
    if missing or not re.match("[a-z]", path.name):
        raise UserError(
            f"yodas:{rest}: no such folder: {missing or path}; name ROOT/en000 or"
            " ROOT/en000/00000000, where en000 holds audio, text and duration"
        )
    return path, shard


def _tars(subset: pathlib.Path) -> list[pathlib.Path]:
    return [p for p in (subset / "audio").iterdir() if p.name.endswith((".tar", ".tar.gz"))]


def _tar(subset: pathlib.Path, name: str, rest: str, root: str) -> pathlib.Path:
    tar = subset / "audio" / f"{name}.tar"
    if not tar.is_file():
        packed = tar.with_suffix(".tar.gz")
        cure = f"unpack it once: gunzip {packed}" if packed.is_file() else "download it"
        raise UserError(f"yodas:{rest}: no such file: {tar}; {cure}")
    return pathlib.Path(inside(tar, root, f"yodas:{rest}")) if root else tar


def _shard(subset: pathlib.Path, tar: pathlib.Path) -> list[Utterance]:
    lang = re.match("[a-z]+", subset.name)[0]
    durations = {}
    for fields, where in _lines(subset / "duration" / f"{tar.stem}.txt"):
        durations[fields[0]] = _seconds(fields, where)
    places = _index(tar)
    utterances = []
    for (identity, *text), where in _lines(subset / "text" / f"{tar.stem}.txt"):
        caption = unicodedata.normalize("NFC", " ".join(text).strip())
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
                fetch=functools.partial(_fetch, str(tar), *place) if place else None,
                fault=fault,
            )
        )
    return utterances


def _lines(path: pathlib.Path) -> list[tuple[list[str], str]]:
    """("ID", rest of the line) of each line, with its "file:line"."""
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
    try:
        seconds = float(fields[-1]) if len(fields) == 2 else math.nan
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"{where}: expected an id and its seconds, above 0, with a space between")
    return seconds


def _index(tar: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Name without extension -> (place, bytes) of each whole file in a plain tar file; UserError
    for an absolute name or one with "..".

    Of a damaged file those before the damage: its other utterances then lack their recordings.
    """
    size, places = tar.stat().st_size, {}
    with contextlib.suppress(tarfile.ReadError), tarfile.open(tar, "r:") as archive:
        while member := archive.next():
            path = pathlib.PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise UserError(f"{tar}: holds {path}, outside of itself: fetch it again")
            place, end = member.offset_data, member.offset_data + member.size
            if member.isreg() and not member.issparse() and end <= size:
                places[path.stem] = place, member.size
            archive.members.clear()  # else it keeps every header
    return places


def _fetch(tar: str, place: int, size: int) -> bytes:
    with open(tar, "rb") as file:
        file.seek(place)
        return file.read(size)
