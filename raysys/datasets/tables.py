"""Tables as they lie about: delimiters, quoting, encoding and packing told by the content.

CSV with any usual delimiter, JSON lines, Parquet, and TREC's qrels; packed or not. A table is read
whole, or in blocks of bounded size of which few rows are wanted.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.datasets.arrow_values import to_polars
from raysys.datasets.chunks import Lost, chunks
from raysys.datasets.encodings import SAMPLE, told
from raysys.datasets.files import Part
from raysys.datasets.table_csv import Wide, read_csv
from raysys.datasets.table_layouts import (
    ENDINGS,
    Kind,
    Layout,
    ending_of,
    layout_of,
)
from raysys.datasets.unpack import DAMAGE, Bytes, unpacked
from raysys.errors import UserError

log = logging.getLogger("raysys")

QUOTED = r'^"(?:[^"]|"")*"$'
"""A field that is quoted as in CSV, marks within it doubled."""
_HEAD: Final = 1 << 20  # bytes of text by which a layout is told
_ROWS: Final = 65_536  # of a Parquet block
_BROKEN: Final = (pl.exceptions.PolarsError, pa.ArrowException, OSError, *DAMAGE)
_ALONE: Final = re.compile(rb"(?<![\x80-\xff])[\x80-\xff](?![\x80-\xff])")
_HIGH: Final = re.compile(rb"[\x80-\xff]")
_SEPARATOR_TOLD: Final = re.compile(rb'(\xef\xbb\xbf)?"?sep=[^\r\n]"?\r?\n', re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """A file, and how it is written.

    Attributes:
        path: of it.
        layout: its kind, columns and delimiter.
    """

    path: Path
    layout: Layout

    @property
    def columns(self) -> tuple[str, ...]:
        """Names, as the file spells them; a qrels' or a bare file's are given."""
        return self.layout.columns

    @cached_property
    def codec(self) -> str:
        """What the whole file is read in; warns of what is guessed."""
        codec, broken = _codec(self.path)
        name = self.path.name
        if codec != "utf-8":
            log.warning("%s: the file is not UTF-8: it is read as %s", name, codec)
        elif broken:
            log.warning("%s: some bytes are not UTF-8, and are read as \ufffd", name)
        return codec

    def read(self, columns: Sequence[str]) -> pl.DataFrame:
        """These columns, whole; those of CSV are texts, empty ones null.

        Raises:
            UserError: the file cannot be read.
        """
        kind = self.layout.kind
        with _told(self.path, kind):
            if kind == "parquet":
                with _parquet(self.path) as file:
                    return pl.read_parquet(file, columns=list(columns))
            wide = Wide()
            frame = self._parsed(utf8(_content(self.path), self.codec), columns, wide)
        wide.tell(self.path, self.layout)
        absent = [pl.lit(None, pl.String).alias(n) for n in columns if n not in frame.columns]
        return frame.with_columns(absent).select(columns)

    def blocks(self, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """These columns as texts, some megabytes at a time; null where a record lacks one.

        Raises:
            UserError: the file cannot be read, or a column holds nested values.
        """
        kind = self.layout.kind
        with _told(self.path, kind):
            if kind == "parquet":
                with _parquet(self.path) as file:
                    batches = pq.ParquetFile(file).iter_batches(_ROWS, columns=list(columns))
                    for batch in batches:
                        yield texts(to_polars(batch), columns)
                return
            if kind in ("json", "qrels") or self.codec.startswith("utf-16"):
                yield texts(self.read(columns), columns)
                return
            part = Part(f"file://{self.path.absolute()}", self.path.name, "csv", 0)
            first, begun, wide = b"", False, Wide()
            for chunk in chunks(part, quoted=kind == "csv" and self.layout.quoted):
                if isinstance(chunk, Lost):
                    raise EOFError(chunk.message or chunk.reason)
                text = utf8(chunk, self.codec, begins=not begun)
                begun = True
                if kind == "csv":
                    text = text if first else text.lstrip(b"\r\n")
                    # every block begins with the header, for one way of reading them all
                    if not first and self.layout.header:
                        first = text[: self.layout.header_end(text)]
                    elif self.layout.header:
                        text = first + text
                    yield texts(self._parsed(text, columns, wide), columns)
                else:
                    yield _json_texts(text, columns)
            wide.tell(self.path, self.layout)

    def _parsed(
        self, text: bytes, columns: Sequence[str], wide: Wide | None = None
    ) -> pl.DataFrame:
        """At least these columns, if the text, in UTF-8, has them."""
        layout = self.layout
        if layout.kind == "json":
            return pl.read_json(io.BytesIO(text), infer_schema_length=None)
        if layout.kind == "jsonl":
            return pl.read_ndjson(io.BytesIO(text), infer_schema_length=None)
        if layout.kind == "qrels":
            rows = (line.split() for line in text.decode().splitlines())
            shaped = [row for row in rows if len(row) == len(layout.columns)]
            return pl.DataFrame(shaped, schema=list(layout.columns), orient="row")
        frame = read_csv(text, layout, wide or Wide())
        return frame.select(name for name in layout.columns if name in columns)


def look(path: Path, wanted: Sequence[str] = (), *, whole: bool = False) -> Table:
    """A file, and how it is written.

    Args:
        path: CSV, TSV, JSON lines, Parquet or qrels, perhaps packed.
        wanted: columns that are asked for by name: the delimiter that gives them is the right one.
        whole: the file will be read whole: it may be looked through for what its first megabyte
            does not tell.

    Raises:
        UserError: no such file, an unknown kind, or one that cannot be read as its name says.
    """
    if not path.is_file():
        raise UserError("no such file", where=str(path))
    ending = ending_of(path)
    kind = ENDINGS.get(ending)
    with _told(path, kind or "csv"):
        head = _head(path)
        if kind == "parquet" or head.startswith(b"PAR1"):
            with _parquet(path) as file:
                names = pq.ParquetFile(file).schema_arrow.names
            return Table(path, Layout("parquet", tuple(names)))
        whole_lines = head if len(head) < _HEAD else head[: head.rfind(b"\n") + 1] or head
        codec = "utf-8" if _is_utf8(whole_lines) else _codec(path)[0]
        text = utf8(whole_lines, codec)
        layout = layout_of(text.decode().removeprefix("\ufeff"), path, wanted)
        if kind is None and layout.kind in ("csv", "qrels") and len(layout.columns) < 2:
            raise UserError(
                f"a file of unknown kind {ending or path.name!r}",
                where=str(path),
                mend=f"give one that ends with {', '.join(ENDINGS)}, or with .gz behind that",
            )
        if layout.kind == "csv":
            text = utf8(_content(path), codec) if whole and layout.delimiter == "\t" else text
            return Table(path, _with_quotes(layout, text))
        lacks = layout.kind == "jsonl" and len(head) == _HEAD and set(wanted) - {*layout.columns}
        if layout.kind == "json" or (lacks and whole):
            frame = Table(path, layout)._parsed(utf8(_content(path), codec), ())
            layout = replace(layout, columns=tuple(frame.columns))
    return Table(path, layout)


def texts(frame: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """Columns as texts; those that are not there are null."""
    have = [name for name in columns if name in frame.columns]
    lack = [pl.lit(None, pl.String).alias(name) for name in columns if name not in have]
    if not have:
        return pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
    return frame.select(as_text(frame, name) for name in have).with_columns(lack).select(columns)


def as_text(frame: pl.DataFrame, name: str) -> pl.Expr:
    """A column as text; lists, of bullet points say, joined by ". ".

    Raises:
        UserError: it holds nested values.
    """
    column, kind = pl.col(name), frame.schema[name]
    if isinstance(kind, pl.List) and not kind.inner.is_nested():
        each = column.list.eval(pl.element().cast(pl.String))
        return each.list.join(". ", ignore_nulls=True)
    if kind.is_nested() or kind == pl.Binary:
        raise UserError(
            f"column {name!r} holds {kind}", where=name, mend="give a column of texts or numbers"
        )
    return column.cast(pl.String)


def utf8(content: bytes, codec: str, *, begins: bool = True) -> bytes:
    """The text in UTF-8, U+FFFD for what its codec does not have.

    Args:
        content: of a file, or a part of it.
        codec: see `Table.codec`.
        begins: it is the file's beginning, where a line for Excel (`sep=;`) may stand.
    """
    if not (codec == "utf-8" and _is_utf8(content)):
        # a cut head of UTF-16 ends within a character
        errors = "ignore" if codec.startswith("utf-16") else "replace"
        content = content.decode(codec, errors).encode()
    line = _SEPARATOR_TOLD.match(content) if begins else None
    return content[line.end() :] if line else content


def _is_utf8(content: bytes) -> bool:
    """Whether all of it is; UTF-16 of ASCII would be, too, but for what its zeros say."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in content[:SAMPLE] or told(content[:SAMPLE]) == "utf-8"


def _codec(path: Path) -> tuple[str, bool]:
    """What a text file is read in, by all of its lines that are not ASCII; and if any is broken."""
    decoder, valid = codecs.getincrementaldecoder("utf-8")(), True
    lines: list[bytes] = []
    size, rest, begun = 0, b"", False
    with path.open("rb") as file:
        source = unpacked(file)
        while size < SAMPLE and (part := source.read(SAMPLE)):
            if not begun and (codec := told(part)).startswith("utf-16"):
                return codec, False
            begun = True
            if valid:
                try:
                    decoder.decode(part)
                except UnicodeDecodeError:
                    valid = False
            *whole, rest = (rest + part).split(b"\n")
            found = [line for line in whole if not line.isascii()]
            lines += found
            size += sum(map(len, found))
        if valid:  # so far
            try:
                while part := source.read(SAMPLE):
                    decoder.decode(part)
                decoder.decode(b"", final=True)
            except UnicodeDecodeError:
                valid = False
    if valid:
        return "utf-8", False
    said = b"\n".join([*lines, rest])
    codec = told(said)
    # Western letters stand alone between those of ASCII, of other scripts' bytes few do
    if codec not in ("utf-8", "cp1252") and 2 * len(_ALONE.findall(said)) > len(
        _HIGH.findall(said)
    ):
        codec = "cp1252"
    return codec, True


def _json_texts(text: bytes, columns: Sequence[str]) -> pl.DataFrame:
    """JSON lines as texts: without a look at columns that are not wanted, which may be thousands.

    Raises:
        PolarsError: it is no JSON.
    """
    frame = pl.read_ndjson(io.BytesIO(text), schema=dict.fromkeys(columns, pl.String))
    begins = frame.select(pl.all().str.starts_with("[").any()).row(0)
    lists = [name for name, found in zip(columns, begins, strict=True) if found]
    if not lists:
        return frame
    try:
        told = pl.read_ndjson(io.BytesIO(text), schema=dict.fromkeys(lists, pl.List(pl.String)))
    except pl.exceptions.PolarsError:  # some are lists, others texts: as JSON writes them
        return frame
    return frame.with_columns(texts(told, lists))


@contextlib.contextmanager
def _told(path: Path, kind: Kind) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot be read as {kind}: {first}", where=str(path)) from None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return _read(unpacked(file), _HEAD)


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return _read(unpacked(file))


def _read(source: Bytes, most: int | None = None) -> bytes:
    """All of a stream, or its first bytes."""
    parts: list[bytes] = []
    size = 0
    while (most is None or size < most) and (
        part := source.read(1 << 20 if most is None else most - size)
    ):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _parquet(path: Path) -> IO[bytes]:
    """A Parquet file, unpacked in memory if it is packed as a whole."""
    with path.open("rb") as file:
        if file.read(4) != b"PAR1" and ending_of(path) != path.suffix.lower():
            return io.BytesIO(_content(path))
    return path.open("rb")


def _with_quotes(layout: Layout, text: bytes) -> Layout:
    """Whether quotation marks quote: in files with tabs they may be inches and emphasis."""
    if layout.delimiter != "\t":
        return layout
    return replace(layout, quoted=_quotes(text))


def _quotes(text: bytes) -> bool:
    """Whether a TSV has quotes as in CSV: a mark that is never closed swallows tabs and lines.

    Raises:
        PolarsError: it can be read neither way.
    """

    def read(quote: str | None) -> pl.DataFrame | pl.exceptions.PolarsError:
        try:
            return pl.read_csv(text, infer_schema_length=0, separator="\t", quote_char=quote)
        except pl.exceptions.PolarsError as error:
            return error

    if b'"' not in text:
        return True
    quoted, bare = read('"'), read(None)
    if isinstance(quoted, pl.DataFrame) and isinstance(bare, pl.DataFrame):
        # lines within quoted fields lack their last columns where quotes mean nothing
        if _short_rows(bare) > _short_rows(quoted):
            return True
        return not (bare.height > quoted.height or _misquoted(bare))
    if isinstance(quoted, pl.DataFrame):
        return True
    if isinstance(bare, pl.DataFrame):
        return False
    raise quoted


def _short_rows(frame: pl.DataFrame) -> int:
    """Rows without a value in the last column."""
    return frame[frame.columns[-1]].null_count()


def _misquoted(bare: pl.DataFrame) -> bool:
    """Whether a field opens with a mark and is none that a writer of quoted fields writes."""
    every = pl.all()
    wrong = every.str.starts_with('"') & ~every.str.contains(QUOTED)
    return any(bare.select(wrong.any()).row(0))
