"""Packed files as streams of bytes: everything before damage is handed out, then it is told."""

from __future__ import annotations

import bz2
import lzma
import zipfile
import zlib
from collections.abc import Callable
from typing import IO, Any, Final, Protocol, cast

import pyarrow as pa

from raysys.datasets.fetching import of_storage

DAMAGE: Final = (EOFError, zlib.error, lzma.LZMAError, ValueError, zipfile.BadZipFile)
"""What a reader of `unpacked` raises for a file that is damaged or ends in the middle."""


class ArchiveError(ValueError):
    """An archive of which no file can be meant; its message says which, and after a colon the way
    out."""


_BLOCKS: Final = (b"1AY&SY", b"\x17rE8P\x90")  # how bzip2 goes on: a block, or the end
_PIECE: Final = 1 << 18  # packed bytes read at a time


class Bytes(Protocol):
    """What can be read from."""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; empty at the end."""


def unpacked(opened: IO[bytes]) -> Bytes:
    """The file's bytes, unpacked if they are packed (by content: endings lie).

    Args:
        opened: at its beginning; can be sought. Gzip, bzip2, xz, zstd, or a zip with one file.

    Raises:
        ArchiveError: an archive that holds no file or several, or cannot be read.
        BadZipFile: one that is damaged.
    """
    magic = opened.read(10)
    opened.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return _Unpacker(opened, _Gzip)
    if magic[:3] == b"BZh" and magic[4:] in _BLOCKS:
        return _Unpacker(opened, bz2.BZ2Decompressor)
    if magic.startswith(b"\xfd7zXZ\x00"):
        return _Unpacker(opened, lzma.LZMADecompressor)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return _Zstd(opened)
    if magic.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zipped(opened)
    return opened


def _zipped(opened: IO[bytes]) -> Bytes:
    """The only file of an archive; what macOS adds to archives does not count."""
    archive = zipfile.ZipFile(opened)
    names = [
        name
        for name in archive.namelist()
        if not name.endswith(("/", ".DS_Store")) and not name.startswith("__MACOSX/")
    ]
    if "[Content_Types].xml" in names:
        raise ArchiveError("an Excel workbook: save the sheet as CSV (UTF-8) and give that")
    if len(names) != 1:
        shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        raise ArchiveError(
            f"an archive of {len(names)} files ({shown}): unpack it and name the one that is meant"
            if names
            else "an archive of no file: name another"
        )
    try:
        return cast(Bytes, archive.open(names[0]))
    except (RuntimeError, NotImplementedError) as error:  # a password, a rare way of packing
        raise ArchiveError(f"an archive that cannot be read ({error}): unpack it") from None


class _Gzip:
    """zlib's decompressor with the manners of the standard library's others."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)


class _Unpacker:
    """Unpacks piece by piece: `gzip.open` and its like drop their last buffer on damage."""

    def __init__(self, packed: IO[bytes], codec: Callable[[], Any]) -> None:
        self._packed = packed
        self._codec = codec
        self._stream = codec()
        self._error: Exception | None = None

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; empty at the end.

        Raises:
            EOFError, zlib.error, lzma.LZMAError: damage, once all before it was given.
            OSError: the storage failed, likewise.
        """
        got: list[bytes] = []
        total = 0
        while total < size and self._error is None:
            try:
                data = self._next(size - total)
            except OSError as error:  # bzip2 calls damage so, too
                self._error = error if of_storage(error) else EOFError(str(error))
                break
            except (EOFError, zlib.error, lzma.LZMAError) as error:
                self._error = error
                break
            if data is None:
                break
            got.append(data)
            total += len(data)
        if not total and self._error:
            raise self._error
        return b"".join(got)

    def _next(self, size: int) -> bytes | None:
        """Some bytes, perhaps none yet; None at the end."""
        if self._stream.eof:  # a file may hold several members, and padding after the last
            more = (self._stream.unused_data or self._packed.read(_PIECE)).lstrip(b"\0")
            if not more:
                return None
            self._stream = self._codec()
            return bytes(self._stream.decompress(more, size))
        if not self._stream.needs_input:
            return bytes(self._stream.decompress(b"", size))
        more = self._packed.read(_PIECE)
        if not more:
            raise EOFError("the file ends before its end marker")
        return bytes(self._stream.decompress(more, size))


class _Zstd:
    """Arrow's zstd; Python has none of its own before 3.14."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._stream = pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), "zstd")
        self._error: Exception | None = None

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; empty at the end.

        Raises:
            EOFError: damage, once all but the last small piece before it was given.
            OSError: the storage failed, likewise.
        """
        got: list[bytes] = []
        total = 0
        while total < size and self._error is None:
            try:
                data = self._stream.read(min(_PIECE, size - total))
            except OSError as error:
                told = EOFError(str(error).splitlines()[0])
                self._error = error if of_storage(error) else told
                break
            if not data:
                break
            got.append(data)
            total += len(data)
        if not total and self._error:
            raise self._error
        return b"".join(got)
