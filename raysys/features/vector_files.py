"""Vectors from files: rows that say whose they are (Parquet), or matrices (safetensors)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from raysys.catalogue import Catalogue
from raysys.errors import UserError
from raysys.features.log import normalised
from raysys.features.plan_tables import VectorSpec

logger = logging.getLogger("raysys")

Matrix = npt.NDArray[np.float16] | npt.NDArray[np.float32]

_ID, _QUERY, _VECTOR = "item_id", "query", "vector"
_ROWS: Final = f"give it the columns {_ID} (text), {_QUERY} (text) or both, and {_VECTOR} (numbers)"


@dataclass(frozen=True)
class Vectors:
    """A space in which items lie, and perhaps queries.

    Attributes:
        items: float16 or float32[n_items, d]; a row of zeros for an item without a vector.
        queries: the same of the log's queries, float[n_queries, d]; or None.
        encoder: folder of the model that made them from texts; None: they come from a file.
    """

    items: Matrix
    queries: Matrix | None = None
    encoder: Path | None = None


def read_vectors(
    name: str,
    spec: VectorSpec,
    root: Path,
    catalogue: Catalogue | None,
    queries: Sequence[str],
) -> Vectors:
    """What one file holds.

    Args:
        name: of the vectors.
        spec: which file.
        root: the folder that a relative path starts from.
        catalogue: numbers the items of a file that names them.
        queries: normalised text by query number.

    Raises:
        UserError: a file that is missing, or does not hold what is needed.
    """
    if not (root / spec.file).is_file():
        raise UserError(
            f"no file {str(root / spec.file)!r}",
            where=f"plan: vectors.{name}",
            mend="write it, correct `file`, or let `model` make the vectors from texts",
        )
    if spec.by_id:
        if catalogue is None:
            raise ValueError(f"vectors.{name}: whose rows these are, only a catalogue can tell")
        return _by_id(name, root / spec.file, catalogue, queries)
    return _by_number(name, spec, root)


def _by_id(name: str, path: Path, catalogue: Catalogue, queries: Sequence[str]) -> Vectors:
    where = f"plan: vectors.{name}"
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{str(path)!r} is not Parquet: {error}", where=where) from None
    named = [column for column in (_ID, _QUERY) if column in table.column_names]
    if not named or _VECTOR not in table.column_names:
        columns = ", ".join(table.column_names)
        raise UserError(f"{str(path)!r} has the columns {columns}", where=where, mend=_ROWS)
    matrix = _matrix(table[_VECTOR], where)
    _check_matrix(_VECTOR, matrix, where)
    names = {column: _texts(table[column], where, column) for column in named}
    if len(names) == 2:
        both = names[_ID].is_not_null() & names[_QUERY].is_not_null()
        if both.any():
            raise UserError(
                f"row {both.arg_max()} names an item and a query", where=where,
                mend="a row is of one of them: leave the other null",
            )  # fmt: skip
    items = np.zeros((len(catalogue), matrix.shape[1]), matrix.dtype)
    if _ID in names:
        numbers = catalogue.numbers(names[_ID].to_arrow().cast(pa.string()))
        _once(names[_ID], where, "item")
        items[numbers[numbers >= 0]] = matrix[numbers >= 0]
        without = len(catalogue) - int((numbers >= 0).sum())
        if without:
            logger.warning(
                "vectors.%s: %s of %s items have none in %s, so features of these say nothing",
                *(name, f"{without:,}", f"{len(catalogue):,}", path.name),
            )
    if _QUERY not in names:
        return Vectors(items)
    texts = names[_QUERY].to_frame("text").select(normalised(pl.col("text"))).to_series()
    _once(texts, where, "query")
    place = {text: number for number, text in enumerate(queries)}
    numbers = np.array([place.get(text, -1) for text in texts.to_list()], dtype=np.int64)
    found = np.zeros((len(queries), matrix.shape[1]), matrix.dtype)
    found[numbers[numbers >= 0]] = matrix[numbers >= 0]
    return Vectors(items, found)


def _matrix(column: pa.ChunkedArray, where: str) -> Any:
    """Vectors, one a row, as float[n, d]; float16 stays, all other numbers become float32."""
    kind = column.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (listed or pa.types.is_fixed_size_list(kind)):
        raise UserError(f"{_VECTOR} is {kind}", where=where, mend="write lists of numbers")
    wanted = np.float16 if kind.value_type == pa.float16() else np.float32
    rows = column.combine_chunks()
    lengths = rows.value_lengths().unique().to_pylist()
    if len(lengths) != 1 or not lengths[0]:
        told = ", ".join("none" if n is None else str(n) for n in lengths[:5]) or "no rows"
        raise UserError(
            f"vectors of several lengths, or of none: {told}", where=where,
            mend="give each row as many numbers, and leave out whoever has no vector",
        )  # fmt: skip
    flat = rows.flatten()
    if flat.null_count:
        raise UserError(f"{_VECTOR}: some numbers are null", where=where)
    return flat.to_numpy(zero_copy_only=False).astype(wanted).reshape(len(rows), lengths[0])


def _texts(column: pa.ChunkedArray, where: str, name: str) -> pl.Series:
    found = pl.Series(name, column)
    if found.dtype != pl.String:
        raise UserError(f"{name} is {column.type}", where=where, mend="write it as text")
    return found


def _once(names: pl.Series, where: str, what: str) -> None:
    twice = names.drop_nulls().filter(names.drop_nulls().is_duplicated())
    if len(twice):
        raise UserError(f"two vectors of the {what} {twice[0]!r}", where=where)


def _check_matrix(role: str, matrix: Any, where: str) -> None:
    if matrix.ndim != 2 or matrix.dtype not in (np.float16, np.float32):
        raise UserError(
            f"{role}: {matrix.dtype}[{', '.join(map(str, matrix.shape))}]",
            where=where,
            mend="write a matrix float16 or float32[rows, dimensions]",
        )
    if not np.isfinite(matrix).all():
        raise UserError(f"{role}: some numbers are not finite", where=where)


def _by_number(name: str, spec: VectorSpec, root: Path) -> Vectors:
    path, where = root / spec.file, f"plan: vectors.{name}"
    found: dict[str, Any] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            held = sorted(file.keys())
            for role, tensor in (("items", spec.items), ("queries", spec.queries)):
                if tensor is not None:
                    if tensor not in held:
                        offered = ", ".join(held) or "none"
                        raise UserError(
                            f"no tensor {tensor!r} in {str(path)!r}",
                            where=where,
                            mend=f"`{role}`: one of {offered}",
                        )
                    found[role] = file.get_tensor(tensor)
    except SafetensorError as error:
        raise UserError(f"{str(path)!r} is not safetensors: {error}", where=where) from None
    for role, matrix in found.items():
        _check_matrix(role, matrix, where)
    if "queries" in found and found["queries"].shape[1] != found["items"].shape[1]:
        raise UserError(
            f"items have {found['items'].shape[1]} dimensions, queries {found['queries'].shape[1]}",
            where=where,
        )
    return Vectors(found["items"], found.get("queries"))
