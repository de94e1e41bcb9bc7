"""The event log as columns of numbers, in time order: what tables are fed with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from raysys.catalogue import Catalogue
from raysys.errors import UserError
from raysys.schema import EVENT_TYPES


@dataclass(frozen=True)
class EventColumns:
    """n events in time order.

    Attributes:
        user: int32[n]; item: int32[n], -1 where unknown; kind: int8[n], index into EVENT_TYPES;
        time: int64[n], UTC ms; quantity, price: float64[n], NaN where unknown;
        store: int32[n], -1 where unknown; order: int64[n], equal for one basket or session;
        session: int32[n], numbered by first moment, -1 where unknown; query: int32[n], number of
        the normalised text, -1 where there was none; position: int32[n], 1-based rank at which the
        item was shown, 0 where unknown. The last three may be left out: nothing is known then.
    """

    user: npt.NDArray[np.int32]
    item: npt.NDArray[np.int32]
    kind: npt.NDArray[np.int8]
    time: npt.NDArray[np.int64]
    quantity: npt.NDArray[np.float64]
    price: npt.NDArray[np.float64]
    store: npt.NDArray[np.int32]
    order: npt.NDArray[np.int64]
    session: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    query: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    position: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))

    def __post_init__(self) -> None:
        for name, unknown in (("session", -1), ("query", -1), ("position", 0)):
            if len(getattr(self, name)) != len(self.user):  # left out
                object.__setattr__(self, name, np.full(len(self.user), unknown, np.int32))

    def __len__(self) -> int:
        return len(self.user)

    def slice(self, start: int, stop: int) -> EventColumns:
        """Events start … stop-1, as views."""
        return EventColumns(*(getattr(self, each.name)[start:stop] for each in fields(self)))


@dataclass(frozen=True)
class Log:
    """A shop's whole history with the vocabularies that its numbers refer to."""

    events: EventColumns
    users: list[str]
    stores: list[str]
    frame: pl.DataFrame  # the same rows, for building requests: user, item, kind, time, order,
    #                      and the strings store_id, group (what names the order), week
    queries: list[str] = field(default_factory=list)  # normalised
    sessions: pl.DataFrame = field(default_factory=pl.DataFrame)  # user, session_id, session


def read_log(events: Path, catalogue: Catalogue, *, group_by: Sequence[str]) -> Log:
    """Read events (`schema.EVENTS`, Parquet by date) into columns.

    Args:
        events: the folder.
        catalogue: numbers the items.
        group_by: columns that name what belongs together, the first that is not null counts:
            `order_id`, `session_id`.

    Raises:
        UserError: no events.
    """
    names = ["user_id", "item_id", "event_type", "timestamp", "quantity", "price", "store_id"]
    names += ["session_id", "query", "position"]
    columns = dict.fromkeys([*names, "week", "event_id", *group_by])
    scan = pl.scan_parquet(events / "**/*.parquet", hive_partitioning=False).select(*columns)
    frame = scan.sort("timestamp", "event_id").drop("event_id").collect()
    if frame.is_empty():
        raise UserError("no events", where=str(events), mend="look at the quarantine of `ingest`")
    users = frame["user_id"].unique().sort()
    stores = frame["store_id"].drop_nulls().unique().sort()
    frame = frame.with_columns(
        group=pl.coalesce(*group_by, "user_id"), query=normalised(pl.col("query"))
    )
    queries = frame["query"].drop_nulls().unique().sort()
    frame = frame.with_columns(
        user=_number(frame["user_id"], users),
        item=pl.Series(catalogue.numbers(frame["item_id"].to_arrow()), dtype=pl.Int32),
        store=_number(frame["store_id"], stores),
        kind=_number(frame["event_type"], pl.Series(EVENT_TYPES)).cast(pl.Int8),
        time=pl.col("timestamp").dt.epoch("ms"),
        order=pl.col("group").rank("dense").cast(pl.Int64),
        query=_number(frame["query"], queries),
        position=pl.col("position").fill_null(0).cast(pl.Int32),
    )
    of = ["user", "session_id"]  # two users' sessions may share a name
    known = frame.lazy().drop_nulls("session_id").unique(of, keep="first", maintain_order=True)
    sessions = known.select(*of, session=pl.int_range(pl.len(), dtype=pl.Int32)).collect()
    frame = frame.join(sessions, on=of, how="left", maintain_order="left")
    frame = frame.with_columns(pl.col("session").fill_null(-1))
    return Log(
        EventColumns(
            **{
                each.name: frame[each.name].fill_null(float("nan")).to_numpy()
                if each.name in ("quantity", "price")
                else frame[each.name].to_numpy()
                for each in fields(EventColumns)
            }
        ),
        users.to_list(),
        stores.to_list(),
        frame.select("user", "item", "kind", "time", "order", "store_id", "group", "week"),
        queries.to_list(),
        sessions,
    )


def normalised(query: pl.Expr) -> pl.Expr:
    """Texts of queries by which they are one: Unicode NFKC, lower case, single spaces.

    A text without anything but space is none: null.
    """
    text = query.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"\s+", " ")
    text = text.str.strip_chars()
    return pl.when(text.str.len_bytes() > 0).then(text)


def _number(values: pl.Series, vocabulary: pl.Series) -> pl.Series:
    """Position of each value in a vocabulary: Int32, -1 where it has none."""
    numbers = pl.Series(np.arange(len(vocabulary)), dtype=pl.Int32)
    return values.replace_strict(vocabulary, numbers, default=-1, return_dtype=pl.Int32)
