"""Audio sources: utterances of a corpus by URI, and their decoded audio."""

import collections
import concurrent.futures
import dataclasses
import io
import itertools
import json
import math
import os
import pathlib
import re
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Int16

from bljust_jax.common import plugins
from bljust_jax.common.errors import UserError
from bljust_jax.common.files import expand_user, write_text
from bljust_jax.data import containers, source_index, uri_names
from bljust_jax.data.byte_ranges import ByteRange
from bljust_jax.data.containers import Mono, Sound, blocks, open_sound
from bljust_jax.data.utterances import (
    Utterance,
    Utterances,
    concatenated,
    first_repeated,
)

READERS = "bljust_jax.data.readers"
# Formats with sample-exact seeking; Opus, Vorbis and MP3 are decoded whole and sliced.
SEEKABLE = frozenset({"WAV", "WAVEX", "RF64", "W64", "FLAC", "AIFF", "AU", "NIST", "CAF"})
# Cache of decoded lossy files, 9 hours at 16 kHz: a core decodes only 400 times real time.
DECODED_BYTES = 1 << 30
AT_ONCE = 1 << 14  # utterances of an iterator whose headers are read together


def open_source(uri: str, root: str = "") -> Utterances:
    """The utterances of a URI: `*.jsonl` (a manifest), `scheme:REST`, or several joined by "+".

    A scheme is the name of a module in `bljust_jax/data/readers` with `read(rest, root)`; `root` is
    the folder that must hold all audio ("" for the reader's default). The utterances of several
    sources have their source's name as `part`: the last component of its path without extension,
    followed by "-2", "-3" if the name repeats.
    Raises UserError for an unknown scheme, an empty corpus or an id that occurs twice.
    """
    utterances = read_source(uri, root)
    rows = first_repeated(utterances.ids)
    if rows:
        first, u = (utterances[row] for row in rows)
        raise UserError(
            f"{u.line or u.path}: id {u.id!r} was used before, at {first.line or first.path};"
            ' ids must be unique in a corpus: remove one, or give each an "id"'
        )
    return utterances


def read_source(uri: str, root: str = "") -> Utterances:
    """As `open_source`, with ids as they are: the same one may occur several times."""
    check(uri)
    root, uris = expand_user(root), _parts(uri)
    parts = [_read_part(part, root) for part in uris]
    names = _part_names(uris)
    return concatenated(
        [part.with_part(name) if name else part for part, name in zip(parts, names, strict=True)]
    )


def part_names(uri: str) -> list[str]:
    """The names of the sources that a URI joins, `part` of their utterances; [""] for one."""
    return _part_names(_parts(uri))


def _part_names(uris: Sequence[str]) -> list[str]:
    """A unique name for each of several sources; "" for a single one."""
    if len(uris) == 1:
        return [""]
    names: list[str] = []
    for uri in uris:
        stem = uri_names.name_of(uri)
        numbered = (f"{stem}-{n}" if n > 1 else stem for n in itertools.count(1))
        names.append(next(name for name in numbered if name not in names))
    return names


def inside(path: str | os.PathLike, root: str, where: str) -> str:
    """The path with symbolic links resolved; UserError, naming `where`, if it is outside `root`.
    Without a root, the path as it is."""
    if not root:
        return str(path)
    root, found = os.path.realpath(root), os.path.realpath(path)
    if os.path.commonpath([found, root]) != root:
        cure = "set config.data.root to a folder that holds it"
        raise UserError(f"{where}: {str(path)!r} lies outside the data root {root}; {cure}")
    return found


def require(path: pathlib.Path, where: str, cure: str, kind: str = "folder") -> None:
    """UserError `WHERE: no such KIND: PATH; CURE` if there is no folder, or file of that kind."""
    if not (path.is_dir() if kind == "folder" else path.is_file()):
        raise UserError(f"{where}: no such {kind}: {path}; {cure}")


def check(uri: str) -> None:
    """UserError for an unknown scheme or a missing manifest; reads nothing."""
    for part in _parts(uri):
        scheme, rest = _locate(part)
        path = expand_user(rest)
        if scheme == "manifest" and not os.path.isfile(path):
            kind = "is a folder, not a manifest" if os.path.isdir(path) else "no such manifest"
            raise UserError(f"{rest}: {kind}; name a file *.jsonl of one JSON object per line")


def _parts(uri: str) -> list[str]:
    """The URIs that "+" joins. A "+" within a path is no separator: what follows it is no URI."""
    if os.path.isfile(expand_user(uri)):
        return [uri]
    pieces = uri.split("+")
    return _uris(pieces) or pieces


def _uris(pieces: list[str]) -> list[str] | None:
    """The pieces, as few as possible joined again, so that each part is a URI; None if none are."""
    if not pieces:
        return []
    for n in range(1, len(pieces) + 1):
        part = "+".join(pieces[:n])
        if _is_uri(part) and (rest := _uris(pieces[n:])) is not None:
            return [part, *rest]
    return None


def _is_uri(part: str) -> bool:
    """Whether a part is an existing manifest, or a known scheme and a path without another URI."""
    scheme, _, rest = part.partition(":")
    if scheme in plugins.names(READERS) and scheme != "manifest":
        return bool(rest) and not re.search(r"\+[A-Za-z]\w*:|\+.*\.jsonl$", rest)
    return part.endswith(".jsonl") and os.path.isfile(expand_user(part.removeprefix("manifest:")))


def _locate(uri: str) -> tuple[str, str]:
    """(scheme, rest) of the URI of one source."""
    scheme, colon, rest = uri.partition(":")
    if uri.endswith(".jsonl") and not (colon and scheme.isidentifier()):
        scheme, rest = "manifest", uri
    known = plugins.names(READERS)
    if scheme not in known or not rest:
        found = " is a folder" if os.path.isdir(uri) else ""
        wanted = f"a *.jsonl manifest or SCHEME:REST with SCHEME one of {', '.join(known)}"
        raise UserError(
            f"cannot read {uri!r}{found}: expected {wanted}{uri_names.suggest(uri, known)}"
        )
    return scheme, rest


def _read_part(uri: str, root: str) -> Utterances:
    scheme, rest = _locate(uri)
    read = plugins.load(READERS, scheme, "read", "scheme")
    listing, rest = plugins.find(READERS, scheme, "listing"), expand_user(rest)
    files = listing(rest, root) if listing else []
    found = source_index.open_indexed(uri, root, files, lambda: read(rest, root))
    if not found:
        raise UserError(f"{uri}: no utterance found: it is empty; name a source that holds some")
    return found


def read_lines(path: str | os.PathLike, *, blank: bool = False) -> Iterator[tuple[str, str]]:
    """("path:number", line) of each non-blank line of a UTF-8 text file; `blank`: of all lines.

    A byte order mark and CRLF are accepted. Raises UserError naming a line that is not UTF-8.
    """
    with open(path, "rb") as file:
        for number, encoded in enumerate(file, start=1):
            try:
                line = encoded.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: is not UTF-8 text: {error.reason}; save the file as UTF-8"
                ) from error
            if blank or line.strip():
                yield f"{path}:{number}", line


def write_json_lines(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def with_durations(utterances: Sequence[Utterance], *, bounded: bool = False) -> list[Utterance]:
    """Replace durations of 0 by the length of the file from the offset on.

    Lengths come from the files' headers, each read once, by threads. If a header cannot be read, or
    declares another length than the file has, the duration stays 0 and `fault` has the reason.
    bounded: segments that end past the end of their file have a `fault`, too. Raises UserError for
    an offset past the end.
    """
    chosen = [not u.fault and (bounded or not u.duration) for u in utterances]
    files = {u.path: u for u in itertools.compress(utterances, chosen)}
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        lengths = dict(zip(files, pool.map(_length, files.values()), strict=True))
    pairs = zip(utterances, chosen, strict=True)
    return [_bounded(u, lengths[u.path]) if needed else u for u, needed in pairs]


def each_with_duration(
    utterances: Iterable[Utterance], *, bounded: bool = False
) -> Iterator[Utterance]:
    """`with_durations` of an iterator, some at a time."""
    rest = iter(utterances)
    while some := list(itertools.islice(rest, AT_ONCE)):
        yield from with_durations(some, bounded=bounded)


def _length(u: Utterance) -> containers.Length | str:
    """The length of an utterance's file, or the reason why it is not known."""
    try:
        source = u.fetch or u.path
        if u.fetch is not None and not isinstance(u.fetch, ByteRange):
            source = io.BytesIO(u.fetch())
        return containers.length(source)
    except (soundfile.SoundFileError, OSError) as error:
        return why(error, u.path)


def _bounded(u: Utterance, length: containers.Length | str) -> Utterance:
    """The utterance with a duration, or with a fault if it has no such audio."""
    if isinstance(length, str):
        fault = f"{u.line}: cannot read the header of {u.path}: {length}; replace or remove it"
        return dataclasses.replace(u, fault=fault)
    if length.problem:
        fault = f"{u.line}: {u.path} {length.problem}; replace the file or repair its header"
        return dataclasses.replace(u, fault=fault)
    duration = length.seconds - u.offset
    if u.offset and duration <= 0:
        raise UserError(
            f"{u.line}: offset {u.offset:g} s is past the end of {u.path} ({length.seconds:g} s);"
            " correct it"
        )
    if not duration:
        return dataclasses.replace(u, fault=f"{u.line}: {u.path} holds no audio; remove it")
    if u.duration > duration + containers.SLACK:
        end = f"ends at {u.offset + u.duration:g} s, past the end of {u.path}"
        fault = f"{u.line}: the segment {end} ({length.seconds:g} s); correct or remove it"
        return dataclasses.replace(u, fault=fault)
    return u if u.duration else dataclasses.replace(u, duration=duration)


def nfc(text: str) -> str:
    """The text in Unicode normal form C."""
    return unicodedata.normalize("NFC", text)


def to_seconds(text: str) -> float:
    """The number that a text spells; NaN, which no range holds, for another text."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def why(error: Exception, path: str) -> str:
    """The reason alone, without the path and the full stop that libsndfile puts around it."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = getattr(error, "error_string", text).removeprefix("Error : ").rstrip(".")
    if "possibly a pipe" in text and os.path.isfile(path):  # the decoder that the name suggests
        return f"does not decode as {pathlib.PurePath(path).suffix[1:].upper()}"
    return text


def read_audio(u: Utterance, sample_rate: int = 16000) -> Int16[np.ndarray, "s"]:
    """Mono int16 samples [S] of an utterance at `sample_rate`, S = round(duration * sample_rate).

    Channels are averaged, resampled (soxr HQ), rounded and saturated. Raises UserError naming line
    and file if the audio cannot be decoded or ends too early.
    """
    try:
        samples = _decode(u, sample_rate)
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(
            f"{u.line or u.id}: cannot decode {u.path}: {why(error, u.path)}; replace or remove it"
        ) from error
    wanted = round(u.duration * sample_rate)
    if len(samples) == 0 or len(samples) < wanted - containers.SLACK * sample_rate:
        found = f"{len(samples) / sample_rate:.2f} of {u.duration:.2f} s from {u.offset:.2f} s on"
        raise UserError(
            f"{u.line or u.id}: {u.path} ends early: {found}; replace the file or correct the entry"
        )
    return samples[:wanted]


def _decode(u: Utterance, sample_rate: int) -> np.ndarray:
    """The samples of `u`, a few more or fewer at its end."""
    key = (u.path, sample_rate)
    whole = _decoded.get(key)
    if whole is None:
        source = io.BytesIO(u.fetch()) if u.fetch else u.path  # fetch may decode, too: no lock
        with _decoded.lock(key), open_sound(source) as file:
            if file.format in SEEKABLE and file.can_seek:
                start = min(round(u.offset * file.samplerate), file.frames)
                file.seek(start)
                frames = round((u.offset + u.duration) * file.samplerate) - start
                return _to_mono(file, frames, sample_rate)
            whole = _decoded.get(key)
            if whole is None:
                whole = _to_mono(file, -1, sample_rate)
                _decoded.put(key, whole)
    start = round(u.offset * sample_rate)
    return whole[start : start + round(u.duration * sample_rate)]


def _to_mono(file: Sound, frames: int, sample_rate: int) -> np.ndarray:
    if file.subtype == "PCM_16" and file.channels == 1 and file.samplerate == sample_rate:
        return _joined([block[:, 0] for block in blocks(file, frames, "int16")], np.int16)
    mono = Mono(file, frames)
    audio = _joined(list(mono), np.float32)
    if mono.doubt:
        raise soundfile.SoundFileError(mono.doubt)
    if file.samplerate != sample_rate:
        audio = soxr.resample(audio, file.samplerate, sample_rate)
    return to_int16(audio * 32768)


def _joined(pieces: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return pieces[0] if len(pieces) == 1 else np.concatenate([np.zeros(0, dtype), *pieces])


def to_int16(samples: Float[np.ndarray, "s"]) -> Int16[np.ndarray, "s"]:
    """Rounded to the nearest integer and saturated at the limits of int16."""
    return np.clip(np.rint(samples), -32768, 32767).astype(np.int16)


class _Decoded:
    """Thread-safe LRU cache of decoded files, limited in bytes."""

    def __init__(self, limit: int):
        self._limit, self._bytes = limit, 0
        self._files: collections.OrderedDict = collections.OrderedDict()  # {(path, rate): samples}
        self._lock = threading.Lock()
        self._file_locks = [threading.Lock() for _ in range(256)]

    def lock(self, key: tuple[str, int]) -> threading.Lock:
        """The lock to hold while decoding a file, so that no file is decoded twice."""
        return self._file_locks[hash(key) % len(self._file_locks)]

    def get(self, key: tuple[str, int]) -> np.ndarray | None:
        with self._lock:
            if key in self._files:
                self._files.move_to_end(key)
            return self._files.get(key)

    def put(self, key: tuple[str, int], samples: np.ndarray) -> None:
        samples.flags.writeable = False
        with self._lock:
            if key not in self._files and samples.nbytes <= self._limit:
                self._files[key] = samples
                self._bytes += samples.nbytes
            while self._bytes > self._limit:
                self._bytes -= self._files.popitem(last=False)[1].nbytes


_decoded = _Decoded(DECODED_BYTES)


def encode_audio(samples: Int16[np.ndarray, "s"], sample_rate: int, container: str) -> bytes:
    """A mono 16-bit audio file, "WAV" or "FLAC"."""
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, format=container, subtype="PCM_16")
    return file.getvalue()
