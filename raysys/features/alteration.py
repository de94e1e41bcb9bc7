"""A log's future made different: what an audit shows to a replay, to see whether it looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from raysys.features.log import EventColumns
from raysys.schema import EVENT_TYPES

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

DAY_MS: Final = 86_400_000
_SHOWN: Final = 64  # items of a request that added events are about
_OWN: Final = ("user", "item", "kind", "time", "quantity", "price")  # have alterations of their own


@dataclass(frozen=True)
class Drawn:
    """A request that an audit looks at.

    Attributes:
        number: its ordinal in the requests table; request_id: its id; fold: its time block.
        user: number; time: UTC ms; store_id, week: as the request says, or None.
        items: int32[n], the candidates whose features are compared.
        positions: int32[n], at which they were shown, 0 where they were not; None: not known.
    """

    number: int
    request_id: str
    fold: int
    user: int
    time: int
    store_id: str | None
    week: int | None
    items: Int32
    session: int = -1
    query: int = -1
    positions: Int32 | None = None


@dataclass(frozen=True)
class Shop:
    """How many items and users there are, and the number of each store by its id."""

    items: int
    users: int
    stores: dict[str, int]


@dataclass(frozen=True)
class Alteration:
    """Changes to a future of h events, each of which can be made or not.

    Attributes:
        kind: one of `KINDS`.
        rows: m events that come instead of, or besides, the true ones.
        at: int64[m]: the change that a row belongs to; ascending.
        kept: bool[h], true events that stay whatever is changed.
        size: changes in all; of a true event that does not stay, the change is its own number.
    """

    kind: str
    rows: EventColumns
    at: Int64
    kept: npt.NDArray[np.bool_]
    size: int

    def world(self, future: EventColumns, first: int = 0, last: int | None = None) -> EventColumns:
        """The future with the changes first … last-1 made, in time order (all when left out)."""
        last = self.size if last is None else last
        number = np.arange(len(future))
        true = self.kept | (number < first) | (number >= last)
        rows = (self.at >= first) & (self.at < last)
        parts = [future.take(np.flatnonzero(true)), self.rows.take(np.flatnonzero(rows))]
        return in_time_order(EventColumns.concat(parts))

    def touched(self, future: EventColumns, first: int, last: int) -> EventColumns:
        """The events that the changes first … last-1 are about: true ones, else the added."""
        if self.kept.all():
            return self.rows.take(np.flatnonzero((self.at >= first) & (self.at < last)))
        return future.slice(first, last)


def _items(
    future: EventColumns, request: Drawn, shop: Shop, rng: np.random.Generator
) -> Alteration:
    item = _moved(rng.permutation(future.item), future.item, shop.items)
    return _instead("items", future, replace(future, item=item))


def _users(
    future: EventColumns, request: Drawn, shop: Shop, rng: np.random.Generator
) -> Alteration:
    user = _moved(rng.permutation(future.user), future.user, shop.users)
    return _instead("users", future, replace(future, user=user))


def _rest(future: EventColumns, request: Drawn, shop: Shop, rng: np.random.Generator) -> Alteration:
    columns: dict[str, Any] = {
        each.name: getattr(future, each.name)[rng.permutation(len(future))]
        for each in fields(EventColumns)
        if each.name not in _OWN
    }
    return _instead("rest", future, replace(future, **columns))


def _amounts(
    future: EventColumns, request: Drawn, shop: Shop, rng: np.random.Generator
) -> Alteration:
    price = np.nan_to_num(future.price, nan=1.0) * rng.uniform(1.5, 9, len(future)) + 1
    quantity = np.nan_to_num(future.quantity, nan=1.0) + rng.integers(1, 9, len(future))
    return _instead("amounts", future, replace(future, price=price, quantity=quantity))


def _types(
    future: EventColumns, request: Drawn, shop: Shop, rng: np.random.Generator
) -> Alteration:
    step = rng.integers(1, len(EVENT_TYPES), len(future))
    kind = ((future.kind + step) % len(EVENT_TYPES)).astype(np.int8)
    return _instead("types", future, replace(future, kind=kind))


def _deleted(
    future: EventColumns, request: Drawn, shop: Shop, rng: np.random.Generator
) -> Alteration:
    nothing = np.empty(0, dtype=np.int64)
    gone = np.zeros(len(future), dtype=bool)
    return Alteration("deleted", future.slice(0, 0), nothing, gone, len(future))


def _added(
    future: EventColumns, request: Drawn, shop: Shop, rng: np.random.Generator
) -> Alteration:
    rows = invented(future, request, shop, rng)
    wait = np.sort(rng.choice([0, 0, 1, 60_000, DAY_MS], len(rows)))
    rows = replace(rows, time=request.time + wait)
    kept = np.ones(len(future), dtype=bool)
    return Alteration("added", rows, np.arange(len(rows)), kept, len(rows))


def _later(
    future: EventColumns, request: Drawn, shop: Shop, rng: np.random.Generator
) -> Alteration:
    wait = rng.exponential(DAY_MS, len(future)).astype(np.int64) + 1
    return _instead("later", future, replace(future, time=future.time + wait))


def _at_once(
    future: EventColumns, request: Drawn, shop: Shop, rng: np.random.Generator
) -> Alteration:
    return _instead(
        "at_once", future, replace(future, time=np.full_like(future.time, request.time))
    )


_Alter = Callable[[EventColumns, Drawn, Shop, np.random.Generator], Alteration]

_ALTER: Final[dict[str, _Alter]] = {
    "items": _items,
    "users": _users,
    "rest": _rest,
    "amounts": _amounts,
    "types": _types,
    "deleted": _deleted,
    "added": _added,
    "later": _later,
    "at_once": _at_once,
}
KINDS: Final = {
    "items": "items permuted among the events",
    "users": "users permuted among the events",
    "rest": "baskets, stores and all else that events carry permuted",
    "amounts": "prices and quantities raised",
    "types": "each event of another type",
    "deleted": "no event left",
    "added": "new events of this user with these very items, of every type",
    "later": "events moved later, by a day on average",
    "at_once": "events moved onto the very moment of the request",
}
"""How a future is altered; each keeps all its events at or after the request."""


def alter(kind: str, future: EventColumns, request: Drawn, shop: Shop, seed: int) -> Alteration:
    """One of `KINDS`, the same for the same seed and request; in each, every event changes.

    Args:
        kind: a key of `KINDS`.
        future: the events at or after the request that are altered, at least one.
        request: the request.
        shop: its sizes.
        seed: of what is drawn at random.
    """
    rng = np.random.default_rng([seed, request.number, list(KINDS).index(kind)])
    return _ALTER[kind](future, request, shop, rng)


def appeared(future: EventColumns) -> Alteration:
    """Against a log that ends at the request: the true future, event by event."""
    return Alteration(
        "appeared", future, np.arange(len(future)), np.empty(0, dtype=bool), len(future)
    )


def invented(
    like: EventColumns, request: Drawn, shop: Shop, rng: np.random.Generator
) -> EventColumns:
    """Events of the request's user with its candidates, of every type, dear, in one new basket.

    They are of the request's session and query; positions come from events of `like`.
    """
    items = np.repeat(request.items[:_SHOWN], len(EVENT_TYPES))
    rows = like.take(rng.integers(0, len(like), len(items)))
    store = shop.stores.get(request.store_id or "", -1)
    return replace(
        rows,
        user=np.full_like(rows.user, request.user),
        item=items,
        kind=np.resize(np.arange(len(EVENT_TYPES), dtype=np.int8), len(items)),
        price=rng.uniform(100, 1000, len(items)),
        quantity=rng.integers(2, 9, len(items)).astype(np.float64),
        store=np.full_like(rows.store, store),
        order=np.full_like(rows.order, int(like.order.max()) + 1),
        session=np.full_like(rows.session, request.session),
        query=np.full_like(rows.query, request.query),
    )


def in_time_order(events: EventColumns) -> EventColumns:
    """Events sorted by time; those of one moment as they were."""
    return events.take(np.argsort(events.time, kind="stable"))


def _instead(kind: str, future: EventColumns, rows: EventColumns) -> Alteration:
    gone = np.zeros(len(future), dtype=bool)
    return Alteration(kind, rows, np.arange(len(future)), gone, len(future))


def _moved(new: Int32, old: Int32, size: int) -> Int32:
    """A permutation without those that came to lie where they were, as far as there are others."""
    same = new == old
    moved: Int32 = np.where(same, (new + 1) % max(1, size), new).astype(np.int32)
    return moved
