"""The columns of rows: every feature of the plan, for the candidates of one request or of many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raysys.features.keys import Rows
from raysys.features.last import LastStats
from raysys.features.plan import (
    Component,
    CoVisitation,
    FeatureSpec,
    FromLast,
    FromTable,
    FromWindow,
    OfTwo,
    Promotion,
    Rate,
    ShownPosition,
    Similarity,
    Static,
    UserAttribute,
)
from raysys.features.promotions import DISPLAY, MAILER
from raysys.features.table import Stats
from raysys.features.vectors import similarity_to, similarity_to_last
from raysys.features.windows import WindowStats

if TYPE_CHECKING:
    from raysys.features.live import LiveFeatures

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Column = npt.NDArray[Any] | float
OfRequest = Promotion | CoVisitation | ShownPosition
"""Features that look at the request itself, not at rows."""
_OF_REQUEST = (Promotion, CoVisitation, ShownPosition)  # of a union it is several times slower

WINDOW_FIELDS = {
    "window_count": "counts",
    "window_sum": "sums",
    "window_mean": "means",
    "window_min": "lows",
    "window_max": "highs",
    "window_days": "days",
}


@dataclass(frozen=True)
class Moment:
    """A request about to be answered.

    Attributes:
        user: number or -1; items: int32[n], the candidates; time: UTC ms;
        store: number or -1; week: promotion week; history: int32[m], last items, newest first;
        session, query: numbers or -1; query_vectors: float32[d] by the vectors' name, of a query
        that these do not hold; positions: int32[n], 1-based, at which each candidate was shown, 0
        where it was not; None: nothing has been shown yet.
    """

    user: int
    items: Int32
    time: int
    store: int
    week: int
    history: Int32
    session: int = -1
    query: int = -1
    query_vectors: Mapping[str, Float32] = field(default_factory=dict)
    positions: Int32 | None = None

    @property
    def rows(self) -> CandidateRows:
        """The candidates as rows: all but their item is shared."""
        user, store, session, query = (
            np.array([number], dtype=np.int32)
            for number in (self.user, self.store, self.session, self.query)
        )
        time = np.array([self.time], dtype=np.int64)
        return CandidateRows(user, self.items, time, store, session, query)


@dataclass(frozen=True)
class CandidateRows:
    """n candidates, of one request or of many; each array has n numbers, or one that all share.

    Attributes:
        user, store, session, query: int32[n] or [1], -1 where unknown.
        item: int32[n].
        time: int64[n] or [1], UTC ms of the request.
    """

    user: Int32
    item: Int32
    time: Int64
    store: Int32
    session: Int32
    query: Int32


def read_features(live: LiveFeatures, moment: Moment) -> Float32:
    """All features of the plan for one request: float32[n, f], columns in the plan's order."""
    rows = moment.rows
    stats = live.state.read_all(live.read_states, rows, moment.time)
    flags: list[npt.NDArray[np.int16]] = []  # looked up once, for all media

    def of_request(feature: OfRequest) -> Column:
        if isinstance(feature, ShownPosition):
            return np.nan if moment.positions is None else position_column(moment.positions)
        if isinstance(feature, CoVisitation):
            return live.covisitation.score(moment.history[: feature.history], moment.items)
        if not flags:
            flags.append(live.promotions.of(moment.items, moment.store, moment.week))
        return promotion_column(feature, flags[0])

    return feature_columns(live, rows, stats, of_request, moment.query_vectors)


def position_column(positions: Int32) -> Column:
    """Positions from 1, NaN where they are 0: float64[n]."""
    return np.where(positions > 0, positions, np.nan)


def promotion_column(feature: Promotion, flags: npt.NDArray[np.int16]) -> Column:
    """1, 0 or NaN by a row's promotion flags (`Promotions.of`): float64[n]."""
    bit = DISPLAY if feature.medium == "display" else MAILER
    return np.where(flags < 0, np.nan, (flags & bit) > 0)


def feature_columns(
    live: LiveFeatures,
    rows: Rows,
    stats: Mapping[str, Any],
    of_request: Callable[[OfRequest], Column],
    query_vectors: Mapping[str, Float32] | None = None,
) -> Float32:
    """All features of the plan, from what the states say of the rows.

    Args:
        live: plan, catalogue, vectors; its state is not read.
        rows: n candidates.
        stats: by name of a state in `live.read_states`, what its `read` or `replay` gave for
            these rows, each at its own moment: n columns, or one that all rows share.
        of_request: gives the column of a feature that looks at the request itself.
        query_vectors: float32[d] of the query that all rows share, by the vectors' name; where
            there is none, it is the one that the plan's vectors hold.

    Returns:
        float32[n, f], columns in the plan's order.
    """
    out = np.empty((len(rows.item), len(live.names)), dtype=np.float32, order="F")
    place = {name: column for column, name in enumerate(live.names)}
    with np.errstate(divide="ignore", invalid="ignore"):
        for column, feature in enumerate(live.plan.features):
            if isinstance(feature, FromTable):  # most are
                value = _of_table(feature, stats[feature.table], live)
            elif isinstance(feature, OfTwo):
                value = _of_two(feature, out[:, place[feature.of]], out[:, place[feature.over]])
            elif isinstance(feature, _OF_REQUEST):
                value = of_request(feature)
            elif isinstance(feature, Similarity):
                value = _similarity(feature, live, rows, stats, query_vectors or {})
            else:
                value = _of_state(feature, live, rows, stats)
            out[:, column] = value
    return out


def _of_state(
    feature: FeatureSpec, live: LiveFeatures, rows: Rows, stats: Mapping[str, Any]
) -> Column:
    if isinstance(feature, Rate):
        return _rate(feature, stats, live)
    if isinstance(feature, FromWindow):
        return _of_window(feature, stats[feature.window], live)
    if isinstance(feature, FromLast):
        return _of_last(feature, stats[feature.last], live, rows)
    if isinstance(feature, Static):
        return live.of_items.static(feature)[rows.item]
    if isinstance(feature, UserAttribute):
        return live.attributes.read(feature, rows.user)
    if isinstance(feature, Component):
        return live.of_items.component(feature)[rows.item]
    assert not isinstance(feature, FromTable | OfTwo | Similarity | OfRequest)
    return live.state.space.part(feature.unit, rows).astype(np.float64)


def _of_two(feature: OfTwo, of: Float32, over: Float32) -> Column:
    if feature.kind == "share":
        return np.where(over > 0, of / over, np.nan)
    value = np.log((of + feature.smoothing) / (over + feature.smoothing))
    return np.where(np.isfinite(value), value, np.nan)


def _of_table(feature: FromTable, stats: Stats, live: LiveFeatures) -> Column:
    if feature.kind in ("decayed_count", "decayed_mean"):
        assert feature.half_life_days is not None  # the plan checks it
        row = live.plan.tables[feature.table].half_lives_days.index(feature.half_life_days)
        counted = feature.kind == "decayed_count"
        return stats.counts[row] if counted else stats.means[row]
    if feature.kind == "overdue":
        return stats.recency / np.maximum(stats.interval, 1 / 24)
    if feature.kind == "frequency":
        return stats.moments / np.maximum(stats.age, 1.0)
    found: npt.NDArray[np.float64] = getattr(stats, feature.kind)
    return found


def _rate(feature: Rate, stats: Mapping[str, Any], live: LiveFeatures) -> Column:
    """From the coarsest level on, each rate being the mean of the next one's prior."""
    rate: Column | None = feature.prior.mean
    for names in reversed(feature.levels):
        of, over = (
            stats[name].counts[live.plan.tables[name].half_lives_days.index(feature.half_life_days)]
            for name in names
        )
        if rate is None:
            rate = np.where(over > 0, of / over, np.nan)  # not known before the first trial
        else:
            strength = feature.prior.strength
            drawn = (of + strength * rate) / (over + strength)
            own = np.where(over > 0, of / over, np.nan)
            rate = np.where(np.isnan(rate), own, drawn)  # without a parent: as it is
    assert rate is not None  # there is one level at least
    return rate


def _of_window(feature: FromWindow, stats: WindowStats, live: LiveFeatures) -> Column:
    row = live.plan.windows[feature.window].spans.index(feature.span)
    found: npt.NDArray[np.float64] = getattr(stats, WINDOW_FIELDS[feature.kind])[row]
    return found


def _of_last(feature: FromLast, stats: LastStats, live: LiveFeatures, rows: Rows) -> Column:
    held, of = stats.values[:, : feature.among], live.plan.last[feature.last].of
    if feature.kind == "last_count":
        return LastStats(held).counts
    if feature.kind == "last_rank":
        mine = live.state.space.part(of, rows)
        same = (held == mine[:, None]) & (held >= 0)
        return np.where(same.any(axis=1), same.argmax(axis=1) + 1.0, np.nan)
    assert feature.column is not None  # the plan checks it
    mine = live.state.space.part(feature.column, rows)
    codes = held if of != "item" else np.where(held >= 0, live.codes[feature.column][held], -1)
    same = ((codes == mine[:, None]) & (held >= 0)).sum(axis=1)
    return np.where(mine >= 0, same / LastStats(held).counts, np.nan)


def _similarity(
    feature: Similarity,
    live: LiveFeatures,
    rows: Rows,
    stats: Mapping[str, Any],
    query_vectors: Mapping[str, Float32],
) -> Column:
    space = live.resources.vectors[feature.vectors]
    if feature.to != "query":
        last = stats[feature.to].values[:, : feature.among]
        return similarity_to_last(space.items, rows.item, last)
    given = query_vectors.get(feature.vectors)
    if given is not None:
        return similarity_to(space.items, rows.item, given[None, :])
    if space.queries is None or not len(space.queries):
        return np.nan
    known = (rows.query >= 0)[:, None]
    vectors = np.where(known, space.queries[rows.query], 0).astype(np.float32)
    return similarity_to(space.items, rows.item, vectors)
