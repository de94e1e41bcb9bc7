"""Tables of judged pairs as they lie about: CSV and TSV of any quoting, JSON lines, Parquet."""

from __future__ import annotations

import gzip
import io
import logging
import zlib
from collections.abc import Callable
from pathlib import Path

import polars as pl

from raysys.errors import UserError

log = logging.getLogger("raysys")

QUOTED = r'^"(?:[^"]|"")*"$'
"""A field that is quoted as in CSV, marks within it doubled."""
OLD_ENCODING = "cp1252"
"""What spreadsheets save where they do not save UTF-8; it can read any byte, wrong ones as well."""


def read_table(path: Path) -> pl.DataFrame:
    """All columns of a file; those of CSV and TSV are texts.

    Args:
        path: CSV, TSV, JSON lines or Parquet; the first three may be gzipped.

    Raises:
        UserError: no such file, an unknown kind, or one that cannot be read as its name says.
    """
    if not path.is_file():
        raise UserError("no such file", where=str(path))
    names = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    kind = names[-1] if names else ""
    if kind not in READERS:
        raise UserError(
            f"a file of unknown kind {kind or path.name!r}",
            where=str(path),
            mend=f"give one that ends with {', '.join(READERS)}, or with .gz behind that",
        )
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
        return READERS[kind](content)
    except (pl.exceptions.PolarsError, OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot be read as {kind[1:]}: {first}", where=str(path)) from None


def _csv(content: bytes) -> pl.DataFrame:
    return pl.read_csv(_utf8(content), infer_schema_length=0, truncate_ragged_lines=True)


def _tsv(content: bytes) -> pl.DataFrame:
    """With quotes as in CSV or, where they are but inches and emphasis, as they stand.

    A mark that opens a field and is never closed swallows tabs and lines; of others the reader
    would leave out what stands for inches.
    """
    text = _utf8(content)

    def read(quote: str | None) -> pl.DataFrame | pl.exceptions.PolarsError:
        try:
            return pl.read_csv(text, infer_schema_length=0, separator="\t", quote_char=quote)
        except pl.exceptions.PolarsError as error:
            return error

    quoted = read('"')
    if b'"' not in text:
        return _or_raise(quoted)
    bare = read(None)
    if isinstance(quoted, pl.DataFrame) and isinstance(bare, pl.DataFrame):
        # lines within quoted fields lack their last columns where quotes mean nothing
        if _short_rows(bare) > _short_rows(quoted):
            return quoted
        return bare if bare.height > quoted.height or _misquoted(bare) else quoted
    return _or_raise(bare if isinstance(bare, pl.DataFrame) else quoted)


def _or_raise(found: pl.DataFrame | pl.exceptions.PolarsError) -> pl.DataFrame:
    if isinstance(found, pl.DataFrame):
        return found
    raise found


def _short_rows(frame: pl.DataFrame) -> int:
    """Rows without a value in the last column."""
    return frame[frame.columns[-1]].null_count()


def _misquoted(bare: pl.DataFrame) -> bool:
    """Whether a field opens with a mark and is none that a writer of quoted fields writes."""
    every = pl.all()
    wrong = every.str.starts_with('"') & ~every.str.contains(QUOTED)
    return any(bare.select(wrong.any()).row(0))


def _utf8(content: bytes) -> bytes:
    """The text in UTF-8, whatever it was saved in."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return content.decode("utf-16").encode()
        log.warning("the file is not UTF-8: it is read as %s", OLD_ENCODING)
        return content.decode(OLD_ENCODING, errors="replace").encode()
    return content


def _json_lines(content: bytes) -> pl.DataFrame:
    return pl.read_ndjson(io.BytesIO(content), infer_schema_length=None)


def _parquet(content: bytes) -> pl.DataFrame:
    return pl.read_parquet(io.BytesIO(content))


READERS: dict[str, Callable[[bytes], pl.DataFrame]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
}
