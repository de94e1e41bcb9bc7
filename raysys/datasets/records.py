"""Nested records as columns of fixed types, whatever drifts between them.

Logs of events within events (a ranking of ten items, an order of three) are JSON lines or Parquet
with lists and structs. An adapter states the fields that it reads and their types; here they are
read column-wise, and a value that is not of its type is dealt with by itself: a number where text
is expected becomes text, an object or a list there becomes its JSON, anything else that does not
fit is null. Keys that nobody states are skipped. Only text that is no JSON object is broken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import polars as pl
import pyarrow as pa

Types = Mapping[str, Any]
"""Field → polars type: `pl.String`, or lists and structs of texts."""

Screen = tuple[str, tuple[str, ...]]
"""A text field and its words of interest: of records with another word there only that is read."""

_FEW: Final = 256
"""Records that are looked at one by one when there is a broken one among them."""

_SOME: Final = 1024
"""Records that are read value by value when one among them has drifted."""


def decode(
    texts: pl.Series, types: Types, screen: Screen | None = None
) -> tuple[pl.DataFrame, pl.Series]:
    """Texts that hold a JSON object each, as columns.

    Args:
        texts: String[n], nulls allowed.
        types: fields to read.
        screen: of logs in which most records are of no interest, how to tell.

    Returns:
        n rows of `types`, all null where there is no object; and Boolean[n], true there.
    """
    plain = texts.str.strip_chars()
    whole = plain.str.starts_with("{") & plain.str.ends_with("}")
    whole = (whole & ~plain.str.contains("\n", literal=True)).fill_null(False)
    lines = plain.filter(whole)
    if screen is None:
        parsed, good = _parse(lines, types)
    else:
        parsed, good = _screened(lines, types, *screen)
    if parsed.height == texts.len():
        return parsed, ~whole
    return _spread(parsed, whole.arg_true().filter(good), texts.len())


def _spread(rows: pl.DataFrame, at: pl.Series, height: int) -> tuple[pl.DataFrame, pl.Series]:
    """Rows at their places among `height`, nulls between them; and Boolean, which those are."""
    row = pl.Series([None], dtype=pl.UInt32).new_from_index(0, height)
    row = row.scatter(at, pl.int_range(rows.height, dtype=pl.UInt32, eager=True))
    return rows.select(pl.all().gather(row)), row.is_null()


def _screened(
    lines: pl.Series, types: Types, field: str, words: tuple[str, ...]
) -> tuple[pl.DataFrame, pl.Series]:
    """As `_parse`, reading only one field of records whose word there is of no interest."""
    first, good = _parse(lines, {field: types[field]})
    word = first[field]
    wanted = (word.is_in(list(words)) | word.is_null() | (word == "")).fill_null(True)
    rest = {name: kind for name, kind in types.items() if name != field}
    parsed, read = _parse(lines.filter(good).filter(wanted), rest)
    more, _ = _spread(parsed, wanted.arg_true().filter(read), first.height)
    return first.hstack(more).select(list(types)), good


def _parse(lines: pl.Series, types: Types) -> tuple[pl.DataFrame, pl.Series]:
    """The lines that are JSON, as columns; and Boolean[n], which those are."""
    parsed = _read(lines, types)
    if parsed is not None:
        return parsed, _all(lines)
    frames, good = [], []
    for start in range(0, lines.len(), _FEW):
        piece = lines.slice(start, _FEW)
        parsed, read = _read(piece, types), _all(piece)
        if parsed is None:  # the standard library says quickly which lines are not JSON at all
            read = pl.Series([_is_object(line) for line in piece], dtype=pl.Boolean)
            parsed, also = _halve(piece.filter(read), types)
            read = read.scatter(read.arg_true(), also)
        frames.append(parsed)
        good.append(read)
    return pl.concat(frames), pl.concat(good)


def _halve(lines: pl.Series, types: Types) -> tuple[pl.DataFrame, pl.Series]:
    """As `_parse`, for lines of which few can be broken in ways that only the parser knows."""
    parsed = _read(lines, types)
    if parsed is not None:
        return parsed, _all(lines)
    if lines.len() == 1:
        return pl.DataFrame(schema=dict(types)), ~_all(lines)
    middle = lines.len() // 2
    first, second = _halve(lines.head(middle), types), _halve(lines.slice(middle), types)
    return pl.concat([first[0], second[0]]), pl.concat([first[1], second[1]])


def _all(lines: pl.Series) -> pl.Series:
    return pl.Series([True], dtype=pl.Boolean).new_from_index(0, lines.len())


def _read(lines: pl.Series, types: Types) -> pl.DataFrame | None:
    """The lines as columns; None when one of them is broken.

    The strict reader is two to three times as fast. It takes no lists of texts, for it would
    see one in a lone text.
    """
    strict = {name: kind for name, kind in types.items() if not _holds_texts(kind)}
    loose = {name: kind for name, kind in types.items() if name not in strict}
    parts = []
    if strict:
        pieces = []
        for at in range(0, max(1, lines.len()), _SOME):
            piece = lines.slice(at, _SOME)
            read = _read_strictly(piece, strict)
            if read is None:
                read = _read_loosely(piece, strict)
            if read is None:
                return None
            pieces.append(read)
        parts.append(pl.concat(pieces))
    if loose:
        read = _read_loosely(lines, loose)
        if read is None:
            return None
        parts.append(read)
    return pl.concat(parts, how="horizontal").select(list(types))


def _read_strictly(lines: pl.Series, types: Types) -> pl.DataFrame | None:
    """The lines as columns; None when one is broken or one value is of another shape.

    Each is read as the value of a key: two halves of a broken line never make one record.
    """
    if lines.len() == 0:
        return pl.DataFrame(schema=dict(types))
    kind = pl.Struct({"_": pl.Struct(dict(types))})
    try:
        found = pl.select(pl.lit('{"_":') + lines + pl.lit("}")).to_series().str.json_decode(kind)
    except pl.exceptions.PolarsError:
        return None
    if found.len() != lines.len():
        return None
    return found.struct.field("_").struct.unnest()


def _read_loosely(lines: pl.Series, types: Types) -> pl.DataFrame | None:
    """The lines as columns, null where a value is of another shape; None when one is broken."""
    if lines.len() == 0:
        return pl.DataFrame(schema=dict(types))
    try:
        text = "\n".join(lines.to_list()).encode()
        frame = pl.read_ndjson(text, schema=dict(types), ignore_errors=True)
    except pl.exceptions.PolarsError:
        return None
    return frame if frame.height == lines.len() else None


def _holds_texts(kind: Any) -> bool:
    """Whether a type is or holds a list of texts."""
    if isinstance(kind, pl.List):
        return kind.inner == pl.String or _holds_texts(kind.inner)
    return isinstance(kind, pl.Struct) and any(_holds_texts(one.dtype) for one in kind.fields)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def conform(frame: pl.DataFrame, types: Types) -> pl.DataFrame:
    """Columns of a Parquet file as if JSON lines had said the same: exactly `types`.

    Fields that the file does not have, and those of another shape, are null.
    """
    return frame.select(
        _fitted(pl.col(name), frame.schema[name], wanted).alias(name)
        if name in frame.columns
        else pl.lit(None, dtype=wanted).alias(name)
        for name, wanted in types.items()
    )


def _fitted(value: pl.Expr, given: pl.DataType, wanted: Any) -> pl.Expr:
    """A value of one type as one of another; null where it has another shape."""
    if given == wanted:
        return value
    if isinstance(wanted, pl.Struct) and isinstance(given, pl.Struct):
        inner = {field.name: field.dtype for field in given.fields}
        fields = [
            _fitted(value.struct.field(field.name), inner[field.name], field.dtype)  # type: ignore[arg-type]
            if field.name in inner
            else pl.lit(None, dtype=field.dtype)
            for field in wanted.fields
        ]
        named = [to.alias(field.name) for to, field in zip(fields, wanted.fields, strict=True)]
        return pl.when(value.is_not_null()).then(pl.struct(named))
    if isinstance(wanted, pl.List) and isinstance(given, pl.List):
        return value.list.eval(_fitted(pl.element(), given.inner, wanted.inner))  # type: ignore[arg-type]
    if isinstance(wanted, pl.Struct | pl.List) or given.is_nested():
        return pl.lit(None, dtype=wanted)
    return value.cast(wanted, strict=False)


def json_text(values: pl.Series) -> pl.Series:
    """Objects and lists as the text that readers of JSON lines give for them; null stays null."""
    encoded = values.alias("").to_frame().select(pl.struct(pl.all()).struct.json_encode())
    said = encoded.to_series().str.strip_prefix('{"":').str.head(-1)
    said = said.zip_with(values.is_not_null(), pl.Series([None], dtype=pl.String))
    distinct = said.drop_nulls().unique()
    spaced = [json.dumps(json.loads(text), ensure_ascii=False) for text in distinct]
    return said.replace_strict(distinct, spaced, return_dtype=pl.String).alias(values.name)


def mend_text(column: pa.Array) -> pa.Array:
    """A nested Arrow column whose texts are UTF-8: U+FFFD for what is not (Arrow never checks)."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        as_bytes = column.cast(_bytes_for_text(column.type))
        return pa.array([decoded(value) for value in as_bytes.to_pylist()], type=column.type)
    return column


def _bytes_for_text(given: pa.DataType) -> pa.DataType:
    if pa.types.is_list(given) or pa.types.is_large_list(given):
        return pa.list_(_bytes_for_text(given.value_type))
    if pa.types.is_struct(given):
        fields = (given.field(at) for at in range(given.num_fields))
        return pa.struct([pa.field(field.name, _bytes_for_text(field.type)) for field in fields])
    is_text = pa.types.is_string(given) or pa.types.is_large_string(given)
    return pa.binary() if is_text else given


def decoded(value: Any) -> Any:
    """Bytes, within lists and objects too, as text: U+FFFD for what is not UTF-8."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [decoded(one) for one in value]
    if isinstance(value, dict):
        return {name: decoded(one) for name, one in value.items()}
    return value
