"""Pairs of texts that belong together, as the shop's catalogue and its log say.

A title and the description of the same item; a query and what was clicked for it; an item and what
the same session went on to. Pairs are of texts, not of ids: items that read alike are one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq
from pydantic import Field

from raysys.config import Settings
from raysys.errors import UserError
from raysys.text.pretraining.corpus import (
    ItemColumn,
    is_held_out,
    item_lines,
    scan_events,
    text_hashes,
)

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Source = Literal["titles", "queries", "items"]
Columns = Annotated[tuple[ItemColumn, ...], Field(min_length=1)]
SOURCES: tuple[Source, ...] = ("titles", "queries", "items")
NONE = -1


class PairSettings(Settings):
    """Which texts belong together.

    Attributes:
        sources: titles: an item's title and its description, both ways; queries: a query and what
            was done for it; items: an item and what came next in the session.
        title, description: columns of the catalogue that the two sides of `titles` are made of.
        item: columns that stand for an item in `queries` and `items`.
        events: what counts as wanting an item.
        window: so many items after an item are its next ones.
        min_count: pairs of behaviour that the log has less often are left out.
        max_events: of `items`: of a longer log, sessions are drawn to about so many events.
        max_pairs: of each source, the most frequent first.
        held_out: share of left texts whose pairs are not trained on.
        max_characters: what is read of each text.
    """

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    title: Columns = ("title",)
    description: Columns = ("description",)
    item: Columns = ("title", "category", "brand")
    events: tuple[Literal["click", "favorite", "cart", "purchase", "view"], ...] = (
        "click", "favorite", "cart", "purchase",
    )  # fmt: skip
    window: int = Field(3, ge=1)
    min_count: int = Field(2, ge=1)
    max_events: int = Field(5_000_000, ge=1)
    max_pairs: int = Field(200_000, ge=1)
    held_out: float = Field(0.05, gt=0, lt=1)
    max_characters: int = Field(2_000, ge=1)


@dataclass(frozen=True)
class Pairs:
    """n pairs over m distinct texts.

    Attributes:
        texts: m texts.
        left, right: int64[n], codes of texts.
        source: int32[n], place in `SOURCES`.
        item: int32[m], an item that the text is of, -1: of none (a query).
        category: int32[m], of that item, -1: unknown.
        held_out: bool[n]: all pairs of some left texts, and the same pairs the other way round.
    """

    texts: tuple[str, ...]
    left: Int64
    right: Int64
    source: Int32
    item: Int32
    category: Int32
    held_out: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.left)

    def counts(self) -> dict[str, int]:
        """Pairs by source, and how many are held out."""
        found = {SOURCES[code]: int((self.source == code).sum()) for code in np.unique(self.source)}
        return {**found, "held_out": int(self.held_out.sum()), "texts": len(self.texts)}

    @classmethod
    def of(
        cls,
        found: Sequence[tuple[Source, str, str, int, int, int]],
        held_out: float,
    ) -> Pairs:
        """From (source, left text, right text, item of left, item of right, category of right)."""
        codes: dict[str, int] = {}
        items: list[int] = []
        categories: list[int] = []
        rows: dict[tuple[int, int], int] = {}
        for source, left, right, item_left, item_right, category in found:
            ends = []
            for text, item in ((left, item_left), (right, item_right)):
                code = codes.setdefault(text, len(codes))
                if code == len(items):
                    items.append(NONE)
                    categories.append(NONE)
                if items[code] == NONE:  # a query may read like an item
                    items[code] = item
                ends.append(code)
            if categories[ends[1]] == NONE:
                categories[ends[1]] = category
            if ends[0] != ends[1]:
                rows.setdefault((ends[0], ends[1]), SOURCES.index(source))
        texts = tuple(codes)
        sides = np.array(list(rows), np.int64).reshape(-1, 2)
        drawn = is_held_out(text_hashes(texts), held_out)
        reverse = np.array([ends[::-1] in rows for ends in rows], bool)
        return cls(
            texts,
            sides[:, 0],
            sides[:, 1],
            np.array(list(rows.values()), np.int32),
            np.array(items, np.int32),
            np.array(categories, np.int32),
            drawn[sides[:, 0]] | (reverse & drawn[sides[:, 1]]),
        )


def gather_pairs(
    settings: PairSettings,
    ingest: Path,
    *,
    until: dt.datetime | None = None,
    where: str = "pairs",
) -> Pairs:
    """The pairs of a shop.

    Args:
        settings: which.
        ingest: what `raysys ingest` wrote.
        until: events from then on are not read; None: all are.
        where: for errors.

    Raises:
        UserError: there is none, or too few to hold some out.
    """
    shop = _Shop(settings, ingest, until)
    found = [pair for source in settings.sources for pair in getattr(shop, source)()]
    pairs = Pairs.of(found, settings.held_out)
    held = int(pairs.held_out.sum())
    if held == 0 or held == len(pairs):
        counts = f"{len(pairs):,} pairs, {held:,} of them held out"
        raise UserError(
            f"too few pairs of {', '.join(settings.sources)} to learn from: {counts}",
            where=where,
            mend="name columns that hold texts under `title`, `description` and `item`, events "
            "that the log has under `events`, lower `min_count`, or raise `held_out`",
        )
    return pairs


Found = list[tuple[Source, str, str, int, int, int]]


class _Shop:
    """Items as lines, and the log behind them."""

    def __init__(self, settings: PairSettings, ingest: Path, until: dt.datetime | None) -> None:
        self.settings = settings
        self.ingest = ingest
        self.until = until
        columns = {*settings.title, *settings.description, *settings.item, "item_id", "category"}
        table = pq.read_table(ingest / "items.parquet", columns=sorted(columns))
        self.table = table.sort_by("item_id")
        labels = self.table["category"].combine_chunks().dictionary_encode().indices
        self.category: list[int] = labels.fill_null(NONE).to_pylist()
        lines = self._lines(settings.item)
        codes = {line: at for at, line in enumerate(dict.fromkeys(lines))}
        self.lines = list(codes)
        self.numbered = pl.DataFrame(
            {
                "item_id": pl.Series(self.table["item_id"].to_pylist(), dtype=pl.String),
                "number": np.arange(len(lines), dtype=np.int32),
                "line": np.array([codes[line] for line in lines], np.int32),
                "said": np.array([bool(line) for line in lines], bool),
            }
        ).filter("said")

    def _lines(self, columns: Columns) -> list[str]:
        most = self.settings.max_characters
        return [line[:most] for line in item_lines(self.table, columns)]

    def titles(self) -> Found:
        titles = self._lines(self.settings.title)
        descriptions = self._lines(self.settings.description)
        found: Found = []
        for number, (title, text) in enumerate(zip(titles, descriptions, strict=True)):
            if title and text and title != text and len(found) < 2 * self.settings.max_pairs:
                category = self.category[number]
                found.append(("titles", title, text, number, number, category))
                found.append(("titles", text, title, number, number, category))
        return found

    def queries(self) -> Found:
        asked = self._wanted().filter(pl.col("query").is_not_null())
        query = pl.col("query").str.split(" ").list.eval(pl.element().filter(pl.element() != ""))
        typed = asked.with_columns(query=query.list.join(" ")).filter(pl.col("query") != "")
        typed = typed.with_columns(key=pl.col("query").str.to_lowercase())
        # spellings that differ by case alone are one query, in the most frequent of them
        often = typed.group_by("key", "query").len().sort("len", "query", descending=[True, False])
        best = often.unique("key", keep="first", maintain_order=True).select("key", "query")
        counted = (
            typed.group_by("key", "line")
            .agg(pl.len().alias("n"), pl.col("number").min())
            .join(best, on="key", how="left")
        )
        return [
            ("queries", query, self.lines[line], NONE, number, self.category[number])
            for query, line, number in self._frequent(
                counted, "query", "line", "number"
            ).iter_rows()
        ]

    def items(self) -> Found:
        wanted = self._wanted().filter(pl.col("session_id").is_not_null())
        n = int(wanted.select(pl.len()).collect().item())
        if n > self.settings.max_events:
            share = int(self.settings.max_events / n * 2**64)
            wanted = wanted.filter(pl.col("session_id").hash(seed=0) < share)
        log = wanted.select("session_id", "timestamp", "line", "number").collect()
        log = log.sort("session_id", "timestamp", maintain_order=True)
        same = pl.col("session_id") == pl.col("session_id").shift(1)
        log = log.filter(~(same & (pl.col("line") == pl.col("line").shift(1))).fill_null(False))
        parts = []
        for ahead in range(1, self.settings.window + 1):
            after = log.select(pl.all().shift(-ahead).name.suffix("_next"))
            both = pl.concat([log, after], how="horizontal").filter(
                (pl.col("session_id") == pl.col("session_id_next"))
                & (pl.col("line") != pl.col("line_next"))
            )
            forth = both.select("line", "line_next", "number", "number_next", "session_id")
            at_once = both.filter(pl.col("timestamp") == pl.col("timestamp_next"))
            back = at_once.select(  # bought in one basket: neither is first
                line="line_next", line_next="line", number="number_next", number_next="number",
                session_id="session_id",
            )  # fmt: skip
            parts += [forth, back]
        counted = (
            pl.concat(parts)
            .lazy()
            .group_by("line", "line_next")
            .agg(
                pl.col("session_id").n_unique().alias("n"),
                pl.col("number").min(),
                pl.col("number_next").min(),
            )
        )
        names = ("line", "line_next", "number", "number_next")
        return [
            ("items", self.lines[a], self.lines[b], number_a, number_b, self.category[number_b])
            for a, b, number_a, number_b in self._frequent(counted, *names).iter_rows()
        ]

    def _wanted(self) -> pl.LazyFrame:
        """Events before the end that want an item which has a text: its number and its line."""
        events = scan_events(self.ingest, self.until).filter(
            pl.col("event_type").is_in(self.settings.events), pl.col("item_id").is_not_null()
        )
        columns = ("query", "session_id", "timestamp", "item_id")
        return events.select(columns).join(
            self.numbered.lazy(), on="item_id", how="inner", maintain_order="left"
        )

    def _frequent(self, counted: pl.LazyFrame, *names: str) -> pl.DataFrame:
        """The most frequent of counted pairs, in an order that holds."""
        often = counted.filter(pl.col("n") >= self.settings.min_count).collect()
        order = often.sort("n", *names[:2], descending=[True, False, False])
        return order.head(self.settings.max_pairs).select(names)
