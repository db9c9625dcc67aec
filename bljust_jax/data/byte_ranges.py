"""A file within a larger file, such as a member of a tar archive, read at its place."""

import dataclasses
import io
import os


@dataclasses.dataclass(frozen=True, slots=True)
class ByteRange:
    """`size` bytes from `start` on of the file at `path`; a call reads them."""

    path: str
    start: int
    size: int

    def __call__(self) -> bytes:
        """The bytes; OSError if the file ends before."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            found = file.read(self.size)
        if len(found) < self.size:
            raise OSError(f"{self.path} ends within it: fetch it again")
        return found

    def open(self) -> io.BufferedReader:
        """A seekable stream of the bytes, of which only those are read that are asked for."""
        return io.BufferedReader(_Window(self))


class _Window(io.RawIOBase):
    """The stream of a ByteRange."""

    def __init__(self, place: ByteRange):
        self._file = open(place.path, "rb", buffering=0)  # noqa: SIM115 closed by `close`
        self._place, self._at = place, 0

    def close(self) -> None:
        self._file.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._place.size}[whence]
        if base + offset < 0:
            raise OSError(f"seek to {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer) -> int:
        wanted = min(len(buffer), max(self._place.size - self._at, 0))
        self._file.seek(self._place.start + self._at)
        found = self._file.readinto(memoryview(buffer)[:wanted])
        self._at += found
        return found
