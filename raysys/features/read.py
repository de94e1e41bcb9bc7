"""The columns of a request: every feature of the plan, for all its candidates at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from raysys.features.plan import FromTable, OfTwo, Promotion, Static
from raysys.features.plan import Moment as MomentSpec
from raysys.features.promotions import DISPLAY, MAILER
from raysys.features.table import DAY_MS, Stats

if TYPE_CHECKING:
    from raysys.features.live import LiveFeatures

Int32 = npt.NDArray[np.int32]
Column = npt.NDArray[np.float64] | npt.NDArray[np.float32] | float

_HOUR_MS = 3_600_000
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0


@dataclass(frozen=True)
class Moment:
    """A request about to be answered.

    Attributes:
        user: number or -1; items: int32[n], the candidates; time: UTC ms;
        store: number or -1; week: promotion week; history: int32[m], last items, newest first.
    """

    user: int
    items: Int32
    time: int
    store: int
    week: int
    history: Int32


def read_features(live: LiveFeatures, moment: Moment) -> npt.NDArray[np.float32]:
    """All features of the plan: float32[n, f], columns in the plan's order."""
    out = np.empty((len(moment.items), len(live.names)), dtype=np.float32, order="F")
    stats: dict[str, Stats] = {}
    place = {name: column for column, name in enumerate(live.names)}
    promoted: npt.NDArray[np.int16] | None = None
    with np.errstate(divide="ignore", invalid="ignore"):
        for column, feature in enumerate(live.plan.features):
            value: Column
            if isinstance(feature, FromTable):
                if feature.table not in stats:
                    stats[feature.table] = _stats(live, feature.table, moment)
                value = _of_stats(feature, stats[feature.table], live)
            elif isinstance(feature, OfTwo):
                of, over = out[:, place[feature.of]], out[:, place[feature.over]]
                if feature.kind == "share":
                    value = np.where(over > 0, of / over, np.nan)
                else:
                    value = np.log((of + feature.smoothing) / (over + feature.smoothing))
                    value = np.where(np.isfinite(value), value, np.nan)
            elif isinstance(feature, Static):
                value = live.statics[feature.column][moment.items]
            elif isinstance(feature, Promotion):
                if promoted is None:
                    promoted = live.promotions.of(moment.items, moment.store, moment.week)
                bit = DISPLAY if feature.medium == "display" else MAILER
                value = np.where(promoted < 0, np.nan, (promoted & bit) > 0)
            elif isinstance(feature, MomentSpec):
                value = _clock(moment.time, feature.unit)
            else:
                value = live.covisitation.score(moment.history[: feature.history], moment.items)
            out[:, column] = value
    return out


def _stats(live: LiveFeatures, name: str, moment: Moment) -> Stats:
    """What a table says of each candidate; tables of the user alone are read once."""
    table, columns = live.tables[name], live.plan.tables[name].keys
    if columns in (["user"], ["store"]):
        key = moment.user if columns == ["user"] else moment.store
        return table.read(table.find(np.array([key], dtype=np.int64)), moment.time)
    return table.read(table.find(live.keys_of(columns, moment)), moment.time)


def _of_stats(feature: FromTable, stats: Stats, live: LiveFeatures) -> Column:
    if feature.kind in ("decayed_count", "decayed_mean"):
        assert feature.half_life_days is not None  # the plan checks it
        row = live.plan.tables[feature.table].half_lives_days.index(feature.half_life_days)
        counted = feature.kind == "decayed_count"
        return stats.counts[row] if counted else stats.means[row]
    if feature.kind == "overdue":
        return stats.recency / np.maximum(stats.interval, 1 / 24)
    found: npt.NDArray[np.float64] = getattr(stats, feature.kind)
    return found


def _clock(time: int, unit: str) -> float:
    if unit == "hour":
        return float(time // _HOUR_MS % 24)
    return float((time // int(DAY_MS) + _EPOCH_WEEKDAY) % 7)
