"""Which column of somebody's events is the session, the user, the item and the time.

By tables of the names that public data sets use; in files without a header by what the values
are. Options of the command name a column where neither can tell.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Final, Literal

import polars as pl

from raysys.datasets.sequence_times import as_iso, find_form
from raysys.datasets.times import guess_unit

Task = Literal["sessions", "sequences"]

SESSIONS: Final = (
    *("session_id", "user_session", "session", "ga_session_id", "visit_id", "session_key"),
    *("session_hash", "session_id_hash", "sid"),
)
USERS: Final = (
    *("user_id", "user", "visitor_id", "reviewer_id", "customer_id", "username", "uid"),
    *("reviewer", "member_id", "account_id", "client_id", "fullvisitorid"),
)
ITEMS: Final = (
    *("item_id", "item", "parent_asin", "asin", "product_id", "aid", "article_id", "movie_id"),
    *("business_id", "track_id", "song_id", "app_id", "game_id", "book_id", "isbn", "poi_id"),
    *("venue_id", "location_id", "news_id", "content_id", "click_article_id", "product_sku_hash"),
    *("product_sku", "sku", "stock_code", "product", "reference", "iid", "artist_id", "artist"),
    *("song", "album_id", "video_id", "recipe_id", "course_id", "place_id", "anime_id", "joke_id"),
)
TIMES: Final = (
    *("timestamp", "unix_review_time", "event_time", "time", "ts", "server_timestamp_epoch_ms"),
    *("click_timestamp", "time_stamp", "timestamp_ms", "unix_timestamp", "unixtime", "datetime"),
    *("created_at", "event_date", "date", "review_time", "event_timestamp", "invoice_date"),
    *("t_dat", "review_date", "event_ts"),
)
WITHIN: Final = ("timeframe",)
"""Milliseconds since the session began, beside a date."""
LISTS: Final = (
    *(
        "item_id_list",
        "items",
        "item_ids",
        "item_list",
        "item_seq",
        "item_sequence",
        "sequence",
        "history",
    ),
    *("session", "session_items", "asins", "aids", "product_ids", "movie_ids", "article_ids"),
)
NESTED: Final = (
    "events",
    "clicks",
    "interactions",
    "actions",
    "session_events",
    "history",
    "items",
)

TIME_SHARE: Final = 0.99
"""Of a column's values, at least, that are moments where it is a time."""

EPOCH: Final = 788_918_400_000
"""1995-01-01 in UTC milliseconds: no public data set is older, and smaller numbers are ids."""

_NUMBER: Final = r"^[+-]?\d+(\.\d*)?([eE][+-]?\d+)?$"
_RATING: Final = r"^(\d|10)([.,](0+|50*))?$"
_ASIN: Final = r"^(B[0-9A-Z]{9}|\d{9}[\dX])$"
_ACTION: Final = r"^(pv|view|click|clk|fav|favorite|cart|addtocart|add_to_cart|buy|purchase)$"
_REVIEWER: Final = r"^A[0-9A-Z]{9,}$"


@dataclass(frozen=True)
class Columns:
    """Columns by what they hold, as the file calls them; None: there is none, or none is known.

    Attributes:
        session: whose events belong together.
        user: whose events are cut into sessions by pauses, or are one sequence.
        item: what was clicked or rated; beside `items`: what followed.
        time: when.
        within: milliseconds to be added to it.
        items: a list of items, in the order of time.
        events: a list of objects; item and time are keys of these.
        action: says what kind of row it is: `item` must come up in it.
    """

    session: str | None = None
    user: str | None = None
    item: str | None = None
    time: str | None = None
    within: str | None = None
    items: str | None = None
    events: str | None = None
    action: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """Those that there are."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: column for name, column in found.items() if column is not None}

    @property
    def given(self) -> tuple[str, ...]:
        """Their names in the file, each once."""
        return tuple(dict.fromkeys(self.named.values()))

    def __or__(self, guessed: Columns) -> Columns:
        """These, and what is guessed of columns that they do not say."""
        return replace(guessed, **self.named)

    def key(self, task: Task) -> str | None:
        """The column whose equal values belong together."""
        first, second = self.session, self.user
        if task == "sequences":
            first, second = second, first
        return first or second


def plain(name: str) -> str:
    """A column's name without RecBole's type, case and what stands between words."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r":[a-z_]+$", "", name.strip().lower()))


def by_name(names: Sequence[str], lists: Sequence[str] = (), nested: Sequence[str] = ()) -> Columns:
    """What columns hold by their names.

    Args:
        names: of columns of single values.
        lists: of columns that hold lists of items.
        nested: of columns that hold lists of objects.
    """

    def first(table: Sequence[str], among: Sequence[str]) -> str | None:
        known = {plain(name): name for name in reversed(among)}
        found = (known[plain(name)] for name in table if plain(name) in known)
        return next(found, None)

    item = first(ITEMS, names)
    time, within = first(TIMES, names), first(WITHIN, names)
    return Columns(
        session=first(SESSIONS, names),
        user=first(USERS, names),
        item=item,
        time=time,
        within=within if time else None,
        items=first(LISTS, lists),
        events=first(NESTED, nested),
        # Trivago's log has places, filters and orders in the column of the item
        action=first(("action_type",), names) if item and plain(item) == "reference" else None,
    )


def is_header(first: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a first line names columns: by known names, or as it is unlike all others."""
    known = by_name(first, lists=first)
    if len(known.named) > 1:
        return True
    if any(re.fullmatch(_NUMBER, name.strip()) for name in first) or not rows:
        return False
    return any(
        is_time(column) or pl.Series(column).str.contains(_NUMBER).all()
        for column in zip(*rows, strict=False)
    ) and not any(is_time([name]) for name in first)


def by_value(rows: Sequence[Sequence[str]], task: Task) -> tuple[Columns, bool] | None:
    """What columns hold by what is in them; they are called 1, 2, ….

    Two to four columns: of ids, of times (at most one, the last that looks like it), of ratings;
    one more where a column says what the user did, as in Taobao's log.
    Where Amazon's ids show that the item stands before the user, so they are read.

    Args:
        rows: of equal length.
        task: what is asked: ids of whom come first.

    Returns:
        The columns, and whether there is one of ratings; None: it cannot be told.
    """
    columns = [pl.Series([field.strip() for field in column]) for column in zip(*rows, strict=True)]
    acts = [at for at, column in enumerate(columns) if column.str.contains(_ACTION).all()]
    if not 2 <= len(columns) <= 4 + len(acts[:1]):
        return None
    times = [at for at, column in enumerate(columns) if is_time(column.to_list())]
    dated = [at for at in times if not columns[at].str.contains(_NUMBER).all()]
    time = (dated or times)[-1] if times else None
    ratings = [
        at
        for at, column in enumerate(columns)
        if at > 1 and at != time and column.str.contains(_RATING).all()
    ]
    ids = [at for at in range(len(columns)) if at not in (time, *acts, *ratings)]
    if len(ids) < 2 or (time is None and len(ids) > 2):
        return None
    key, item = ids[:2]
    if _mostly(columns[key], _ASIN) and _mostly(columns[item], _REVIEWER):
        key, item = item, key
    # YooChoose has a category of one digit behind the item, but its time stands before it
    rated = bool(ratings) and (time is None or ratings[0] < time)
    whom = "user" if rated or acts or task == "sequences" else "session"
    named = {whom: str(key + 1), "item": str(item + 1)}
    if time is not None:
        named["time"] = str(time + 1)
    return Columns(**named), rated


def is_time(values: Sequence[str]) -> bool:
    """Whether values are believable moments since 1995, in whichever unit; one in 100 may not."""
    return _are_moments(values, TIME_SHARE)


def is_half_time(values: Sequence[str]) -> bool:
    """Whether most values are moments, but too few for `is_time`."""
    return not is_time(values) and _are_moments(values, 0.5)


def _are_moments(values: Sequence[str], share: float) -> bool:
    texts = pl.Series(values, dtype=pl.String)
    if guess_unit(texts, share=share, earliest=EPOCH) is not None:
        return True
    texts = texts.str.strip_chars()
    form = find_form(texts, share)
    return form is not None and (
        guess_unit(as_iso(texts, form), share=share, earliest=EPOCH) is not None
    )


def _mostly(values: pl.Series, form: str) -> bool:
    return bool(values.str.contains(form).mean() > 0.9)  # type: ignore[operator]
