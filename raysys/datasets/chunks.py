"""Text files as chunks that end where records do; what cannot be read is named, not lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from raysys.datasets.encodings import as_utf8
from raysys.datasets.fetching import of_storage, opened
from raysys.datasets.files import Fault, Part
from raysys.datasets.unpack import DAMAGE, unpacked

CHUNK: Final = 16 << 20
"""Bytes of text parsed at a time."""

BOM: Final = b"\xef\xbb\xbf"
_LONGEST: Final = 64 << 20  # a record longer than this ends at the chunk: an unclosed quote


@dataclass(frozen=True)
class Lost:
    """The rest of a file cannot be read."""

    reason: str
    message: str
    passing: bool = False  # see `files.Fault`


def chunks(part: Part, *, quoted: bool, encoding: str = "utf-8") -> Iterator[bytes | Lost]:
    """Whole records of a file, some megabytes at a time; last what stopped the reading, if so.

    They are in the file's encoding, for `utf8` to decode; in UTF-8 where that is `auto` or UTF-16.
    """
    rest = b""
    first = True
    try:
        with opened(part.path) as packed:
            file = as_utf8(unpacked(packed), encoding, PurePosixPath(part.path).name)
            while data := file.read(CHUNK):
                rest += data.removeprefix(BOM) if first else data
                first = False
                end = _last_end(rest, quoted)
                if end:
                    yield rest[:end]
                    rest = rest[end:]
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        yield from _whole(rest)
        yield Lost("truncated_file", str(error))
        return
    except OSError as error:
        yield from _whole(rest)
        yield Lost("unreadable_file", str(error), of_storage(error))
        return
    if rest:
        yield rest


def _whole(rest: bytes) -> Iterator[bytes]:
    """What is left before a truncation, without the line it cuts."""
    end = rest.rfind(b"\n") + 1
    if end:
        yield rest[:end]


def _last_end(data: bytes, quoted: bool) -> int:
    """Where the last whole record ends: behind a line end outside quotes; 0 when there is none."""
    end = data.rfind(b"\n") + 1
    if not quoted or len(data) > _LONGEST:
        return end
    inside = data.count(b'"', 0, end) % 2 == 1
    while inside and end:  # step back over the line ends of the open quote
        opening = data.rfind(b'"', 0, end)
        end = data.rfind(b"\n", 0, opening) + 1
        inside = data.count(b'"', 0, end) % 2 == 1
    return end


def utf8(data: bytes, encoding: str) -> bytes:
    """The same text as valid UTF-8; U+FFFD for what the encoding does not have."""
    if encoding not in ("utf-8", "auto", "utf-16"):  # the latter two: `chunks` has done it
        return data.decode(encoding, "replace").encode()
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace").encode()
    return data


def as_fault(lost: Lost, row: int) -> Fault:
    """What was lost after so many rows."""
    return Fault(row + 1 if row else 0, lost.reason, lost.message, lost.passing)
