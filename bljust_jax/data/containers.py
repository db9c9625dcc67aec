"""Open audio files, and compare the length that their headers declare with the bytes that follow.

libsndfile takes the shorter of both without an error. The chunks of a container say which of them
is wrong; where no function here reads them, the log of libsndfile does.
"""

import contextlib
import io
import os
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import soundfile
from jaxtyping import Float

from bljust_jax.data import mpeg
from bljust_jax.data.byte_ranges import ByteRange

BLOCK = 1 << 18  # samples decoded at a time: no header makes a reader allocate more
RATES = (1000, 1 << 20)  # Hz; a header with another sample rate is damaged
HEAD = 1 << 16  # bytes in which the tags of an MP3 file are looked for
CANCELLED = 1e-4  # of the power of a channel, the mean of channels that cancel each other
LOUDEST = 100.0  # a larger sample in a float format is in the range of integers
SLACK = 0.1  # seconds by which headers and manifests may differ from the audio
UNKNOWN = 1 << 60  # frames of a stream without a length are more, by libsndfile
# Bytes of a chunk in the header of a stream whose writer could not seek back: ffmpeg and SoX
_STREAMED = (range(0x7FFFF000, 0x80000000), range(0xFFFFF000, 0x100000000), range(-1, 0))


class Sound(soundfile.SoundFile):
    """An audio file that is read from its start to its end, in blocks.

    soundfile seeks after each read of a seekable file, which fails with some codecs and with
    streams of unknown length.
    """

    def seekable(self) -> bool:
        return False

    @property
    def can_seek(self) -> bool:
        """Whether `seek` works."""
        codec = self.subtype.startswith("DWVW")  # libsndfile claims that it can
        return super().seekable() and self.frames < UNKNOWN and not codec


class Length(NamedTuple):
    """seconds: of audio by the headers; held: by the bytes that are there; problem: in what they
    differ, "" if they agree."""

    seconds: float
    held: float
    problem: str = ""


def open_sound(source: str | bytes | io.BufferedIOBase) -> Sound:
    """The opened file of a path or a binary stream.

    An MP3 file without a count of its frames is given one, which libsndfile would estimate. A name
    *.raw is no format: the content decides. Raises soundfile.SoundFileError or OSError.
    """
    if isinstance(source, str):
        source = os.fsencode(source)
    if isinstance(source, bytes) and source.lower().endswith(b".raw"):
        source = io.BytesIO(_content(source))
    elif isinstance(source, bytes) and source.lower().endswith(b".mp3"):
        _require_frames(source)
    sound = Sound(source)
    if sound.format == "MP3":
        found, data = _count_frames(source)
        if found and abs(found.frames * found.samples - sound.frames) > 2 * found.samples:
            data = mpeg.with_count(data, found)
            sound.close()
            sound = Sound(io.BytesIO(data))
    if not RATES[0] <= sound.samplerate <= RATES[1]:
        sound.close()
        raise soundfile.SoundFileError(f"its header has {sound.samplerate} samples per second")
    return sound


def _require_frames(path: bytes) -> None:
    """Raise SoundFileError for a file that is MP3 by its name alone, such as a page of a web site:
    the decoder of MP3 writes lines to stderr for any other content."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
        if mpeg.has_frames(head) or mpeg.has_frames(head + file.read()):
            return
    try:
        Sound(io.BytesIO(head)).close()  # has no name: another format by its content
    except soundfile.SoundFileError as error:
        raise soundfile.SoundFileError("does not decode as MP3") from error


def open_whole(source: str | bytes | io.BufferedIOBase) -> tuple[Sound, Length]:
    """As `open_sound`, with the length; a header that declares fewer samples than follow it is
    corrected."""
    sound = open_sound(source)
    try:
        found = _length(sound, source)
        if sound.frames < UNKNOWN and found.held <= found.seconds:
            return sound, found
    except BaseException:
        sound.close()
        raise
    sound.close()  # `_length` has decoded it, or it would end early
    return _open_corrected(source), found


def _open_corrected(source: str | bytes | io.BufferedIOBase) -> Sound:
    """The opened file, whose header declares all samples that follow it."""
    with _reader(source) as data:
        size = data.seek(0, os.SEEK_END)
        chunk = _chunk(data, size)
        if chunk is None or not 0 <= chunk.size < size - chunk.start or chunk.end >= size:
            return open_sound(source)
        data.seek(0)
        content = bytearray(data.read())
    wanted = size - chunk.start + chunk.counted
    struct.pack_into(chunk.format, content, chunk.field, min(wanted, 2**31 - 1))
    return open_sound(io.BytesIO(content))


def _content(source: bytes | io.BufferedIOBase) -> bytes:
    if isinstance(source, bytes):
        with open(source, "rb") as file:
            return file.read()
    place = source.tell()  # of libsndfile
    source.seek(0)
    content = source.read()
    source.seek(place)
    return content


def _count_frames(source: bytes | io.BufferedIOBase) -> tuple[mpeg.Count | None, bytes]:
    """(frames of an MP3 file, None if it has their count, and its bytes: all unless None)."""
    with _reader(source) as file:
        head = file.read(HEAD)
        if mpeg.audio_start(head) + 4096 < len(head) and mpeg.count(head) is None:
            return None, head
        data = head + file.read()
        return mpeg.count(data), data


def blocks(sound: Sound, frames: int = -1, dtype: str = "float32") -> Iterator[np.ndarray]:
    """The next `frames` of a file, by default all that follow, as blocks [S, channels]."""
    most = max(BLOCK // sound.channels, 1)
    while frames:
        wanted = most if frames < 0 else min(most, frames)
        block = sound.read(wanted, dtype, always_2d=True)
        if not len(block):
            return
        if frames > 0:
            frames -= len(block)
        yield block


class Mono:
    """Iterator over the next `frames` of a file, by default all, as float32 blocks [S]: the mean
    over channels.

    frames: decoded so far; doubt: what is unlikely in them, "" for nothing. Raises SoundFileError
    for samples that are not finite.
    """

    def __init__(self, sound: Sound, frames: int = -1):
        self.frames = 0
        self._sound, self._wanted = sound, frames
        self._power = np.zeros(2)  # of one channel, of the mean
        self._largest = 0.0

    def __iter__(self) -> Iterator[Float[np.ndarray, "_"]]:
        for block in blocks(self._sound, self._wanted):
            mono = block.mean(axis=1)
            if not np.isfinite(mono).all():
                raise soundfile.SoundFileError("it has samples that are not finite")
            if block.shape[1] > 1:
                self._power += np.sum(np.square(block[:, 0])), np.sum(np.square(mono))
            if self._sound.subtype in ("FLOAT", "DOUBLE"):
                self._largest = max(self._largest, float(np.abs(block).max()))
            self.frames += len(mono)
            yield mono

    @property
    def doubt(self) -> str:
        if self._power[1] < CANCELLED * self._power[0]:
            return "has channels that cancel each other, so their mean is silence"
        if self._largest > LOUDEST:
            return f"has samples up to {self._largest:g} in a format whose range is -1 to 1"
        return ""


def length(source: str | bytes | ByteRange | io.BufferedIOBase) -> Length:
    """The length of an audio file by its headers and by its bytes. Decodes only files whose
    container has no length. Raises soundfile.SoundFileError or OSError."""
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(source.open()) if isinstance(source, ByteRange) else source
        return _length(stack.enter_context(open_sound(opened)), source)


def _length(sound: Sound, source: str | bytes | ByteRange | io.BufferedIOBase) -> Length:
    """`length` of an opened file, of which nothing has been read."""
    rate, frames = sound.samplerate, sound.frames
    if frames >= UNKNOWN:
        frames = sum(map(len, blocks(sound)))
    with _reader(source) as data:
        declared, held, cut = _extent(sound, data, frames)
    declared, held = declared / rate, held / rate
    if declared > held + SLACK:
        return Length(declared, held, f"ends early: {held:.2f} of {declared:.2f} s")
    if held > declared + SLACK:
        problem = f"holds {held:.2f} s of audio, but its header declares {declared:.2f} s"
        return Length(declared, held, problem)
    return Length(declared, held, f"ends early, after {held:.2f} s: {cut}" if cut else "")


def _reader(source: str | bytes | ByteRange | io.BufferedIOBase) -> io.BufferedIOBase:
    """The bytes of a source, from the start, that may be closed."""
    if isinstance(source, ByteRange):
        return source.open()
    if isinstance(source, str | bytes):
        return open(source, "rb")
    return io.BytesIO(_content(source))


def _extent(
    sound: Sound, data: io.BufferedIOBase, frames: int
) -> tuple[float | int, float | int, str]:
    """(frames declared, frames held, how a file of unknown length shows that it is cut).

    frames: as libsndfile counts them."""
    size, log = data.seek(0, os.SEEK_END), sound.extra_info
    found = _chunk(data, size)
    if found is not None:
        width = _WIDTHS.get(sound.subtype, 1) * sound.channels
        return *_in_frames(found, frames, size, width), ""
    if sound.format == "NIST":
        data.seek(0)
        counted = re.search(rb"^sample_count -i (\d+)", data.read(4096), re.MULTILINE)
        return int(counted[1]) if counted else frames, frames, ""
    if sound.format in _COUNTED:
        counted = re.findall(_COUNTED[sound.format], log)
        found = int(counted[-1]) if counted else frames
        return (frames, found, "") if sound.format == "SDS" else (found, frames, "")
    sizes = re.search(r"(?:BODY : |truncated\. |Data length )(\d+)\D+(\d+)", log)
    if sizes:
        fewer, more = sorted(map(int, sizes.groups()))
        return frames * more / max(fewer, 1), frames, ""
    if sound.format == "MP3":
        counted, _ = _count_frames(data)
        return frames, frames, "within a frame" if counted and counted.cut else ""
    if sound.format == "OGG":
        return frames, frames, "" if _has_last_page(data, size) else "its last page is missing"
    return frames, frames, "its last block is missing" if "truncated file" in log else ""


def _has_last_page(data: io.BufferedIOBase, size: int) -> bool:
    """Whether an Ogg file ends with a whole page that is marked as the last (RFC 3533, 6)."""
    data.seek(max(size - (1 << 17), 0))
    end = data.read()
    page = end[max(end.rfind(b"OggS"), 0) :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return False
    segments = page[27 : 27 + page[26]]
    return bool(page[5] & 4) and len(page) >= 27 + len(segments) + sum(segments)


# Bytes per sample
_WIDTHS = {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
# The number of frames in the log, by format
_COUNTED = {
    "AVR": r"Frames\s*: (\d+)",
    "MPC2K": r"Frames\s*: (\d+)",
    "SDS": r"Frames\s*: (\d+)",
    "MAT5": r"Cols\s*: (\d+)",
}


class _Data(NamedTuple):
    """The chunk of samples: where it starts, its bytes by its header (-1: unknown), where the
    chunks after it end; field, format: where the size stands, and counted: its excess over
    `size`."""

    start: int
    size: int
    end: int
    field: int
    format: str
    counted: int = 0


def _in_frames(chunk: _Data, frames: int, size: int, width: int) -> tuple[float | int, float | int]:
    """(frames declared, frames held) of a file of `size` bytes in which libsndfile finds
    `frames`; width: bytes per frame if it finds none."""
    there = size - chunk.start
    if chunk.size < 0 or (chunk.size > there and any(chunk.size in r for r in _STREAMED)):
        return frames, frames
    used = min(chunk.size, there)
    per_frame = used / frames if frames and used else width
    rest = max(size - chunk.end, 0) if chunk.size <= there else 0
    return frames + max(chunk.size - there, 0) / per_frame, frames + rest / per_frame


class _Layout(NamedTuple):
    """first: place of the first chunk; name: bytes of a chunk's name, before its size; size: format
    of the size; inclusive: whether it counts the header; align: chunks start at multiples."""

    first: int
    name: int
    size: str
    inclusive: bool
    align: int


_LAYOUTS = {
    b"RIFF": _Layout(12, 4, "<I", False, 2),
    b"RF64": _Layout(12, 4, "<I", False, 2),
    b"RIFX": _Layout(12, 4, ">I", False, 2),
    b"FORM": _Layout(12, 4, ">I", False, 2),
    b"riff": _Layout(40, 16, "<q", True, 8),
    b"caff": _Layout(8, 4, ">q", False, 1),
}
_OTHER = (b"ID3", b"TAG", b"APETAGEX", b"LYRICS")  # tags that follow chunks without being one


def _chunk(data: io.BufferedIOBase, size: int) -> _Data | None:
    """The chunk of samples in a chunked container; None if there is none, or of another layout."""
    data.seek(0)
    head = data.read(24)
    if head[:4] == b".snd":
        start, declared = struct.unpack(">II", head[4:12])
        return _Data(start, declared, start + declared, 8, ">I")
    layout = _LAYOUTS.get(head[:4])
    if layout is None:
        return None
    at, long, found = layout.first, 0, None
    header = layout.name + struct.calcsize(layout.size)
    while at + header <= size:
        data.seek(at)
        head = data.read(header)
        name = head[:4]
        (length,) = struct.unpack(layout.size, head[layout.name :])
        body = length - header if layout.inclusive else length
        if found and (body < 0 or not _is_name(name) or at + header + body > size):
            break
        inner = data.read(min(max(body, 0), 40))
        if name == b"ds64":
            long = struct.unpack("<q", inner[8:16])[0] if len(inner) >= 16 else 0
        if name in (b"data", b"SSND"):
            body = long if long and body == 0xFFFFFFFF else body
            skip = 8 if name == b"SSND" else 4 if head[:1] == b"d" and layout.first == 8 else 0
            there = body if body < 0 else max(body - skip, 0)
            counted = skip + (header if layout.inclusive else 0)
            field = at + layout.name
            found = _Data(at + header + skip, there, size, field, layout.size, counted)
        if body < 0 or at + header + body > size:
            return found
        at = _next_chunk(data, at + header + body, layout.align)
    if found is None:
        return None
    return found._replace(end=_end(data, at, size))


def _next_chunk(data: io.BufferedIOBase, at: int, align: int) -> int:
    """The place of the chunk after one that ends at a place; some writers leave the padding out."""
    data.seek(at)
    unpadded = align == 2 and at % 2 and data.read(1).strip(b"\0 ")
    return at if unpadded else at + -at % align


def _is_name(name: bytes) -> bool:
    return all(32 <= byte < 127 for byte in name)


def _end(data: io.BufferedIOBase, at: int, size: int) -> int:
    """Where the chunks end: tags and zeros after them hold no audio."""
    at = min(at, size)
    data.seek(at)
    rest = data.read(1 << 20)
    return size if rest.startswith(_OTHER) or not rest.strip(b"\0") else at
