"""Quotation marks of a CSV that nothing closes: they swallow the lines up to the next mark.

Such a mark (inches, or a title that begins with one) is told by what it swallows: lines that are
whole rows on their own. It is written again as a character, and the rows are read.
"""

from __future__ import annotations

import functools
import re
from typing import Final

_FEW: Final = 2  # line ends in a field that is closed well, of a file of several columns
_MANY: Final = 5  # of a file of two: lines of prose may hold one comma each
_MOSTLY: Final = 0.5  # of the lines that a badly closed mark swallows, as others may be broken


def mended(text: bytes, delimiter: str, width: int) -> tuple[bytes, int]:
    """The text with such marks quoted as characters, and how many there were.

    Args:
        text: whole records in UTF-8.
        delimiter: one character.
        width: columns of the file.
    """
    if width < 2 or len(delimiter.encode()) != 1:
        return text, 0  # a single column has no rows that can be told from its texts
    opens, field = _patterns(delimiter.encode())
    parts: list[bytes] = []
    done = at = found = 0
    while start := opens.search(text, at):
        mark = start.end() - 1
        end = _closing(text, mark + 1)
        if b"\n" in text[mark:end] and _swallows(text, mark, end, delimiter.encode(), width):
            match = field.match(text, mark)
            assert match
            inner = match[0].removesuffix(b"\r")
            parts += [text[done:mark], b'"', inner.replace(b'"', b'""'), b'"']
            done = at = mark + len(inner)
            found += 1
        else:
            at = end
    return b"".join([*parts, text[done:]]), found


@functools.cache
def _patterns(mark: bytes) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """Where a quoted field begins, and a field that is not quoted."""
    sign = re.escape(mark)
    return re.compile(rb'(?:\A|(?<=[\n%b]))"' % sign), re.compile(rb"[^\n%b]*" % sign)


def _closing(text: bytes, at: int) -> int:
    """Behind the mark that closes a field, or the end; doubled marks do not."""
    while (end := text.find(b'"', at)) >= 0:
        if text[end + 1 : end + 2] != b'"':
            return end + 1
        at = end + 2
    return len(text)


def _swallows(text: bytes, mark: int, end: int, delimiter: bytes, width: int) -> bool:
    """Whether lines of a quoted field, the first and last with what is around it, are rows."""
    first = text.rfind(b"\n", 0, mark) + 1
    last = text.find(b"\n", end)
    lines = text[first : last if last >= 0 else len(text)].rstrip(b"\r\n").split(b"\n")
    if _fields(lines[0], delimiter) != width:
        return False
    if len(lines) == 1:  # the last line; without its end it may have been cut off
        return text.endswith(b"\n")
    whole = sum(_fields(line, delimiter) == width for line in lines)
    closed = text[end - 1 : end] == b'"' and end - 1 > mark
    if closed and (end == len(text) or text[end : end + 1] in (delimiter, b"\r", b"\n")):
        return whole == len(lines) > (_FEW if width > 2 else _MANY)
    return whole > _MOSTLY * len(lines)


def _fields(line: bytes, delimiter: bytes) -> int:
    """How many fields a line has by itself: those that are quoted well may hold delimiters."""
    return len(_field(delimiter).findall(line.removesuffix(b"\r"))) if line.strip() else 0


@functools.cache
def _field(mark: bytes) -> re.Pattern[bytes]:
    sign = re.escape(mark)
    return re.compile(rb'(?:\A|%b)(?:"(?:[^"]|"")*"(?=%b|\Z)|[^%b]*)' % (sign, sign, sign))
