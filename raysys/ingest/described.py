"""The shop's own files of items and users, cleaned: the first word on each.

Items are read before the events, because rules ask what the catalogue knows; they are kept in the
store under the digest of their files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import polars as pl

from raysys import schema
from raysys.datasets.drafting import draft_items, draft_users
from raysys.datasets.files import find, read
from raysys.datasets.mapping import ATTRIBUTES, ENTRIES, ItemFiles, UserFiles, polars_type
from raysys.datasets.source import RECORD, Expand, Source
from raysys.ingest.aside import QUARANTINE, storage_failed, unread, write_quarantine
from raysys.ingest.columns import read_arrow, write_arrow
from raysys.ingest.judging import apply, note, quarantine
from raysys.ingest.rule_settings import RuleSettings
from raysys.ingest.rules import DUPLICATE, ROW, SOURCE, Limits, Rule, item_rules, user_rules
from raysys.ingest.store import Store
from raysys.ingest.tally import Tally

CATALOGUE: Final = "catalogue"
_ITEMS: Final = "items.arrow"


class Described:
    """Rows of one table from files, judged by rules; what does not get through is kept aside.

    Args:
        table: `items` or `users`.
        key: column whose first occurrence counts.
        columns: names and types of the clean rows.
        rules: what they are held to.
    """

    def __init__(
        self, table: str, key: str, columns: dict[str, Any], rules: Sequence[Rule]
    ) -> None:
        self.table, self.key, self.columns, self.rules = table, key, columns, rules
        self.tally = Tally()
        self.rejected: list[pl.DataFrame] = []
        self.unread: list[str] = []  # paths of files that storage did not give, or not whole
        self._frames: list[pl.DataFrame] = []
        self._by_records = False

    def take(
        self,
        files: ItemFiles | UserFiles,
        source: Source,
        draft: Callable[[pl.DataFrame, str], pl.DataFrame],
        expand: Expand | None = None,
    ) -> None:
        """Read files; `draft` turns rows as they are, of a file, into rows of the vocabulary.

        What `expand` makes of records says a part of what is known of a key, and another record,
        far away maybe, the rest.
        """
        self._by_records |= expand is not None
        derived = source.of(files).derived
        for part in find(files, derived):
            for block in read(part, files, derived):
                lost = unread(block, part, self.table)
                self.tally.rows_in += lost.height
                note(self.tally, lost)
                self.tally.lacking.update(block.lacking)
                self.rejected.append(lost)
                if storage_failed(block):
                    self.unread.append(part.path)
                raw, numbers = block.rows, block.numbers
                if raw.height and expand is not None:
                    made = expand(raw)
                    self.tally.ignored.update(made.ignored)
                    raw, numbers = made.rows.drop(RECORD), numbers.gather(made.rows[RECORD])
                if not raw.height:
                    continue
                rows = draft(raw, part.label).with_columns(
                    pl.lit(part.label).alias(SOURCE), numbers.alias(ROW)
                )
                clean, bad, counted = apply(self.rules, rows, raw, self.table)
                self.tally.add(counted)
                self.rejected.append(bad)
                self._frames.append(clean)

    def rows(self) -> pl.DataFrame:
        """Clean rows with distinct keys; later ones of a key are put aside as duplicates.

        An item without a price has that of the first later one that names any. Those that
        records told of are put together, the first word of each column.
        """
        if not self._frames:
            return pl.DataFrame(schema=self.columns)
        rows = pl.concat(self._frames)
        if self._by_records:
            self._frames = []
            return self._together(rows)
        again = ~rows[self.key].is_first_distinct()
        twice = rows.filter(again)
        reasons = pl.Series([DUPLICATE]).new_from_index(0, twice.height)
        extra = quarantine(twice, twice.select(*self.columns), reasons, self.table)
        note(self.tally, extra)
        self.rejected.append(extra)
        self.tally.rows_out -= twice.height
        self._frames = []
        return self._priced(rows.filter(~again), twice).select(*self.columns)

    def _priced(self, rows: pl.DataFrame, later: pl.DataFrame) -> pl.DataFrame:
        """Rows with the price, and its currency, that a later row of the same key gives them."""
        if "price" not in self.columns or not later.height:
            return rows
        given = later.drop_nulls("price").unique(self.key, keep="first", maintain_order=True)
        given = given.select(self.key, _price="price", _currency="currency")
        lacks = pl.col("price").is_null() & pl.col("_price").is_not_null()
        return rows.join(given, on=self.key, how="left", maintain_order="left").with_columns(
            pl.when(lacks).then(f"_{name}").otherwise(name).alias(name)
            for name in ("price", "currency")
        )

    def _together(self, rows: pl.DataFrame) -> pl.DataFrame:
        """One row a key, of each column the first that is known, of each attribute its first."""
        first = [
            pl.col(name).drop_nulls().first()
            for name in self.columns
            if name not in (self.key, ATTRIBUTES)
        ]
        if ATTRIBUTES in self.columns:
            entry = pl.col(ATTRIBUTES).explode().drop_nulls()
            first.append(entry.filter(entry.struct.field("key").is_first_distinct()))
        whole = rows.group_by(self.key, maintain_order=True).agg(first)
        if more := rows.height - whole.height:
            self.tally.rows_in -= more
            self.tally.rows_out -= more
            self.tally.ignored[f"more_of_the_same_{self.table.removesuffix('s')}"] += more
        return whole.select(*self.columns)


def write_catalogue(
    source: Source, limits: Limits, settings: RuleSettings, key: str, store: Store
) -> int:
    """Keep the shop's own items in the store; its result holds the tally.

    And how many items there are, and the paths of files that storage did not give (`unread`).

    Returns:
        rows read.
    """
    columns = {field.name: polars_type(field.type) for field in schema.ITEMS}
    items = Described("items", "item_id", columns, item_rules(limits, settings))
    result: dict[str, Any] = {}
    with store.doing(CATALOGUE, key, result) as folder:
        for files in source.items:
            own = source.of(files)
            items.take(
                files,
                source,
                lambda rows, where, files=files, own=own: draft_items(  # type: ignore[misc]
                    own.prepare_items(rows) if own.prepare_items else rows,
                    files.columns,
                    files.constants,
                    files.time,
                    where=where,
                ),
                own.expand_items,
            )
        rows = items.rows()
        write_arrow(rows, folder / _ITEMS)
        result |= {"items": rows.height, "unread": items.unread}
        write_quarantine(items.rejected, folder / QUARANTINE)
        result["tally"] = items.tally.to_dict()
    return items.tally.rows_in


def read_catalogue(folder: Path) -> pl.DataFrame:
    """The items that `write_catalogue` kept: columns of `schema.ITEMS`, moments in ms."""
    return read_arrow(folder / _ITEMS)


def read_users(
    source: Source, limits: Limits, settings: RuleSettings
) -> tuple[pl.DataFrame, Described]:
    """Users that files describe: `user_id`, `attributes`; and what was said of the rest."""
    users = Described(
        "users",
        "user_id",
        {"user_id": pl.String, ATTRIBUTES: ENTRIES},
        user_rules(limits, settings),
    )
    for files in source.users:
        draft = partial(_draft_users, files=files)
        users.take(files, source, draft, source.of(files).expand_users)
    return users.rows(), users


def _draft_users(rows: pl.DataFrame, where: str, files: UserFiles) -> pl.DataFrame:
    return draft_users(rows, files)
