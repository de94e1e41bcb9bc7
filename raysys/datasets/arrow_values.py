"""Arrow batches as frames of values that polars holds and JSON can say."""

from __future__ import annotations

import uuid
from typing import Any, Final

import polars as pl
import pyarrow as pa

from raysys.datasets.records import decoded, mend_text

_UUID_BYTES: Final = 16


def to_polars(batch: pa.RecordBatch) -> pl.DataFrame:
    """A batch as a frame; text that is not UTF-8 (Arrow does not check) is mended with U+FFFD.

    What has no number and no text of its own gets a text, within lists and structs too: 16 bytes
    of fixed width that of a UUID, other fixed widths hex digits, bytes the text that they hold,
    decimals of more than 38 digits their digits, durations ISO 8601.
    """
    columns: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            try:
                column.validate(full=True)
            except pa.ArrowInvalid:
                column = _said(column.cast(pa.binary()))
        elif pa.types.is_nested(column.type):
            column = _said(mend_text(column))
        else:
            column = _said(column)
        columns[name] = column
    frame = pl.from_arrow(pa.table(columns))
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(pl.selectors.duration().dt.to_string("iso"))


def _said(column: pa.Array) -> pa.Array:
    """A column with text for every value that has to be said by one."""
    sayable = _sayable(column.type)
    if sayable == column.type:
        return column
    if pa.types.is_fixed_size_binary(column.type):  # ids, in every row: not one by one
        digits = pl.Series(column).bin.encode("hex")
        if column.type.byte_width == _UUID_BYTES:
            digits = digits.str.replace(r"^(.{8})(.{4})(.{4})(.{4})", "${1}-${2}-${3}-${4}-")
        return digits.to_arrow()
    return pa.array([_say(value, column.type) for value in column.to_pylist()], type=sayable)


def _sayable(given: pa.DataType) -> pa.DataType:
    """The type with text in the place of bytes and of decimals that are too long."""
    if _is_bytes(given) or pa.types.is_decimal256(given):
        return pa.string()
    if isinstance(given, pa.ExtensionType):
        return _sayable(given.storage_type)
    if pa.types.is_struct(given):
        return pa.struct([pa.field(one.name, _sayable(one.type)) for one in given])
    if pa.types.is_map(given):
        return pa.map_(_sayable(given.key_type), _sayable(given.item_type))
    if not pa.types.is_nested(given) or pa.types.is_union(given):
        return given
    inner = _sayable(given.value_type)  # of a list, whichever kind
    return given if inner == given.value_type else pa.list_(inner)


def _say(value: Any, given: pa.DataType) -> Any:
    """A value as its column's `_sayable` type has it."""
    if value is None:
        return None
    if isinstance(given, pa.ExtensionType):
        return str(value) if isinstance(value, uuid.UUID) else _say(value, given.storage_type)
    if pa.types.is_struct(given):
        return {one.name: _say(value[one.name], one.type) for one in given}
    if pa.types.is_map(given):
        return [(_say(key, given.key_type), _say(one, given.item_type)) for key, one in value]
    if pa.types.is_nested(given):
        return [_say(one, given.value_type) for one in value]
    if pa.types.is_fixed_size_binary(given):
        return str(uuid.UUID(bytes=value)) if len(value) == _UUID_BYTES else value.hex()
    return str(value) if pa.types.is_decimal256(given) else decoded(value)


def _is_bytes(given: pa.DataType) -> bool:
    kinds = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(is_kind(given) for is_kind in kinds)
