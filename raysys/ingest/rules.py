"""Cleaning rules as data: each says what is wrong, and whether the row is mended or quarantined.

A rule is an expression over draft rows (see `datasets.mapping`). Quarantining rules are asked in
order and the first that applies gives the reason; mending rules then change what is left. A new
rule is one more entry of `event_rules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import polars as pl
from pydantic import Field

from raysys import schema
from raysys.config import Settings
from raysys.datasets.mapping import ATTRIBUTES, MENDED, UNPARSED
from raysys.datasets.times import EARLIEST, latest
from raysys.ingest.tally import Tally

Action = Literal["quarantine", "mend"]

SOURCE: Final = "_source"
ROW: Final = "_row"
_REASON: Final = "_reason"
_BROKEN: Final = "\ufffd"
_IDS: Final = ("event_id", "user_id", "item_id", "session_id", "order_id", "event_type")
_ITEM_TEXTS: Final = (
    "title", "description", "department", "category", "subcategory", "brand", "manufacturer",
    "size",
)  # fmt: skip

QUARANTINE_SCHEMA: Final = {
    "table": pl.String,
    "reason": pl.String,
    "source": pl.String,
    "row": pl.Int64,
    "raw": pl.String,
}
"""Columns of `quarantine/*.parquet`: table, rule, file, record number, the row as JSON or text."""


class Limits(Settings):
    """Bounds that the rules hold rows to."""

    longest_text: int = Field(default=1000, ge=10)
    """Characters; longer texts (titles, descriptions, queries) are cut."""

    longest_id: int = Field(default=200, ge=8)
    """Characters; rows with longer ids are quarantined."""

    highest_price: float = Field(default=1e7, gt=0)
    """Of one unit; dearer ones are quarantined."""


@dataclass(frozen=True)
class Rule:
    """One thing that can be wrong with a row.

    Args:
        name: of the rule in counts, manifest and quarantine.
        action: quarantine the row, or mend it.
        says: what is wrong, in a sentence for the report.
        applies: true (not null) where a draft row has the fault.
        mend: for mending rules, what the columns become where it applies.
    """

    name: str
    action: Action
    says: str
    applies: pl.Expr
    mend: dict[str, pl.Expr] = field(default_factory=dict)


READING: Final = {
    "line_does_not_parse": "The line has too few or too many columns, or is not a JSON object.",
    "truncated_file": "The file ends in the middle; what comes after counts as one row.",
    "unreadable_file": "The file cannot be opened as what it should be; it counts as one row.",
    "empty_file": "The file holds no rows; it counts as one row.",
}
"""What readers report as faults, in words."""

DUPLICATE: Final = "duplicate"
INFERRED: Final = "inferred_impression"
BEYOND_ROWS: Final = {
    DUPLICATE: "The same event came before: equal event_id, or equal in every column.",
    "fuel_in_thousandths": "Petrol counted in thousandths of a gallon was turned into gallons.",
    "unknown_item": "Bought or seen, but not in the catalogue: added to it by id alone.",
    INFERRED: "No log says so, but it was probably shown: see sampling_probability.",
    "nowhere_promoted": "A promotion that names neither a display nor a mailer says nothing.",
}
"""Faults that no single draft row shows, in words."""


def event_rules(limits: Limits) -> list[Rule]:
    """The rules for draft events, in the order in which they are asked."""
    price, quantity, moment = pl.col("price"), pl.col("quantity"), pl.col("timestamp")
    return [
        _mistyped(),
        Rule(
            "missing_value",
            "quarantine",
            "The user, the type, the moment or (except for searches) the item is not there.",
            pl.any_horizontal(pl.col("user_id", "event_type", "timestamp").is_null())
            | (pl.col("item_id").is_null() & (pl.col("event_type") != "search")),
        ),
        _broken_ids(_IDS),
        _long_ids(_IDS, limits),
        Rule(
            "unknown_event_type",
            "quarantine",
            f"The type is none of {', '.join(schema.EVENT_TYPES)}, nor mapped to one.",
            ~pl.col("event_type").is_in(list(schema.EVENT_TYPES)),
        ),
        Rule("before_1990", "quarantine", "The moment lies before 1990.", moment < EARLIEST),
        Rule(
            "in_the_future",
            "quarantine",
            "The moment lies more than a day in the future.",
            moment > latest(),
        ),
        Rule(
            "quantity_not_positive",
            "quarantine",
            "The quantity is zero or negative: nothing was bought, or it came back.",
            ~(quantity > 0) | quantity.is_nan() | quantity.is_infinite(),
        ),
        *_price_rules(price, limits),
        _broken_text(("query",)),
        _long_text(("query",), limits),
    ]


def item_rules(limits: Limits) -> list[Rule]:
    """The rules for draft items."""
    return [
        _mistyped(),
        _without("item_id"),
        _broken_ids(("item_id",)),
        _long_ids(("item_id",), limits),
        *_price_rules(pl.col("price"), limits),
        _broken_text(_ITEM_TEXTS),
        _long_text(_ITEM_TEXTS, limits),
    ]


def user_rules(limits: Limits) -> list[Rule]:
    """The rules for draft users."""
    value = pl.element().struct.field("value")
    return [
        _without("user_id"),
        _broken_ids(("user_id",)),
        _long_ids(("user_id",), limits),
        Rule(
            "long_text",
            "mend",
            f"A text of more than {limits.longest_text:,} characters was cut.",
            pl.col(ATTRIBUTES).list.eval(value.str.len_chars() > limits.longest_text).list.any(),
            {
                ATTRIBUTES: pl.col(ATTRIBUTES).list.eval(
                    pl.struct(
                        pl.element().struct.field("key"), value.str.slice(0, limits.longest_text)
                    )
                )
            },
        ),
    ]


def in_words(limits: Limits) -> dict[str, str]:
    """Every rule's sentence, by name: what the report explains."""
    rules = (*user_rules(limits), *item_rules(limits), *event_rules(limits))
    return {**READING, **BEYOND_ROWS, **{rule.name: rule.says for rule in rules}}


def apply(
    rules: Sequence[Rule], draft: pl.DataFrame, raw: pl.DataFrame, table: str
) -> tuple[pl.DataFrame, pl.DataFrame, Tally]:
    """Ask every rule of every draft row.

    Args:
        rules: quarantining ones in order; mending ones are asked of the rows that pass.
        draft: rows with `SOURCE` and `ROW`.
        raw: the same rows as their file has them, for the quarantine.
        table: which table the rows belong to.

    Returns:
        The clean rows, the quarantine (`QUARANTINE_SCHEMA`), and the tally; the two tables
        together have exactly the draft's rows.
    """
    tally = Tally(rows_in=draft.height)
    reason = pl.coalesce(
        *[
            pl.when(rule.applies.fill_null(False)).then(pl.lit(rule.name))
            for rule in rules
            if rule.action == "quarantine"
        ],
        pl.lit(None, dtype=pl.String),
    )
    judged = draft.select(reason.alias(_REASON)).to_series()
    bad = judged.is_not_null()
    rejected = quarantine(draft.filter(bad), raw.filter(bad), judged.filter(bad), table)
    clean = draft.filter(~bad)
    note(tally, rejected)
    clean = _mend(rules, clean, tally)
    tally.rows_out = clean.height
    return clean, rejected, tally


def quarantine(
    rows: pl.DataFrame, raw: pl.DataFrame, reasons: pl.Series, table: str
) -> pl.DataFrame:
    """Rows for the quarantine, in `QUARANTINE_SCHEMA`; `raw` becomes JSON."""
    if rows.height == 0:
        return pl.DataFrame(schema=QUARANTINE_SCHEMA)
    return pl.DataFrame(
        {
            "table": pl.Series([table]).new_from_index(0, rows.height),
            "reason": reasons,
            "source": rows[SOURCE],
            "row": rows[ROW],
            "raw": raw.select(pl.struct(pl.all()).struct.json_encode()).to_series(),
        },
        schema=QUARANTINE_SCHEMA,
    )


def note(tally: Tally, rejected: pl.DataFrame) -> None:
    """Count what goes to the quarantine, and keep examples."""
    for rule, count in rejected.group_by("reason").len().iter_rows():
        tally.reasons[rule] += count
        for one in rejected.filter(pl.col("reason") == rule).head(5).iter_rows(named=True):
            tally.example(rule, one["source"], one["row"], one["raw"])


def _mend(rules: Sequence[Rule], clean: pl.DataFrame, tally: Tally) -> pl.DataFrame:
    """Apply the mending rules, and count what adapters have mended already."""
    if MENDED in clean.columns:
        for name, count in clean.drop_nulls(MENDED).group_by(MENDED).len().iter_rows():
            tally.mended[name] += count
            _examples(tally, name, clean.filter(pl.col(MENDED) == name))
    for rule in rules:
        if rule.action != "mend":
            continue
        hit = clean.select(rule.applies.fill_null(False).alias("hit")).to_series()
        count = int(hit.sum())
        if not count:
            continue
        tally.mended[rule.name] += count
        _examples(tally, rule.name, clean.filter(hit))
        clean = clean.with_columns(
            pl.when(hit).then(to).otherwise(pl.col(column)).alias(column)
            for column, to in rule.mend.items()
        )
    return clean


def _examples(tally: Tally, rule: str, rows: pl.DataFrame) -> None:
    shown = rows.head(5)
    kept = shown.select(pl.exclude(SOURCE, ROW, UNPARSED, MENDED))
    texts = kept.select(pl.struct(pl.all()).struct.json_encode()).to_series()
    for source, row, text in zip(shown[SOURCE], shown[ROW], texts, strict=True):
        tally.example(rule, source, row, text)


def _mistyped() -> Rule:
    return Rule(
        "mistyped_value",
        "quarantine",
        "A number or a moment is neither, so it cannot be read.",
        pl.col(UNPARSED).is_not_null(),
    )


def _without(key: str) -> Rule:
    return Rule("missing_value", "quarantine", f"There is no {key}.", pl.col(key).is_null())


def _broken_ids(columns: Sequence[str]) -> Rule:
    return Rule(
        "broken_encoding_in_id",
        "quarantine",
        "An id or a type holds bytes that are not in the file's encoding, so it cannot be trusted.",
        pl.any_horizontal(pl.col(*columns).str.contains(_BROKEN, literal=True)),
    )


def _broken_text(columns: Sequence[str]) -> Rule:
    return Rule(
        "broken_encoding",
        "mend",
        "A text holds bytes that are not in the file's encoding; they read as �.",
        pl.any_horizontal(pl.col(*columns).str.contains(_BROKEN, literal=True)),
    )


def _long_ids(columns: Sequence[str], limits: Limits) -> Rule:
    return Rule(
        "id_too_long",
        "quarantine",
        f"An id has more than {limits.longest_id:,} characters.",
        pl.any_horizontal(pl.col(*columns).str.len_bytes() > limits.longest_id)
        & pl.any_horizontal(pl.col(*columns).str.len_chars() > limits.longest_id),
    )


def _long_text(columns: Sequence[str], limits: Limits) -> Rule:
    return Rule(
        "long_text",
        "mend",
        f"A text of more than {limits.longest_text:,} characters was cut.",
        pl.any_horizontal(pl.col(*columns).str.len_chars() > limits.longest_text),
        {name: pl.col(name).str.slice(0, limits.longest_text) for name in columns},
    )


def _price_rules(price: pl.Expr, limits: Limits) -> list[Rule]:
    return [
        Rule("negative_price", "quarantine", "The price is below zero.", price < 0),
        Rule(
            "impossible_price",
            "quarantine",
            f"The price is not a number, or above {limits.highest_price:,.0f}.",
            price.is_nan() | price.is_infinite() | (price > limits.highest_price),
        ),
    ]
