"""Count the frames of MP3 files (ISO/IEC 11172-3, 13818-3), which carry no length of their own.

An encoder may write the count into the first frame ("Xing", "Info" or "VBRI"). Without it, decoders
estimate it from the bit rate of the first frames, and stop early where the rate varies.
"""

from typing import NamedTuple

TAGS = (b"Xing", b"Info", b"VBRI")
_ID3, _ENDS = b"ID3", (b"TAG", b"APETAGEX", b"LYRICSBEGIN")
# kbit/s by index 1 to 14
_RATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES[2, 3] = _RATES[2, 2]
_HZ = (44100, 48000, 32000)


class Frame(NamedTuple):
    """kind: what all frames of a file share; size: bytes, header included; samples: per channel."""

    kind: tuple[int, ...]
    size: int
    samples: int


class Count(NamedTuple):
    """The frames of a file: place of the first one, their number, samples per frame; cut: whether
    the last one is incomplete (and not counted)."""

    start: int
    frames: int
    samples: int
    cut: bool


def frame_at(data: bytes, at: int) -> Frame | None:
    """The frame whose header is at a place; None if no header with a bit rate is there."""
    head = int.from_bytes(data[at : at + 4], "big")
    if len(data) - at < 4 or head >> 21 != 0x7FF:
        return None
    version, layer = head >> 19 & 3, 4 - (head >> 17 & 3)  # version 3: MPEG-1, 2: -2, 0: -2.5
    rate, hz = head >> 12 & 15, head >> 10 & 3
    if version == 1 or layer == 4 or rate in (0, 15) or hz == 3:
        return None
    first = version == 3
    kbits = _RATES[1 if first else 2, layer][rate - 1]
    hertz, padded = _HZ[hz] >> (0 if first else 1 if version == 2 else 2), head >> 9 & 1
    samples = 384 if layer == 1 else 1152 if first or layer == 2 else 576
    unit = 4 if layer == 1 else 1
    size = (samples * 125 * kbits // hertz // unit + padded) * unit
    return Frame((version, layer, hz), size, samples)


def count(data: bytes) -> Count | None:
    """The frames of a file without a count of its own; None for a file with one, or without frames.

    Bytes between frames are skipped, as decoders do; a frame after them counts if another follows.
    """
    at, frames, first = audio_start(data), 0, None
    start = at
    while at + 4 <= len(data) and not data.startswith(_ENDS, at):
        frame = frame_at(data, at)
        known = frame is not None and (first is None or frame.kind == first.kind)
        if known and (frames or frame_at(data, at + frame.size)):
            if first is None:
                if any(tag in data[at : at + 48] for tag in TAGS):
                    return None
                first, start = frame, at
            if at + frame.size > len(data):
                return Count(start, frames, first.samples, True)
            frames, at = frames + 1, at + frame.size
            continue
        at = data.find(b"\xff", at + 1)
        while at >= 0 and not _pair(data, at, first):
            at = data.find(b"\xff", at + 1)
        if at < 0:
            break
    return Count(start, frames, first.samples, False) if first else None


def has_frames(data: bytes) -> bool:
    """Whether two frames of one kind follow each other anywhere after the tags."""
    at = data.find(b"\xff", audio_start(data))
    while at >= 0 and not _pair(data, at, None):
        at = data.find(b"\xff", at + 1)
    return at >= 0


def _pair(data: bytes, at: int, first: Frame | None) -> bool:
    """Whether two frames of one kind follow each other at a place, that of `first` if given."""
    frame = frame_at(data, at)
    after = frame and frame_at(data, at + frame.size)
    return bool(after) and frame.kind == after.kind == (first or frame).kind


def audio_start(data: bytes) -> int:
    """Where the audio begins, after ID3v2 tags."""
    at = 0
    while data.startswith(_ID3, at) and len(data) >= at + 10:
        size = 0
        for byte in data[at + 6 : at + 10]:
            size = size << 7 | byte & 127
        at += 10 + size + (10 if data[at + 5] & 16 else 0)
    return at


def with_count(data: bytes, found: Count) -> bytes:
    """The file with a first frame that holds the number of the frames that follow, and no tags."""
    head = bytearray(data[found.start : found.start + 4])
    head[1] |= 1  # no checksum
    head[2] = head[2] & 0x0C | 0x80  # a bit rate whose frame has room for the tag
    frame, mono = frame_at(bytes(head), 0), head[3] >> 6 == 3
    side = (17 if mono else 32) if frame.kind[0] == 3 else (9 if mono else 17)
    tag = b"Info" + (1).to_bytes(4, "big") + found.frames.to_bytes(4, "big")
    return bytes(head + bytes(side) + tag).ljust(frame.size, b"\0") + data[found.start :]
