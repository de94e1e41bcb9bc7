"""Impressions that no log holds: what was probably on the screen when somebody clicked.

A click-only log says what was wanted and never what was passed over. For each click this names
the clicked item, which was certainly shown, and items that were probably shown beside it, drawn
from three sources that know nothing of the click's future:

- `session`: what the same session touched shortly before;
- `context`: what the day before was touched under the same query, or in the same category where
  the click has no query;
- `popular`: what the day before was touched at all.

Each source draws by itself, with inclusion probabilities that are known exactly (see
`ingest.inclusion`), so the probability that an item is named by any of them is
1 - (1 - π_session)(1 - π_context)(1 - π_popular). It stands beside every row as
`sampling_probability`: rows weighted by its inverse stand for all that could have been drawn.

Inferred impressions have the click's own moment, not one before it: features read strictly
earlier events, so a request at the click's moment does not see them, and could not learn from
the mere presence of an impression that there was a click. Attribution counts an impression of
the same moment as earlier.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from numba import njit
from pydantic import Field, model_validator

from raysys import schema
from raysys.config import Settings
from raysys.datasets.mapping import polars_type
from raysys.ingest.inclusion import Pools, draw, draw_evenly, mix, probability_of, split

_INFERRED: Final = "inferred-"
_ROW: Final = "_row"
_SESSION: Final = ("user_id", "session_id")
_STEPS: Final = 10  # so many times `lookback` events are looked at, then the session is a robot's
_COPIED: Final = ("user_id", "timestamp", "session_id", "store_id", "week", "query")


class ImpressionShares(Settings):
    """How the drawn items are split among the sources; shares are in proportion to their sum.

    Attributes:
        session: what the same session touched before.
        context: what the day before was touched under the same query or in the same category.
        popular: what the day before was touched at all.
    """

    session: float = Field(0.3, ge=0)
    context: float = Field(0.3, ge=0)
    popular: float = Field(0.4, ge=0)

    @model_validator(mode="after")
    def _some(self) -> ImpressionShares:
        if self.session + self.context + self.popular <= 0:
            raise ValueError("at least one share above 0")
        return self


class ImpressionSettings(Settings):
    """How impressions are inferred for logs without them.

    Attributes:
        when: `never`; `missing`: for events whose session has no logged impression of the item
            up to that moment; `always`: for all.
        events: event types that must have been preceded by an impression.
        per_event: items drawn beside the one of the event, at most: a source may have fewer, draw
            one twice, or draw what another drew.
        shares: how they are split among the sources.
        lookback: the session's last so many distinct items are its source (of at most ten times
            as many events).
        alpha: popularity counts to this power: 1 as it is, 0 not at all.
        pool: so many of the most popular items (overall, and of each context) can be drawn.
        seed: of the draws.
    """

    when: Literal["never", "missing", "always"] = "never"
    events: tuple[Literal["view", "click"], ...] = ("view", "click")
    per_event: int = Field(10, ge=1, le=100)
    shares: ImpressionShares = ImpressionShares()
    lookback: int = Field(20, ge=1, le=200)
    alpha: float = Field(1.0, ge=0, le=4)
    pool: int = Field(5000, ge=1)
    seed: int = Field(17, ge=0)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Items drawn from session, context and popular; they add up to `per_event`."""
        shares = (self.shares.session, self.shares.context, self.shares.popular)
        return split(self.per_event, shares)


def infer_impressions(
    events: pl.DataFrame,
    before: pl.DataFrame,
    settings: ImpressionSettings,
    categories: pl.DataFrame | None = None,
    ongoing: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Impressions to be written beside the clean events of one date.

    A row depends on its click, on earlier events of the click's session and on `before`, by
    hashes of ids and the seed: not on the order of rows, not on which other users are given, not
    on anything later than the click.

    Args:
        events: clean events of one date, whole users: columns of `schema.LOGGED_EVENTS`,
            `timestamp` as Int64 ms, `session_id` filled; others are ignored.
        before: all events of the day before, of all users: `item_id` and `timestamp` (Int64 ms);
            `query` for the context source, where there is such a column. Empty: nothing but the
            session is drawn from.
        settings: when, how many and from where.
        categories: `item_id`, `category` of the catalogue, for clicks without a query.
        ongoing: what belongs to sessions of `events` and happened before their date: `user_id`,
            `session_id`, `event_type`, `item_id`, `timestamp` (Int64 ms).

    Returns:
        Columns of `schema.EVENTS` (`timestamp` Int64), by time, then by the click's event_id,
        the clicked item first:
        `event_type` impression, `inferred` true, `sampling_probability` in (0, 1] (1 for the
        clicked item), `position` null; user, session, store, week and query of the click.
        `event_id` is the click's and the item's, joined by `~`. `request_id` is the click's, or
        `inferred-` and its event_id: equal for what was drawn for one click.

    Raises:
        ValueError: `before` holds events of the same date or later.
    """
    day = 86_400_000
    if before.height and events.height:
        first = int(events["timestamp"].min())  # type: ignore[arg-type]
        if int(before["timestamp"].max()) >= first // day * day:  # type: ignore[arg-type]
            raise ValueError("`before` must end before the date of `events` begins")
    if settings.when == "never" or not events.height:
        return _empty()
    before, events = before.drop_nulls("item_id"), events.with_row_index(_ROW)
    earlier = events.clear() if ongoing is None else ongoing.drop_nulls("item_id")
    clicks = events.filter(
        pl.col("event_type").is_in(settings.events) & pl.col("item_id").is_not_null()
    )
    if settings.when == "missing":
        clicks = _without_impression(clicks, events, earlier)
    if not clicks.height:
        return _empty()
    clicks = clicks.sort("timestamp", "event_id")
    vocabulary = _vocabulary(events, before, earlier)
    n_session, n_context, n_popular = settings.sizes
    popular = _pools(before.select("item_id", pl.lit(0).alias("pool")), vocabulary, settings, 1, 2)
    contexts, context = _contexts(clicks, before, vocabulary, settings, categories)
    rows, at = _session_rows(events, earlier, clicks, vocabulary)
    capacity = 1 + n_session + n_context + n_popular
    probability = np.zeros(vocabulary.height)  # of each item, to be named by `popular`
    probability[popular.item] = popular.probability
    click, item, sampled = _infer(
        *(rows["session"].to_numpy(), rows["timestamp"].to_numpy(), rows["item"].to_numpy()),
        *(at, clicks["event_id"].hash(settings.seed).to_numpy()),
        vocabulary["item_id"].hash(settings.seed).to_numpy(),
        *(context, contexts.item, contexts.starts, contexts.probability, contexts.ends),
        *(popular.item, popular.ends, probability, n_session, n_context, n_popular),
        *(settings.lookback, _STEPS * settings.lookback, capacity),
    )
    drawn = clicks[click].with_columns(
        vocabulary["item_id"][item].alias("item_id"),
        pl.Series("sampling_probability", sampled),
    )
    return _as_events(drawn)


def _empty() -> pl.DataFrame:
    return pl.DataFrame(schema=_columns())


def _columns() -> dict[str, Any]:
    logged = {f.name: polars_type(f.type) for f in schema.LOGGED_EVENTS}
    told = {"inferred": pl.Boolean, "sampling_probability": pl.Float64}
    return {**logged, **told, "timestamp": pl.Int64}


def _as_events(drawn: pl.DataFrame) -> pl.DataFrame:
    """Rows of clicks, with the item shown and its probability, as impressions."""
    made = {
        "event_id": pl.format("{}~{}", "event_id", "item_id"),
        "event_type": pl.lit("impression"),
        "item_id": pl.col("item_id"),
        "request_id": pl.coalesce("request_id", pl.format("{}{}", pl.lit(_INFERRED), "event_id")),
        "inferred": pl.lit(True),
        "sampling_probability": pl.col("sampling_probability"),
    }
    kept = {name: pl.col(name) for name in _COPIED}
    return drawn.select(
        (made.get(name, kept.get(name, pl.lit(None)))).cast(kind).alias(name)
        for name, kind in _columns().items()
    )


def _without_impression(
    clicks: pl.DataFrame, events: pl.DataFrame, earlier: pl.DataFrame
) -> pl.DataFrame:
    """Clicks whose session has no logged impression of the item at or before their moment."""
    keys = [*_SESSION, "item_id"]
    shown = pl.concat(
        frame.filter(pl.col("event_type") == "impression").select(*keys, "timestamp")
        for frame in (events, earlier)
    )
    first = shown.group_by(keys).agg(pl.col("timestamp").min().alias("_shown"))
    return (
        clicks.join(first, on=keys, how="left")
        .filter(pl.col("_shown").is_null() | (pl.col("_shown") > pl.col("timestamp")))
        .drop("_shown")
    )


def _vocabulary(*frames: pl.DataFrame) -> pl.DataFrame:
    """Item numbers by the hash of their ids: their order is the same whoever else is there."""
    ids = pl.concat([frame["item_id"] for frame in frames]).drop_nulls().unique()
    ordered = ids.to_frame().sort(pl.col("item_id").hash(0), "item_id")
    return ordered.with_columns(item=pl.int_range(pl.len(), dtype=pl.Int64))


def _pools(
    seen: pl.DataFrame,
    vocabulary: pl.DataFrame,
    settings: ImpressionSettings,
    n_pools: int,
    source: int,
) -> Pools:
    """Pools of the most popular items among `seen`: pool, item_id."""
    counts = seen.group_by("pool", "item_id").agg(pl.len().alias("count"))
    ranked = counts.join(vocabulary, on="item_id").sort(
        "pool", "count", "item", descending=[False, True, False]
    )
    kept = ranked.filter(pl.int_range(pl.len()).over("pool") < settings.pool).sort("pool", "item")
    return Pools.of(
        kept["pool"].to_numpy().astype(np.int64),
        kept["item"].to_numpy(),
        kept["count"].to_numpy().astype(np.float64) ** settings.alpha,
        n_pools,
        settings.sizes[source],
    )


def _contexts(
    clicks: pl.DataFrame,
    before: pl.DataFrame,
    vocabulary: pl.DataFrame,
    settings: ImpressionSettings,
    categories: pl.DataFrame | None,
) -> tuple[Pools, npt.NDArray[np.int64]]:
    """One pool a query and one a category, and the pool of each click: int64[c], -1 for none."""
    query = pl.col("query").str.strip_chars().str.to_lowercase()
    seen, wanted = [], clicks.select("item_id", (pl.lit("q:") + query).alias("name"))
    if "query" in before.columns:
        asked = before.filter(pl.col("query").is_not_null())
        seen.append(asked.select("item_id", (pl.lit("q:") + query).alias("name")))
    if categories is not None:
        kinds = categories.drop_nulls().unique("item_id", keep="first", maintain_order=True)
        kinds = kinds.select("item_id", (pl.lit("c:") + pl.col("category")).alias("kind"))
        seen.append(before.select("item_id").join(kinds, on="item_id").rename({"kind": "name"}))
        wanted = wanted.join(kinds, on="item_id", how="left", maintain_order="left")
        wanted = wanted.with_columns(pl.coalesce("name", "kind").alias("name"))
    if not seen:
        seen.append(pl.DataFrame(schema={"item_id": pl.String, "name": pl.String}))
    touched = pl.concat(seen)
    # only what some click asks for: a day has many queries, a bucket few of them
    names = touched.select("name").unique().join(wanted, on="name", how="semi").sort("name")
    names = names.with_columns(pool=pl.int_range(pl.len(), dtype=pl.Int64))
    pools = _pools(touched.join(names, on="name"), vocabulary, settings, names.height, 1)
    of = wanted.join(names, on="name", how="left", maintain_order="left")["pool"]
    return pools, of.fill_null(-1).to_numpy()


def _session_rows(
    events: pl.DataFrame, earlier: pl.DataFrame, clicks: pl.DataFrame, vocabulary: pl.DataFrame
) -> tuple[pl.DataFrame, npt.NDArray[np.int64]]:
    """What sessions touched, by session and time, and the row of each click in it: int64[c].

    Logged impressions count: they were on the screen.
    """
    columns = [*_SESSION, "timestamp", "item_id"]
    parts = [events.drop_nulls("item_id").select(*columns, _ROW)]
    parts.append(earlier.select(*columns, pl.lit(None, dtype=pl.UInt32).alias(_ROW)))
    rows = pl.concat(parts).join(vocabulary, on="item_id").sort(*_SESSION, "timestamp", "item")
    rows = rows.with_columns(session=pl.struct(_SESSION).rle_id().cast(pl.Int64))
    place = np.empty(events.height, dtype=np.int64)
    logged = rows[_ROW].is_not_null().to_numpy()
    place[rows[_ROW].drop_nulls().to_numpy()] = np.flatnonzero(logged)
    return rows, place[clicks[_ROW].to_numpy()]


@njit(cache=True)
def _infer(  # type: ignore[no-untyped-def]
    session, time, item, at, keys, names,
    context, context_item, context_starts, context_probability, context_ends,
    popular_item, popular_ends, probability,
    n_session, n_context, n_popular, lookback, steps, capacity,
):  # fmt: skip
    """For every click: index of the click, item and inclusion probability of what it names."""
    n = len(at)
    out_click = np.empty(n * capacity, dtype=np.int64)
    out_item = np.empty(n * capacity, dtype=np.int64)
    out_probability = np.empty(n * capacity, dtype=np.float64)
    recent = np.empty(lookback, dtype=np.int64)
    picked = np.empty(capacity, dtype=np.int64)
    named = np.empty(capacity, dtype=np.int64)
    filled = 0
    for c in range(n):
        row = at[c]
        clicked = item[row]
        # the session's last distinct items, strictly earlier
        n_recent = 0
        for back in range(row - 1, max(-1, row - 1 - steps), -1):
            if session[back] != session[row] or n_recent == lookback:
                break
            if time[back] >= time[row] or item[back] == clicked:
                continue
            known = False
            for other in range(n_recent):
                if recent[other] == item[back]:
                    known = True
                    break
            if not known:
                recent[n_recent] = item[back]
                n_recent += 1
        share = min(1.0, n_session / n_recent) if n_recent else 0.0
        n_named = 0
        count = draw_evenly(mix(keys[c], np.uint64(1)), recent, names, n_recent, n_session, picked)
        for each in range(count):
            named[n_named] = recent[picked[each]]
            n_named += 1
        low, high = 0, 0
        if context[c] >= 0:
            low, high = context_starts[context[c]], context_starts[context[c] + 1]
        key = mix(keys[c], np.uint64(2))
        count = draw(key, context_ends, low, high, n_context, picked)
        for each in range(count):
            named[n_named] = context_item[picked[each]]
            n_named += 1
        key = mix(keys[c], np.uint64(3))
        count = draw(key, popular_ends, 0, len(popular_item), n_popular, picked)
        for each in range(count):
            named[n_named] = popular_item[picked[each]]
            n_named += 1
        out_click[filled], out_item[filled], out_probability[filled] = c, clicked, 1.0
        first = filled
        filled += 1
        for each in range(n_named):
            known = False
            for other in range(first, filled):
                if out_item[other] == named[each]:
                    known = True
                    break
            if known:
                continue
            none = 1.0
            for other in range(n_recent):
                if recent[other] == named[each]:
                    none *= 1.0 - share
            none *= 1.0 - probability_of(named[each], context_item, context_probability, low, high)
            none *= 1.0 - probability[named[each]]
            out_click[filled], out_item[filled] = c, named[each]
            out_probability[filled] = 1.0 - none
            filled += 1
    return out_click[:filled], out_item[:filled], out_probability[:filled]
