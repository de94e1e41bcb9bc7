"""What happened since the champion was trained: events as numbers of its state, and requests."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from raysys.catalogue import Catalogue
from raysys.features.labels import LabelSettings
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns, normalised
from raysys.features.sessions import is_made
from raysys.schema import EVENT_TYPES
from raysys.stages.learn_settings import WindowSettings

DAY_MS = 86_400_000
PARTS = ("tune", "blend", "gate")
"""Parts of the window in time order; their numbers are the folds of the examples."""

TUNE, BLEND, GATE = range(3)
COLUMNS = ("request", "user", "time", "store", "week", "session", "query", "text", "fold",
           "n_relevant")  # fmt: skip
"""Of `Requests.frame`, without the name."""

Int64 = npt.NDArray[np.int64]


def read_since(events: Path, moment: int) -> pl.DataFrame:
    """Ingested events strictly after a moment (UTC ms), in time order, with a column `time`.

    Args:
        events: the folder of `raysys ingest`, in folders by date or not.
        moment: UTC ms.
    """
    files = _files(events, since=moment)
    if not files:
        return pl.DataFrame(schema={"time": pl.Int64})
    frame = pl.scan_parquet(files, hive_partitioning=False)
    frame = frame.with_columns(time=pl.col("timestamp").dt.epoch("ms"))
    return frame.filter(pl.col("time") > moment).sort("time", maintain_order=True).collect()


def count_orders(
    events: Path, catalogue: Catalogue, group_by: Sequence[str], until: int
) -> npt.NDArray[np.int64]:
    """In how many orders (or sessions) each item lay up to a moment, included: int64[n_items]."""
    files = _files(events, until=until)
    count = np.zeros(len(catalogue), dtype=np.int64)
    if not files:
        return count
    frame = pl.scan_parquet(files, hive_partitioning=False)
    told = (
        frame.filter(pl.col("timestamp").dt.epoch("ms") <= until, pl.col("item_id").is_not_null())
        .select("item_id", order=_order_hash(group_by))
        .unique()
        .group_by("item_id")
        .len()
        .collect(engine="streaming")
    )
    number = catalogue.numbers(told["item_id"].to_arrow())
    known = number >= 0
    count[number[known]] = told["len"].to_numpy()[known]
    return count


def _files(events: Path, *, since: int | None = None, until: int | None = None) -> list[Path]:
    """Parquet files that may hold events of a stretch of time: by the dates of their folders."""
    low = None if since is None else f"date={_date(since)}"
    high = None if until is None else f"date={_date(until)}"
    found = []
    for path in sorted(events.glob("**/*.parquet")):
        name = path.parent.name
        dated = name.startswith("date=")
        if not dated or ((low is None or name >= low) and (high is None or name <= high)):
            found.append(path)
    return found


def _date(moment: int) -> str:
    return datetime.datetime.fromtimestamp(moment / 1000, datetime.UTC).date().isoformat()


def _order(group_by: Sequence[str]) -> pl.Expr:
    """The name of what belongs together."""
    return pl.coalesce([pl.col(name) for name in (*group_by, "user_id")])


def _order_hash(group_by: Sequence[str]) -> pl.Expr:
    """What tells apart what belongs together, as `numbering` has it: UInt64.

    An order is its name. Two users' sessions may share one, and orders, sessions and users theirs.
    """
    hashes = []
    for column in (*group_by, "user_id"):
        whose = name = pl.col(column)
        if column != "order_id":
            whose = pl.struct(pl.lit(column), "user_id", name.alias("name"))
        hashes.append(pl.when(name.is_not_null()).then(whose.hash()))
    return pl.coalesce(hashes)


def numbered(frame: pl.DataFrame, live: LiveFeatures, group_by: Sequence[str]) -> EventColumns:
    """Events as numbers of a live state; new users and sessions get the next ones.

    The same numbers that `Incoming` would give, of all events at once. `order` is the hash of what
    `group_by` names.
    """
    users = frame["user_id"]
    names = users.unique(maintain_order=True).to_list()
    known = dict(zip(names, (live.open_user(name) for name in names), strict=True))
    user = users.replace_strict(known, return_dtype=pl.Int32).to_numpy()
    stores = {name: live.store_number(name) for name in frame["store_id"].drop_nulls().unique()}
    store = frame["store_id"].replace_strict(stores or {"": -1}, default=-1, return_dtype=pl.Int32)
    kinds = {name: number for number, name in enumerate(EVENT_TYPES)}
    kind = frame["event_type"].replace_strict(kinds, return_dtype=pl.Int8)
    item = live.catalogue.numbers(frame["item_id"].to_arrow())
    return EventColumns(
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        kind=kind.to_numpy(),
        time=frame["time"].to_numpy(),
        quantity=frame["quantity"].fill_null(float("nan")).to_numpy(),
        price=frame["price"].fill_null(float("nan")).to_numpy(),
        store=store.fill_null(-1).to_numpy(),
        order=frame.select(_order_hash(group_by)).to_series().reinterpret(signed=True).to_numpy(),
        session=_sessions(frame, user, live),
        query=_queries(frame, live),
        position=frame["position"].fill_null(0).cast(pl.Int32).to_numpy(),
    )


def _sessions(
    frame: pl.DataFrame, user: npt.NDArray[np.int32], live: LiveFeatures
) -> npt.NDArray[np.int32]:
    """Number of each event's session: those that are open keep theirs, -1 where it names none."""
    pairs = frame.select("session_id", "time", user=pl.Series(user))
    named = pairs.filter((pl.col("user") >= 0) & pl.col("session_id").is_not_null())
    fresh = named.group_by("session_id", "user", maintain_order=True).agg(pl.col("time").max())
    opened = []
    for name, who, last in fresh.iter_rows():
        opened.append(live.sessions.open(who, name))
        if is_made(live.users[who], name):
            live.sessions.go_on(who, opened[-1], last)
    fresh = fresh.with_columns(number=pl.Series(opened, dtype=pl.Int32))
    found = pairs.join(fresh, on=["user", "session_id"], how="left", maintain_order="left")
    return found["number"].fill_null(-1).to_numpy()


def new_queries(frame: pl.DataFrame, live: LiveFeatures) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Texts that a state has no number for: of each event its place among them, -1 for none.

    Args:
        frame: the events as read.
        live: numbers the others.
    """
    texts = frame.select(normalised(pl.col("query"))).to_series()
    fresh = [t for t in texts.drop_nulls().unique().to_list() if live.number_of_query(t) < 0]
    place = {text: at for at, text in enumerate(sorted(fresh))}
    if not place:
        return np.full(len(frame), -1, dtype=np.int32), []
    found = texts.replace_strict(place, default=-1, return_dtype=pl.Int32).fill_null(-1)
    return found.to_numpy(), list(place)


def _queries(frame: pl.DataFrame, live: LiveFeatures) -> npt.NDArray[np.int32]:
    if not live.queries or frame["query"].null_count() == len(frame):
        return np.full(len(frame), -1, dtype=np.int32)
    texts = frame.select(normalised(pl.col("query"))).to_series()
    known = {text: live.number_of_query(text) for text in texts.drop_nulls().unique().to_list()}
    return texts.replace_strict(known, default=-1, return_dtype=pl.Int32).fill_null(-1).to_numpy()


@dataclass(frozen=True)
class Window:
    """The recent past in its parts.

    Attributes:
        since: UTC ms of the newest event that the champion's state holds.
        starts: UTC ms, first moment of each of `PARTS`; end: the first moment after the last.
    """

    since: int
    starts: tuple[int, int, int]
    end: int

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """Starts, then the end."""
        return (*self.starts, self.end)

    @classmethod
    def cut(cls, settings: WindowSettings, since: int, last: int, *, tuned: bool) -> Window:
        """The window of a log whose newest event is at `last`.

        Args:
            settings: see there.
            since: newest event of the champion's state.
            last: newest event.
            tuned: whether learners are tuned; else the whole fit is for blending.
        """
        end = last + 1
        gate = max(since + 1, end - round(settings.gate_days * DAY_MS))
        first = max(since + 1, gate - round(settings.fit_days * DAY_MS))
        share = settings.blend_share if tuned else 1.0
        return cls(since, (first, gate - round(share * (gate - first)), gate), end)


@dataclass(frozen=True)
class Requests:
    """Requests of the window, and what was relevant in each.

    Attributes:
        frame: request (their number, in time order), request_id, user, time, store, week, session,
            query, text (normalised, of a query that has no number), fold, n_relevant.
        relevant: request, item, label.
        found: how many there are by part, before some were drawn.
        shown: request, item, position, label, weight, sampling_probability: what was shown in each;
            None: what retrieval offers.
    """

    frame: pl.DataFrame
    relevant: pl.DataFrame
    found: tuple[int, int, int]
    shown: pl.DataFrame | None = None


def build_requests(
    frame: pl.DataFrame,
    events: EventColumns,
    window: Window,
    labels: LabelSettings,
    settings: WindowSettings,
    group_by: Sequence[str],
) -> Requests:
    """Orders (or sessions) with a labelled event, as `features.requests` has them.

    A request belongs to a part that it began and was settled in; one that reaches across the end of
    its part, or that may have begun before the window, to none: no part knows of the next.

    Args:
        frame: the events as read.
        events: the same as numbers.
        window: and its parts.
        labels: gains.
        settings: how many of each part, and how long a request may go on.
        group_by: columns that name what belongs together.
    """
    gap = round(settings.gap_minutes * 60_000)
    week = frame["week"].cast(pl.Int32).fill_null(-1)
    rows = pl.DataFrame(
        {
            "order": events.order,
            "name": frame.select(_order(group_by)).to_series(),
            **{n: getattr(events, n) for n in ("user", "time", "store", "session", "item")},
            "week": week,
            "label": labels.by_kind[events.kind],
        }
    ).filter(pl.col("item") >= 0)
    orders = rows.group_by("order", maintain_order=True).agg(
        pl.col("name", "user", "time", "store", "session", "week").first(),
        last=pl.col("time").max(),
        labelled=(pl.col("label") > 0).any(),
    )
    bounds = np.asarray(window.bounds)
    orders = orders.filter("labelled", pl.col("time") > window.since + gap)
    fold = np.searchsorted(bounds, orders["time"].to_numpy(), side="right") - 1
    orders = orders.with_columns(fold=pl.Series(fold, dtype=pl.Int32))
    inside = (fold >= 0) & (fold < len(PARTS))
    ends = bounds[np.minimum(fold + 1, len(PARTS))]
    orders = orders.filter(pl.Series(inside & (orders["last"].to_numpy() + gap < ends)))
    found = tuple(int((orders["fold"] == number).sum()) for number in range(len(PARTS)))
    most = (settings.tune_requests, settings.blend_requests, settings.gate_requests)
    drawn = [
        part if len(part) <= limit else part.bottom_k(limit, by="order")
        for number, limit in enumerate(most)
        for part in (orders.filter(fold=number),)
    ]
    kept = pl.concat(drawn).sort("time", "name", "user").with_row_index("request")
    kept = kept.with_columns(pl.col("request").cast(pl.Int32), query=pl.lit(-1, pl.Int32))
    kept = kept.with_columns(text=pl.lit(None, pl.String))
    wanted = kept.select("order", "request")
    relevant = (
        rows.filter(pl.col("label") > 0)
        .join(wanted, on="order")
        .group_by("request", "item")
        .agg(pl.col("label").max())
        .sort("request", "item")
    )
    sizes = relevant.group_by("request").agg(n_relevant=pl.len().cast(pl.Int32))
    kept = kept.join(sizes, on="request", how="left", maintain_order="left")
    told = kept.select(*COLUMNS, request_id="name")
    return Requests(told, relevant, (found[0], found[1], found[2]))
