"""Tar archives: an index of their files, read at their places, and patterns that name shards."""

import contextlib
import itertools
import math
import os
import pathlib
import re
import tarfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bljust_jax.common.errors import UserError
from bljust_jax.data.byte_ranges import ByteRange

BLOCK = 512  # bytes of a tar header
LARGEST_TEXT = 1 << 24  # bytes of a text within an archive
MOST_SHARDS = 1 << 20  # names that one pattern may give
# {first bytes of a compressed file: the command that unpacks it}
_PACKED = {
    b"\x1f\x8b": "gunzip",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
}
# What is no file and no folder, by tarfile's type
_OTHER = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


class Member(NamedTuple):
    """A file of an archive: its name, where its bytes are, and the bytes themselves of a text."""

    name: str
    place: ByteRange
    content: bytes | None = None


class Index(NamedTuple):
    """The complete files of an archive, in order; damage: why it may have more, "" if it ends as it
    should."""

    members: list[Member]
    damage: str


def read_index(
    tar: str | os.PathLike, is_text: Callable[[str], bool] = lambda name: False
) -> Index:
    """The files of a plain tar archive; those that `is_text` names are read, no other bytes.

    In a damaged archive, the files before the damage. Folders and names that begin with "._" are
    left out. Raises UserError for a compressed archive, which has no random access, and, with the
    name, for a member that is absolute, has "..", is a link, device or sparse file, or has a size
    that no file has.
    """
    size, found = os.path.getsize(tar), []
    _require_plain(tar)
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(tarfile.open(tar, "r:"))
        except tarfile.ReadError:
            return Index([], f"{tar} is no tar archive")
        file = archive.fileobj
        while member := _next(archive):
            _require_file(member, tar)
            place, end = member.offset_data, member.offset_data + member.size
            if end > size:
                have = f"has {member.size} bytes by its header, but {max(size - place, 0)} follow"
                return Index(found, f"{tar} ends early: {member.name} {have}")
            if member.isreg() and not pathlib.PurePosixPath(member.name).name.startswith("._"):
                content = _text(file, member, tar) if is_text(member.name) else None
                found.append(Member(member.name, ByteRange(str(tar), place, member.size), content))
            archive.members.clear()  # tarfile keeps every header
        at = archive.offset
        file.seek(at)
        end = file.read(BLOCK)
    if end.strip(b"\0"):
        return Index(found, f"{tar} is damaged after {at} bytes")
    return Index(found, "" if end else f"{tar} ends early: its end mark is missing")


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next header; None at the end and at damage."""
    try:
        return archive.next()
    except (tarfile.TarError, ValueError, OverflowError):  # also of an extended header's fields
        return None


def _require_plain(tar: str | os.PathLike) -> None:
    with open(tar, "rb") as file:
        head = file.read(8)
    for magic, command in _PACKED.items():
        if head.startswith(magic):
            cure = f"unpack it once ({command}), as its files are read at their places"
            raise UserError(f"{tar}: is compressed; {cure}")


def _require_file(member: tarfile.TarInfo, tar: str | os.PathLike) -> None:
    """UserError for a member that is neither a file nor a folder within the archive."""
    path = pathlib.PurePosixPath(member.name)
    kind = _OTHER.get(member.type, "" if member.isreg() or member.isdir() else "no file")
    if member.issparse():
        kind = _OTHER[tarfile.GNUTYPE_SPARSE]
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{tar}: holds {member.name}, outside of itself: fetch it again")
    if kind:
        cure = "pack it again without: tar --dereference --hard-dereference"
        raise UserError(f"{tar}: {member.name} is {kind}, which is not read; {cure}")
    if member.size < 0:
        raise UserError(f"{tar}: {member.name} has a size of {member.size} bytes: fetch it again")


def _text(file, member: tarfile.TarInfo, tar: str | os.PathLike) -> bytes:
    if member.size > LARGEST_TEXT:
        raise UserError(
            f"{tar}#{member.name}: is a text of {member.size} bytes, more than {LARGEST_TEXT};"
            " remove it"
        )
    file.seek(member.offset_data)
    return file.read(member.size)


def expand(pattern: str, what: str) -> list[str]:
    """The names that a pattern gives: `a-{000..002}.tar` three, `{dev,test}.tar` two, in order.

    NeMo's `_OP_0..2_CL_` are braces. Raises UserError for a range that is none.
    """
    pattern = pattern.replace("_OP_", "{").replace("_CL_", "}")
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    if "{" in "".join(pieces[::2]) or "}" in "".join(pieces[::2]):
        raise UserError(f"{what}: has a brace without its other; write a range as {{000..099}}")
    choices = [_choices(piece, what) if n % 2 else [piece] for n, piece in enumerate(pieces)]
    if math.prod(map(len, choices)) > MOST_SHARDS:
        raise UserError(f"{what}: gives more than {MOST_SHARDS} names; correct its ranges")
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(piece: str, what: str) -> Sequence[str]:
    """What stands for `000..099` or `dev,test`."""
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", piece)
    if not ends:
        if "," not in piece:
            raise UserError(f"{what}: {{{piece}}} is no range; write {{000..099}} or {{a,b}}")
        return piece.split(",")
    first, last = int(ends[1]), int(ends[2])
    if last < first:
        raise UserError(f"{what}: {{{piece}}} ends before it starts; exchange its numbers")
    if last - first >= MOST_SHARDS:
        raise UserError(f"{what}: {{{piece}}} gives more than {MOST_SHARDS} names; correct it")
    width = len(ends[1]) if ends[1].startswith("0") or len(ends[1]) == len(ends[2]) else 0
    return [f"{n:0{width}d}" for n in range(first, last + 1)]


def find_shards(pattern: str, folder: str, what: str) -> list[str]:
    """The paths of the shards that a pattern names, relative to `folder`, or the *.tar files of a
    folder, in order of their numbers. Raises UserError naming the first that is missing."""
    if re.match(r"pipe:|[a-z0-9]+://", pattern):
        kind = "a command, which is not run" if pattern.startswith("pipe:") else "remote"
        raise UserError(f"{what}: is {kind}; download the shards and name their files")
    path = os.path.join(folder, pattern)
    if os.path.isdir(path):
        found = [str(p) for p in pathlib.Path(path).glob("*.tar") if not p.name.startswith(".")]
        if not found:
            raise UserError(f"{what}: no *.tar in {path}; name a pattern of shards")
        return sorted(found, key=_by_number)
    paths = [path] if os.path.isfile(path) else expand(path, what)
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        count = f" ({len(missing)} of {len(paths)} shards are missing)" if len(paths) > 1 else ""
        raise UserError(f"{what}: no such file: {missing[0]}{count}; download it, or correct it")
    return paths


def _by_number(path: str) -> list[tuple[int, str]]:
    """Key of an order in which 2 comes before 10."""
    parts = re.split(r"(\d+)", path)
    return [(int(part), "") if n % 2 else (0, part) for n, part in enumerate(parts)]
