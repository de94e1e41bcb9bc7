"""Texts and tables of texts with their copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from raysys.datasets.splits import plain
from raysys.errors import UserError
from raysys.text.augment.draws import UInt64, derived, keys_of, uniform
from raysys.text.augment.edits import spelling_noise, word_dropout, word_swap
from raysys.text.augment.settings import (
    Augmentation,
    BackTranslation,
    SpellingNoise,
    SynonymReplacement,
    TextMethod,
    WordDropout,
    WordSwap,
)
from raysys.text.augment.synonyms import synonym_replacement
from raysys.text.augment.words import Words

AUGMENTED = "augmented"
WEIGHT = "weight"


def augment_texts(
    texts: pl.Series, ids: npt.NDArray[Any] | pl.Series, settings: Augmentation
) -> pl.DataFrame:
    """Copies of training texts by the text methods of `settings`.

    Args:
        texts: n texts; empty ones and null have no copies.
        ids: n numbers or texts that name the rows, whatever their order.
        settings: what to do; history methods are passed over.

    Returns:
        row (int64, which text), text, augmented (the method): ascending by row, then as the
        methods are listed. A copy that is the original, or another copy of it, is left out.

    Raises:
        UserError: a thesaurus or a translation model that is not there.
    """
    texts = texts.cast(pl.String).fill_null("")
    there = (texts.str.strip_chars() != "").to_numpy()
    parts = []
    for method in settings.text_methods:
        for copy in range(settings.copies):
            keys = keys_of(ids, settings.seed, method.kind, copy)
            made = uniform(derived(keys, "made")) < method.probability
            which = np.flatnonzero(made & there)
            changed = _apply(method, texts.gather(which), keys[which], settings.seed, copy)
            parts.append(
                pl.DataFrame({"row": which.astype(np.int64), "text": changed}).with_columns(
                    pl.lit(method.kind).alias(AUGMENTED)
                )
            )
    schema = {"row": pl.Int64, "text": pl.String, AUGMENTED: pl.String}
    copies = pl.concat([pl.DataFrame(schema=schema), *parts])
    originals = texts.gather(copies["row"])
    fresh = (copies["text"] != originals) & (copies["text"] != "")
    return (
        copies.filter(fresh)
        .unique(["row", "text"], keep="first", maintain_order=True)
        .sort("row", maintain_order=True)
    )


def _apply(method: TextMethod, texts: pl.Series, keys: UInt64, seed: int, copy: int) -> pl.Series:
    """The texts as the method changes them."""
    if isinstance(method, BackTranslation):
        from raysys.text.augment.translation import back_translated

        return back_translated(texts, method, seed, copy)
    words = Words.of(texts)
    match method:
        case SynonymReplacement():
            words = synonym_replacement(words, keys, method)
        case SpellingNoise():
            words = spelling_noise(words, keys, method)
        case WordDropout():
            words = word_dropout(words, keys, method.strength)
        case WordSwap():
            words = word_swap(words, keys, method.strength)
    return words.texts()


def augment_table(
    table: pa.Table,
    column: str,
    settings: Augmentation,
    *,
    row_id: str | None = None,
    unlike: pl.Series | None = None,
) -> pa.Table:
    """A table of training rows with copies of them, in which one text is changed.

    Args:
        table: any columns; where there is a column `split` (as in `schema.REQUESTS`), only rows
            of `train` get copies.
        column: the text.
        settings: what to do.
        row_id: the column that names rows; None: rows are named by the text itself.
        unlike: texts that no copy may be, but for case and blanks; then no two texts may have one
            copy in common either, as it would be told two things. None: any.

    Returns:
        The rows in their order, each followed by its copies, with the further columns `augmented`
        (text; null for originals) and `weight` (float32; what was there, or 1, shared with the
        copies where the settings say so). The same whether a table comes whole or in blocks, so
        it may be given to Ray Data: `data.map_batches(augment_table, batch_format="pyarrow",
        fn_kwargs={"column": "title", "settings": settings, "row_id": "item_id"})`.

    Raises:
        UserError: no such column, not a text, an id, or a table that was augmented before.
    """
    _check(table, column, row_id)
    may = np.ones(table.num_rows, dtype=bool)
    if "split" in table.column_names:
        may = pc.fill_null(pc.equal(table["split"], "train"), False).to_numpy().astype(bool)
    texts = pl.Series(column, table[column]).cast(pl.String)
    ids = texts if row_id is None else _ids(pl.Series(row_id, table[row_id]))
    chosen = np.flatnonzero(may)
    ids = ids.gather(chosen) if isinstance(ids, pl.Series) else ids[chosen]
    copies = augment_texts(texts.gather(chosen), ids, settings)
    if unlike is not None:
        copies = _apart(copies, texts.gather(chosen), unlike)
    source = np.concatenate([np.arange(table.num_rows), chosen[copies["row"].to_numpy()]])
    order = np.argsort(source, kind="stable")  # an original comes before its copies
    text = pl.concat([texts.rename("text"), copies["text"]]).gather(order)
    labels = pl.concat(
        [pl.Series(AUGMENTED, [None] * table.num_rows, pl.String), copies[AUGMENTED]]
    )
    source = source[order]
    found = table.take(pa.array(source))
    place = table.column_names.index(column)
    found = found.set_column(place, table.schema.field(column), _arrow(text, table[column].type))
    weight = np.ones(len(source), dtype=np.float32)
    if WEIGHT in table.column_names:
        weight = found[WEIGHT].to_numpy().astype(np.float32)
        found = found.drop_columns([WEIGHT])
    if settings.weights == "shared":
        weight = weight / np.bincount(source, minlength=table.num_rows)[source].astype(np.float32)
    found = found.append_column(WEIGHT, pa.array(weight, pa.float32()))
    return found.append_column(AUGMENTED, _arrow(labels.gather(order), pa.string()))


def _apart(copies: pl.DataFrame, texts: pl.Series, unlike: pl.Series) -> pl.DataFrame:
    """Copies that are neither one of the texts `unlike` nor a copy of two different texts."""
    met = copies.with_columns(_said=plain(copies["text"]), _of=plain(texts).gather(copies["row"]))
    one = pl.col("_of").n_unique().over("_said") == 1
    new = ~pl.col("_said").is_in(plain(unlike).unique().implode())
    return met.filter(one & new).drop("_said", "_of")


def counts(augmented: Any) -> dict[str, int]:
    """How many copies each method made, by name; originals (null) are not counted."""
    values = pl.Series("method", augmented, dtype=pl.String).drop_nulls()
    return dict(values.value_counts().sort("method").rows())


def _check(table: pa.Table, column: str, row_id: str | None) -> None:
    for name in (column, *([row_id] if row_id else [])):
        if name not in table.column_names:
            raise UserError(
                f"no column {name!r}", mend=f"there are {', '.join(table.column_names)}"
            )
    kind = table.schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(f"{column!r} is {kind}, not text", mend="choose a column of texts")
    if column == row_id or column.endswith("_id"):
        raise UserError(
            f"{column!r} is an id: changed, it would name another thing or none",
            mend="choose a column that people read",
        )
    if AUGMENTED in table.column_names:
        raise UserError(
            f"the table has a column {AUGMENTED!r} already",
            mend="give the table as it was before: copies of copies wander off",
        )


def _ids(values: pl.Series) -> pl.Series | npt.NDArray[np.int64]:
    if values.dtype.is_integer() and not values.has_nulls():
        return values.cast(pl.Int64).to_numpy()
    return values.cast(pl.String)


def _arrow(texts: pl.Series, kind: pa.DataType) -> pa.Array:
    return texts.to_arrow().cast(kind)
