"""What is audited, and the replay on trial: features of a request as that replay gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from raysys.features.alteration import (
    DAY_MS,
    Drawn,
)
from raysys.features.audit_outcome import Float32
from raysys.features.chosen import Block, Chooser
from raysys.features.columns import replay_in_memory
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.features.plan import CoVisitation as CoVisitationFeature
from raysys.features.plan import ShownPosition
from raysys.features.read import (
    CandidateRows,
    OfRequest,
    feature_columns,
    position_column,
    promotion_column,
)
from raysys.features.replay import Retrieval, choose_candidates
from raysys.retrieval.covisitation import CoVisitation
from raysys.retrieval.popular import Popular

Int32 = npt.NDArray[np.int32]

_BEFORE: Final = 5_000  # events before a request that a replay on trial is given
_OWN: Final = 2_000  # of the user's own, further back


@dataclass(frozen=True)
class Answer:
    """What a replay says at a request.

    Attributes:
        features: float32[n, f] of the request's items.
        candidates: int32[m], what retrieval proposed, in its order.
    """

    features: Float32
    candidates: Int32


@dataclass(frozen=True)
class Subject:
    """What is audited: a log, a plan that runs over it, and requests.

    Attributes:
        make: an empty state of the plan, with promotions.
        events: the whole log, in time order.
        requests: in time order.
        neighbourhood: the co-visitation of a moment (UTC ms), from events before it only.
        history: items of a user that a request reads (the setting of the features stage).
        written: by request number what the features stage wrote of the request's items:
            float32[n, f]; None where nothing is to be compared.
    """

    make: Callable[[], LiveFeatures]
    events: EventColumns
    requests: Sequence[Drawn]
    neighbourhood: Callable[[int], CoVisitation]
    history: int
    written: dict[int, Float32] | None = None

    def until(self, request: Drawn) -> int:
        """How many events lie strictly before a request."""
        return int(np.searchsorted(self.events.time, request.time, side="left"))

    def read(self, live: LiveFeatures, request: Drawn) -> Float32:
        """Features from a state as it is."""
        live.covisitation = self.neighbourhood(request.time)
        live.as_of = request.time - 1
        return live.batch(
            *(request.user, request.items, request.time, request.store_id, request.week),
            history=self.history,
            session=request.session,
            query=request.query,
            positions=request.positions,
        ).features

    def state_at(self, request: Drawn) -> LiveFeatures:
        """A new state, fed with everything before a request."""
        live = self.make()
        live.apply(self.events.slice(0, self.until(request)))
        return live

    def before(self, request: Drawn) -> EventColumns:
        """What was last before a request, and what its user did before: in time order."""
        until = self.until(request)
        start = max(0, until - _BEFORE)
        own = np.flatnonzero(self.events.user[:start] == request.user)[-_OWN:]
        return self.events.take(np.concatenate([own, np.arange(start, until)]))


Engine = Callable[[Subject, EventColumns, Drawn], Answer]
"""The way from a log to features that is put to the test: given events, of which some lie at or
after the request, and the request."""


def replayed(subject: Subject, events: EventColumns, request: Drawn) -> Answer:
    """What the features stage's own replay makes of the events: candidates, then their columns."""
    near = subject.neighbourhood(request.time)
    live, chosen = subject.make(), _Chosen()
    sold = _sold(live, events, request)
    retrieval = Retrieval([(request.time, near)], lambda day: sold, subject.history)
    store = live.store_number(request.store_id)
    frame = pl.DataFrame(
        {"request": [request.number], "user": [request.user], "time": [request.time],
         "store": [store], "session": [request.session]},
        schema={
            "request": pl.Int32, "user": pl.Int32, "time": pl.Int64, "store": pl.Int32,
            "session": pl.Int32,
        },
    )  # fmt: skip
    nothing = {"request": pl.Int32, "item": pl.Int32, "label": pl.Float32}
    blocks = [Block(0, request.fold, request.time, request.time + 1)]
    relevant = pl.DataFrame(schema=nothing)
    choose_candidates(live, iter([events]), frame, relevant, retrieval, blocks, chosen)
    rows = _rows_of(request, int(chosen.requests["store"][0]))
    live = subject.make()
    stats = replay_in_memory(live, events, rows)
    week = live.promotions.last_week if request.week is None else request.week
    history = np.array(chosen.requests["history"][0], dtype=np.int32)

    def of_request(feature: OfRequest) -> Any:
        if isinstance(feature, ShownPosition):
            return np.nan if request.positions is None else position_column(request.positions)
        if isinstance(feature, CoVisitationFeature):
            return near.score(history[: feature.history], request.items)
        flags = live.promotions.of(request.items, int(rows.store[0]), week)
        return promotion_column(feature, flags)

    where = CandidateRows(
        *(rows.user, request.items, rows.time, rows.store, rows.session, rows.query)
    )
    features = feature_columns(live, where, stats, of_request)
    return Answer(features, chosen.rows["item"].to_numpy())


class _Chosen(Chooser):
    """Keeps what is chosen instead of writing it."""

    def __init__(self) -> None:
        self.requests = self.rows = pl.DataFrame()

    def write(self, requests: pl.DataFrame, rows: pl.DataFrame) -> None:
        self.requests, self.rows = requests, rows


def _rows_of(request: Drawn, store: int) -> EventColumns:
    """The request's items as reads of a replay."""
    n = len(request.items)
    of = {"user": request.user, "store": store, "session": request.session, "query": request.query}
    return EventColumns(
        **{name: np.full(n, number, dtype=np.int32) for name, number in of.items()},
        item=request.items,
        time=np.full(n, request.time, dtype=np.int64),
        kind=np.zeros(n, dtype=np.int8),
        quantity=np.full(n, np.nan),
        price=np.full(n, np.nan),
        order=np.zeros(n, dtype=np.int64),
    )


def _sold(live: LiveFeatures, events: EventColumns, request: Drawn) -> Popular:
    """What sells, by the events before the request's midnight: what the stage finds once a day."""
    items = events.item[(events.time < request.time // DAY_MS * DAY_MS) & (events.item >= 0)]
    counts = np.bincount(items, minlength=len(live.catalogue)).astype(np.float64)
    return Popular(counts, live.codes["category"])
