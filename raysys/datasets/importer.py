"""What importers of other systems' events share: words, identities, and lists into rows.

An importer is a settings class (a `kind` of source in the YAML) and a function over columns that
flattens records into rows with the vocabulary's own column names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Final, Literal

import polars as pl
from pydantic import BeforeValidator, field_validator

from raysys import schema
from raysys.config import Settings
from raysys.datasets.mapping import REFUND
from raysys.datasets.source import RECORD
from raysys.datasets.times import TimeFormat, to_millis

COLUMNS: Final = {name: name for name in schema.LOGGED_EVENTS.names}
"""The mapping of expanded rows: they bear the vocabulary's names already."""

MILLISECONDS: Final = TimeFormat(unit="milliseconds")

_MOST_WORDS: Final = 50  # distinct words counted by name in one block; the rest together


Paths = Annotated[
    tuple[str, ...], BeforeValidator(lambda paths: (paths,) if isinstance(paths, str) else paths)
]
"""Files, folders or globs, local or any fsspec URI; one or many."""


Identity = Literal["account", "device"]
"""Who acts: the account where somebody is logged in, else the device; or always the device."""


class Importer(Settings):
    """Base of the settings of all importers."""

    defaults: ClassVar[dict[str, str | None]] = {}
    """Words of the format → what they mean here."""

    event_types: dict[str, str | None] = {}
    """Beyond the defaults: the log's word → one of the vocabulary's types, `refund` (a purchase
    of negative quantity), or null, which leaves such events out."""

    @field_validator("event_types")
    @classmethod
    def _known_types(cls, words: dict[str, str | None]) -> dict[str, str | None]:
        allowed = (*schema.EVENT_TYPES, REFUND)
        for word, meaning in words.items():
            if meaning is not None and meaning not in allowed:
                raise ValueError(f"{word} means {meaning!r}, which is none of {', '.join(allowed)}")
        return words

    @property
    def told(self) -> dict[str, Any]:
        """Everything but paths: on it depends what becomes of a record."""
        return self.model_dump(mode="json", exclude={"title", "paths", "events", "queries"})

    @property
    def words(self) -> dict[str, str]:
        """Every word that means an event, with its meaning."""
        merged = {**self.defaults, **self.event_types}
        return {word: meaning for word, meaning in merged.items() if meaning is not None}


def understand(
    frame: pl.DataFrame, word: pl.Expr, words: dict[str, str], what: str = "not_an_event"
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Records with their `event_type`, less those whose word means nothing here; and a count.

    A record without any word stays, with a null: something is wrong with it.

    Args:
        frame: one row a record.
        word: what the format calls the event.
        words: its words → types, or `REFUND`.
        what: how the reasons begin.
    """
    said = pl.Series("_word", frame.select(word.cast(pl.String)).to_series())
    said = said.set(said == "", None)
    means = said.replace_strict(words, default=None, return_dtype=pl.String)
    left_out = said.is_not_null() & means.is_null()
    kept = frame.with_columns(means.alias("event_type")).filter(~left_out)
    return kept, counted(said.filter(left_out), what)


def counted(words: pl.Series, what: str) -> dict[str, int]:
    """How often each word was met: `what: word` → records."""
    counts = words.str.slice(0, 100).value_counts(sort=False, name="_n")
    counts = counts.sort("_n", words.name, descending=[True, False])
    ignored = {f"{what}: {word}": int(n) for word, n in counts.head(_MOST_WORDS).rows()}
    if counts.height > _MOST_WORDS:
        ignored[f"{what}: (others)"] = int(counts["_n"].slice(_MOST_WORDS).sum())
    return ignored


def unroll(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """One row for each entry of a list, with its 1-based place as `_place`.

    A record without entries has one row, with nulls.
    """
    entries = pl.col(column).list.len()
    listed = pl.when(entries > 0).then(pl.col(column))
    places = pl.when(entries > 0).then(pl.int_ranges(1, entries + 1, dtype=pl.Int32))
    return frame.with_columns(listed.alias(column), places.alias("_place")).explode(
        column, "_place", empty_as_null=True
    )


def pick(
    frame: pl.DataFrame, column: str, key: str, value: pl.Expr, wanted: dict[str, str]
) -> pl.DataFrame:
    """Columns out of a list of {key, value}: the first value of each wanted key.

    Args:
        frame: rows with `RECORD`.
        column: the list; it goes.
        key: name of the field that holds the key.
        value: of `pl.col(column)`, once it is one entry.
        wanted: column to make → key.
    """
    pairs = (
        frame.select(RECORD, column)
        .explode(column, empty_as_null=True)
        .filter(pl.col(column).struct.field(key).is_in(list(set(wanted.values()))))
        .select(RECORD, pl.col(column).struct.field(key).alias("_key"), value.alias("_value"))
        .filter(present(pl.col("_value")).is_not_null())
    )
    frame = frame.drop(column)
    for name, sought in wanted.items():
        found = pairs.filter(pl.col("_key") == sought).unique(
            RECORD, keep="first", maintain_order=True
        )
        frame = frame.join(
            found.select(RECORD, pl.col("_value").alias(name)),
            on=RECORD, how="left", maintain_order="left",
        )  # fmt: skip
    return frame


def present(text: pl.Expr, *nothing: str) -> pl.Expr:
    """Text, or null where it is blank or one of the words that stand for nothing."""
    return pl.when(~text.str.strip_chars().is_in(["", *nothing])).then(text)


def listed_text(text: pl.Expr) -> pl.Expr:
    """Text, where a JSON list of words was one with its words joined by commas."""
    words = text.str.strip_chars("[] ").str.replace_all(r'"\s*,\s*"', ", ").str.strip_chars('"')
    return pl.when(text.str.contains(r'^\["')).then(words).otherwise(text)


def number(text: pl.Expr) -> pl.Expr:
    """Whole numbers that text holds, else null: Int32."""
    return text.str.strip_chars().cast(pl.Float64, strict=False).cast(pl.Int32, strict=False)


def who(identity: Identity, account: pl.Expr, device: pl.Expr) -> pl.Expr:
    """The user of an event."""
    return pl.coalesce(account, device) if identity == "account" else device


def place(told: pl.Expr, first: int) -> pl.Expr:
    """Positions counted from `first` as 1-based ones; null where they are none: Int32."""
    shown = number(told) + (1 - first)
    return pl.when(shown >= 1).then(shown)


def numbered(event_id: pl.Expr) -> pl.Expr:
    """Ids of the entries of a record: `ID#1`, `ID#2`, … by `_place`; its own where it has none."""
    return pl.coalesce(pl.format("{}#{}", event_id, "_place"), event_id)


def settled(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows as the vocabulary sees them, in every format.

    Refunds are purchases of negative quantity (one, when none is told). Nothing is moved by a
    click or a view, whatever quantity a tracker sends along. A search without words is no event.

    Args:
        frame: `event_type`, and `quantity` and `query` as text.
    """
    count = pl.col("quantity").str.strip_chars().cast(pl.Float64, strict=False)
    unreadable = pl.col("quantity").is_not_null() & count.is_null()
    back = (-count.abs().fill_null(1.0)).cast(pl.String)
    refund = pl.col("event_type") == REFUND
    moved = pl.col("event_type").is_in(["cart", "purchase", REFUND])
    return frame.with_columns(
        quantity=pl.when(refund & ~unreadable).then(back).when(moved).then("quantity"),
        event_type=pl.when(refund)
        .then(pl.lit("purchase"))
        .when((pl.col("event_type") != "search") | present(pl.col("query")).is_not_null())
        .then("event_type"),
    )


def moments(frame: pl.DataFrame, column: str) -> pl.Series:
    """ISO 8601 or milliseconds, as text, into milliseconds, as text.

    What is neither stays as it is: the mapping will name it.
    """
    raw = frame[column]
    digits = raw.str.contains(r"^\s*-?\d+\s*$").fill_null(False)
    iso = to_millis(raw.set(digits, None), TimeFormat()).cast(pl.String)
    return iso.fill_null(raw.str.strip_chars()).alias(column)


def only(given: dict[str, str], allowed: Iterable[str]) -> dict[str, str]:
    """Refuse columns that an importer cannot fill."""
    for name in given:
        if name not in allowed:
            raise ValueError(f"{name!r} cannot be filled here (allowed: {', '.join(allowed)})")
    return given


def flat(frame: pl.DataFrame, *more: str) -> pl.DataFrame:
    """Rows as the mapping reads them: `RECORD`, every column of events, and `more`."""
    names = [*COLUMNS, *more]
    return frame.select(
        RECORD,
        *(
            pl.col(name) if name in frame.columns else pl.lit(None, dtype=pl.String).alias(name)
            for name in names
        ),
    )


def together(*frames: pl.DataFrame) -> pl.DataFrame:
    """Rows of several kinds in the order of their records."""
    return pl.concat(frames, how="vertical_relaxed").sort(RECORD, maintain_order=True)
