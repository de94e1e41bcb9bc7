"""Text files in any encoding as streams of UTF-8; `auto` tells the encoding from the bytes."""

from __future__ import annotations

import codecs
import functools
import logging
import re
from typing import Final, Literal

from raysys.datasets.unpack import DAMAGE, Bytes

log = logging.getLogger("raysys")

Encoding = Literal[
    "utf-8", "latin-1", "cp1252", "auto", "utf-16", "gb18030", "big5", "shift_jis", "euc-kr"
]

SAMPLE: Final = 1 << 20
"""Bytes by which an encoding is told."""

_STREAMED: Final = ("auto", "utf-16")  # what no cut at line ends leaves whole
_MULTIBYTE: Final = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
_HIGH: Final = re.compile(rb"[\x80-\xff]")
_MOSTLY: Final = 0.8  # of bytes outside ASCII that are UTF-8 in a file that is meant to be
_HAN: Final = re.compile("[\u3000-\u303f\u3041-\u30ff\u4e00-\u9fff\uff01-\uff5e]")
_ASIAN: Final = (
    # what is written in a codec, and how much of its text that is at least; in this order, as
    # bytes of one can be those of another, but then say what nobody writes
    # Korean by its commonest syllables: GB18030 read so is Korean, too, but of rare ones
    ("euc-kr", re.compile("[이다는은을를의에도고하지로한요기사인리자대해서]"), 0.08),
    ("euc_jp", re.compile("[\u3041-\u30ff]"), 0.3),
    ("cp932", re.compile("[\u3041-\u30ff]"), 0.3),
    ("gb18030", re.compile("[\u3000-\u303f\u4e00-\u9fff\uff01-\uff5e]"), 0.8),
    ("big5", re.compile("[\u3000-\u303f\u4e00-\u9fff\uff01-\uff5e]"), 0.95),
    ("cp932", _HAN, 0.95),  # kanji alone, as titles may be
    ("cp874", re.compile("[\u0e01-\u0e2e]"), 0.45),  # Thai by its consonants
)
_COMMON: Final = {
    # pairs of bytes of a codec, and which of them begin what is written often: signs, and of
    # ideographs those that its standard lists first; other scripts read so are the rare ones
    "gb18030": (re.compile(rb"[\xa1-\xf7][\xa1-\xfe]"), {0xA1, 0xA3, *range(0xB0, 0xD8)}),
    "big5": (re.compile(rb"[\x81-\xfe][\x40-\x7e\xa1-\xfe]"), {0xA1, 0xA2, *range(0xA4, 0xC7)}),
    "cp932": (
        re.compile(rb"[\x81-\x9f\xe0-\xfc][\x40-\x7e\x80-\xfc]"),
        {*range(0x81, 0x84), *range(0x88, 0x99)},
    ),
}
_OFTEN: Final = 0.75  # of pairs that must be common
_SURE: Final = 0.9  # of bytes outside ASCII that must belong to such pairs, in GB18030
_TOGETHER: Final = re.compile(r"[^\x00-\x7f]{2,}")
_BESIDE: Final = 0.5  # of such characters beside others: an accented letter is among ASCII ones
_ZEROS: Final = 0.2  # of every other byte: ASCII in UTF-16 has zeros in half of its bytes


def told(sample: bytes) -> str:
    """The codec that a file begins in: UTF-8 where that is as likely as any other.

    Args:
        sample: its first bytes; a character may be cut at their end.
    """
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for codec, zeros in (("utf-16-le", sample[1::2]), ("utf-16-be", sample[::2])):
        if zeros.count(0) > _ZEROS * len(zeros) and sample.count(0) < 0.9 * len(sample):
            return codec
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
        return "utf-8"  # nearly all files, and a megabyte at once: byte by byte takes 0.2 s
    except UnicodeDecodeError:
        high = len(_HIGH.findall(sample))
    well = sum(len(match) for match in _MULTIBYTE.findall(sample))
    if well >= _MOSTLY * high:  # a broken byte here and there is U+FFFD, not another encoding
        return "utf-8"
    return next(
        (codec for codec, script, least in _ASIAN if _says(sample, codec, script, least)), "cp1252"
    )


def _says(sample: bytes, codec: str, script: re.Pattern[str], least: float) -> bool:
    """Whether every byte can be of a codec, and the characters are those that it is for."""
    try:
        text = codecs.getincrementaldecoder(codec)().decode(sample)
    except UnicodeDecodeError:
        return False
    high = sum(not char.isascii() for char in text)
    if len(script.findall(text)) < least * high or not high:
        return False
    if sum(len(run) for run in _TOGETHER.findall(text)) < _BESIDE * high:
        return False
    if codec not in _COMMON:
        return True
    pair, common = _COMMON[codec]
    pairs = pair.findall(sample)
    if codec == "gb18030" and 2 * len(pairs) < _SURE * len(_HIGH.findall(sample)):
        return False
    return sum(each[0] in common for each in pairs) >= _OFTEN * len(pairs) > 0


def as_utf8(stream: Bytes, encoding: str, name: str = "") -> Bytes:
    """The stream as UTF-8, for encodings that cannot be decoded line by line, and for `auto`.

    Args:
        stream: at its beginning.
        encoding: as settings name it.
        name: of the file; the log tells once how it is read, if not as UTF-8.
    """
    if encoding not in _STREAMED:
        return stream
    head = _filled(stream, SAMPLE)
    codec = told(head)
    if encoding == "utf-16" and not codec.startswith("utf-16"):
        codec = "utf-16-le"
    if codec == "utf-8":
        return _Resumed(head, stream)
    if name and encoding == "auto":
        _tell(name, codec)
    return _Recoded(_Resumed(head, stream), codec)


@functools.lru_cache(maxsize=1024)
def _tell(name: str, codec: str) -> None:
    log.info("%s is no UTF-8 and read as %s; `encoding` may say another", name, codec)


def _filled(stream: Bytes, size: int) -> bytes:
    """The first bytes of a stream: as many as are wanted, if there are."""
    head = b""
    try:
        while len(head) < size and (more := stream.read(size - len(head))):
            head += more
    except (OSError, *DAMAGE):
        if not head:
            raise  # else the next read tells it again, once this was given
    return head


class _Resumed:
    """A stream of which the head was read."""

    def __init__(self, head: bytes, rest: Bytes) -> None:
        self._head = head
        self._rest = rest

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; empty at the end."""
        if self._head:
            given, self._head = self._head[:size], self._head[size:]
            return given
        return self._rest.read(size)


class _Recoded:
    """A stream in another codec as UTF-8; U+FFFD for what the codec does not have."""

    def __init__(self, stream: Bytes, codec: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(codec)("replace")
        self._ended = False

    def read(self, size: int) -> bytes:
        """About `size` bytes; empty at the end."""
        while not self._ended:
            data = self._stream.read(size)
            self._ended = not data
            if text := self._decoder.decode(data, final=self._ended):
                return text.encode()
        return b""
