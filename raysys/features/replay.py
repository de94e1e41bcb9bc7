"""Candidates as retrieval would have offered them: history replayed, request by request.

A task has some of the users, and counts only what these did: nothing else can change their own
items, their history or their favourite categories. What sells is found once for all tasks and
stands as it was at midnight, so that the outcome does not depend on how the work was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from raysys.features.chosen import Block, Chooser, rows_of, share_of
from raysys.features.kernels import DAY_MS
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.features.numbered import NumberedLog
from raysys.retrieval.covisitation import CoVisitation
from raysys.retrieval.popular import Popular

Int32 = npt.NDArray[np.int32]

CHOOSING = ("user", "user_item", "user_category")
"""Tables that candidates, histories and counts of orders come from, if the plan has them."""


@dataclass
class Recall:
    """How much of what was bought the candidates held."""

    requests: int = 0
    candidates: int = 0
    relevant: int = 0
    found: int = 0


@dataclass(frozen=True)
class Retrieval:
    """What tasks share.

    Attributes:
        neighbourhoods: (from, co-visitation): the one to use from that moment on, each fitted on
            events before that moment only; the first from the very beginning.
        popular: what sells, by day (moment ÷ one day).
        history: items of the user kept with each request.
    """

    neighbourhoods: Sequence[tuple[int, CoVisitation]]
    popular: Callable[[int], Popular]
    history: int


def choose_candidates(
    live: LiveFeatures,
    events: Iterator[EventColumns],
    requests: pl.DataFrame,
    relevant: pl.DataFrame,
    retrieval: Retrieval,
    blocks: Sequence[Block],
    chooser: Chooser,
    advance: Callable[[int], None] = lambda done: None,
) -> dict[int, Recall]:
    """Walk through time and choose the candidates of some requests.

    Args:
        live: empty state; afterwards it stands at the last request.
        events: at least those of the requests' users, in time order; at a request, events strictly
            before it have been counted.
        requests: the requests of this part, in time order (see `build_requests`).
        relevant: request, item, label of at least these requests.
        retrieval: what is shared.
        blocks: cover the requests' time.
        chooser: gets a block after the other.
        advance: told how many requests are done.

    Returns:
        per fold, how much of what was bought was among the candidates.
    """
    past = _Past(events)
    recalls: dict[int, Recall] = {}
    epoch, day, done = 0, -1, 0
    for block in blocks:
        mine = requests.filter(pl.col("time").is_between(block.start, block.end, closed="left"))
        offered: list[Int32] = []
        histories: list[Int32] = []
        orders: list[int] = []
        stores: list[int] = []
        for user, time, store in mine.select("user", "time", "store").iter_rows():
            for each in past.until(time):
                live.apply(each)
            live.as_of = time - 1  # others may have done something until then
            while (
                epoch + 1 < len(retrieval.neighbourhoods)
                and retrieval.neighbourhoods[epoch + 1][0] <= time
            ):
                epoch += 1
            if time // int(DAY_MS) != day:
                day = time // int(DAY_MS)
                live.take_popular(retrieval.popular(day), day)
            live.covisitation = retrieval.neighbourhoods[epoch][1]
            offered.append(live.candidates(user, time).items)
            histories.append(live.history(user, retrieval.history))
            orders.append(live.orders(user))
            stores.append(live.last_store(user) if store < 0 else store)
            done += 1
            if done % 200 == 0:
                advance(done)
        bought = relevant.join(mine.select("request").with_row_index("at"), on="request")
        rows, found = _rows(offered, bought, len(live.catalogue))
        chooser.write(
            mine.with_columns(
                history=pl.Series(histories, dtype=pl.List(pl.Int32)),
                n_orders=pl.Series(orders, dtype=pl.Int32),
                store=pl.Series(stores, dtype=pl.Int32),
                query=pl.lit(-1),
            ),
            rows,
        )
        recall = recalls.setdefault(block.fold, Recall())
        recall.requests += len(mine)
        recall.candidates += sum(len(items) for items in offered)
        recall.relevant += len(bought)
        recall.found += found
    advance(done)
    return recalls


def choose_part(
    live: LiveFeatures,
    log: NumberedLog,
    requests: pl.DataFrame,
    relevant: pl.DataFrame,
    retrieval: Retrieval,
    blocks: Sequence[Block],
    folder: Path,
    part: int,
    parts: int,
    advance: Callable[[int], None] = lambda done: None,
) -> dict[int, Recall]:
    """`choose_candidates` for the users of one part, into `folder`."""
    chooser = Chooser(folder, part)
    mine = requests.filter(share_of(requests["user"].to_numpy(), part, parts))

    def own() -> Iterator[EventColumns]:
        for each in log.slices():
            yield each.events.take(rows_of(each.events.user, part, parts))

    recalls = choose_candidates(live, own(), mine, relevant, retrieval, blocks, chooser, advance)
    chooser.close()
    return recalls


def popularity_by_day(
    live: LiveFeatures,
    log: NumberedLog,
    days: Sequence[int],
    save: Callable[[int, npt.NDArray[np.float64]], None],
) -> None:
    """How much of every item was sold as of midnight (UTC) of each day, days rising, to `save`."""
    at = log.first
    for day in days:
        midnight = day * int(DAY_MS)
        if midnight > at:
            for each in log.between(at, midnight):
                live.apply(each.events)
            at = midnight
        save(day, live.popularity_at(midnight))


class _Past:
    """Events one after the other, up to a moment."""

    def __init__(self, events: Iterator[EventColumns]) -> None:
        self._events = events
        self._current: EventColumns | None = None
        self._position = 0

    def until(self, time: int) -> Iterator[EventColumns]:
        """What came since the last call, strictly before `time`."""
        while True:
            if self._current is None or self._position == len(self._current):
                self._current, self._position = next(self._events, None), 0
                if self._current is None:
                    return
            moments = self._current.time
            stop = int(np.searchsorted(moments[self._position :], time)) + self._position
            if stop > self._position:
                yield self._current.slice(self._position, stop)
                self._position = stop
            if stop < len(moments):
                return


def _rows(offered: Sequence[Int32], bought: pl.DataFrame, n_items: int) -> tuple[pl.DataFrame, int]:
    """Rows of a block: of each request what was offered, then what was bought and not offered.

    Returns:
        the rows, and how many bought items were offered.
    """
    sizes = [len(items) for items in offered]
    at = np.repeat(np.arange(len(offered), dtype=np.int64), sizes)
    items = np.concatenate([*offered, np.empty(0, np.int32)])
    label = np.zeros(len(items), dtype=np.float32)
    wanted = bought["at"].to_numpy().astype(np.int64) * n_items + bought["item"].to_numpy()
    order = np.argsort(wanted)
    wanted, gains = wanted[order], bought["label"].to_numpy()[order]
    keys = at * n_items + items
    missed = np.ones(len(wanted), dtype=np.bool_)
    if len(wanted):
        place = np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)
        hit = wanted[place] == keys
        label[hit] = gains[place[hit]]
        missed[place[hit]] = False
    at = np.concatenate([at, wanted[missed] // n_items])
    rows = pl.DataFrame(
        {
            "at": at.astype(np.int32),
            "item": np.concatenate([items, (wanted[missed] % n_items).astype(np.int32)]),
            "label": np.concatenate([label, gains[missed]]),
            "retrieved": np.arange(len(at)) < len(items),
        }
    ).with_columns(position=pl.lit(0), weight=pl.lit(1.0), sampling_probability=pl.lit(1.0))
    return rows.sort("at", maintain_order=True), int((~missed).sum())
