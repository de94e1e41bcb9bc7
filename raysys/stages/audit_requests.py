"""The requests that an audit asks about, drawn from the examples or from the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from raysys import schema
from raysys.features.alteration import DAY_MS, Drawn
from raysys.features.examples import Examples
from raysys.features.log import EventColumns
from raysys.features.numbered import NumberedLog
from raysys.features.plan import FeaturePlan
from raysys.features.promotions import Promotions
from raysys.features.requests import build_requests
from raysys.features.weeks import KnownWeeks
from raysys.progress import task
from raysys.retrieval.covisitation import CoVisitation
from raysys.schema import EVENT_TYPES
from raysys.stages.features_settings import FeaturesSettings, FromLog


@dataclass(frozen=True)
class AuditOptions:
    """What the command line asks for.

    Attributes:
        requests: how many to draw, spread evenly over the folds.
        seed: of the draw and of the alterations.
        reference, current: the periods whose drift is measured: `train`, `validation`, `report`,
            `all`, days `FROM..TO` (UTC, both included), or another features folder or workspace,
            alone or followed by `#` and one of these.
    """

    requests: int = 200
    seed: int = 0
    reference: str = "train"
    current: str = "report"


def _with_query(request: Drawn, log: NumberedLog, examples: FromLog) -> Drawn:
    """A request of the log with session and query: those of the first row that is its own."""
    kinds = np.isin(EVENT_TYPES, examples.events)
    for each in log.between(request.time, request.time + 1):
        events = each.events
        mine = (events.user == request.user) & kinds[events.kind] & (events.item >= 0)
        rows = np.flatnonzero(mine)
        names = log.answer_names(each.answer[rows]) if len(rows) else []
        for row, name in zip(rows, names, strict=True):
            made = f"{log.users[request.user]}@{request.time}"
            if request.request_id == (made if each.answer[row] == 0 else name):
                session, query = int(events.session[row]), int(events.query[row])
                return replace(request, session=session, query=query)
    return request


def _with_session(request: Drawn, log: NumberedLog) -> Drawn:
    """An order of the log as a request, with the session of its first row."""
    for each in log.between(request.time, request.time + 1):
        rows = np.flatnonzero((each.events.user == request.user) & (each.events.item >= 0))
        names = log.order_names(each.events.order[rows]) if len(rows) else []
        for row, name in zip(rows, names, strict=True):
            if name == request.request_id:
                return replace(request, session=int(each.events.session[row]))
    return request


def _with_positions(
    request: Drawn, plan: FeaturePlan, values: Mapping[int, npt.NDArray[np.float32]]
) -> Drawn:
    """A request with the positions of its items: no state has them, only the examples."""
    kinds = [feature.kind for feature in plan.features]
    if "shown_position" not in kinds:
        return request
    positions = np.nan_to_num(values[request.number][:, kinds.index("shown_position")])
    return replace(request, positions=positions.astype(np.int32))


def _with_week(request: Drawn, known: KnownWeeks, promotions: Promotions) -> Drawn:
    """A request with its promotion week: where the log does not say, the newest known before it."""
    if request.week is not None:
        return request
    return replace(request, week=int(promotions.newest(known.before([request.time]))[0]))


class _Neighbourhoods:
    """Co-visitation as of each period of the features stage, from events before it alone."""

    def __init__(
        self,
        settings: FeaturesSettings,
        events: EventColumns,
        n_items: int,
        bounds: tuple[int, ...],
        requests: Sequence[Drawn],
    ) -> None:
        step = int(settings.covisitation.refit_days * DAY_MS)
        self._moments = np.arange(bounds[0], bounds[-1], step)
        self._fitted: dict[int, CoVisitation] = {}
        reads = settings.candidates.covisitation > 0 or any(
            feature.kind == "covisitation" for feature in settings.plan.features
        )
        epochs = sorted({self._epoch(request.time) for request in requests}) if reads else []
        self._none = CoVisitation(
            np.full((n_items, 1), -1, np.int32), np.zeros((n_items, 1), np.float32)
        )
        with task("audit: items bought together", len(epochs)) as fitting:
            for epoch in epochs:
                past = int(np.searchsorted(events.time, self._moments[epoch]))
                given = settings.covisitation.model_dump(exclude={"refit_days"})
                order, item = events.order[:past], events.item[:past]
                self._fitted[epoch] = CoVisitation.fit(order, item, n_items, **given)
                fitting.advance()

    def __call__(self, moment: int) -> CoVisitation:
        return self._fitted.get(self._epoch(moment), self._none)

    def _epoch(self, moment: int) -> int:
        return max(0, int(np.searchsorted(self._moments, moment, side="right")) - 1)


def _drawn_from_examples(
    folder: Path, options: AuditOptions
) -> tuple[list[Drawn], dict[int, npt.NDArray[np.float32]]]:
    """Requests of every fold with the items and the values that were written of them."""
    folds = sorted(int(path.name.partition("=")[2]) for path in (folder / "requests").iterdir())
    each = -(-options.requests // len(folds))
    drawn: list[Drawn] = []
    values: dict[int, npt.NDArray[np.float32]] = {}
    for fold in folds:
        examples = Examples(folder, (fold,))
        chosen = _draw(_frame(examples.requests()), each, options.seed)
        rows = _rows_of(examples, chosen["request"].to_numpy())
        for row in chosen.iter_rows(named=True):
            items, features = rows[row["request"]]
            drawn.append(_request(row, items))
            values[row["request"]] = features
    return sorted(drawn, key=_by_time), values


def _drawn_from_log(
    settings: FeaturesSettings, log: NumberedLog, events: EventColumns, options: AuditOptions
) -> list[Drawn]:
    """Orders that would be requests, with what was bought and what was seen around them."""
    requests = build_requests(log, settings)
    folds = requests.frame["fold"].unique().sort()
    each = -(-options.requests // len(folds))
    frame = pl.concat(_draw(requests.frame.filter(fold=n), each, options.seed) for n in folds)
    relevant = requests.relevant.group_by("request").agg("item")
    bought = dict(relevant.filter(pl.col("request").is_in(frame["request"].implode())).iter_rows())
    drawn = []
    for row in frame.iter_rows(named=True):
        until = int(np.searchsorted(events.time, row["time"]))
        before = events.slice(max(0, until - 20_000), until)
        own, others = before.item[before.user == row["user"]], before.item
        items = np.unique(np.concatenate([bought[row["request"]], own[-80:], others[-80:]]))
        store, week = (None if row[name] < 0 else row[name] for name in ("store", "week"))
        known = {**row, "store_id": None if store is None else log.stores[store], "week": week}
        drawn.append(_request(known, items[items >= 0].astype(np.int32)))
    return sorted(drawn, key=_by_time)


def _draw(frame: pl.DataFrame, count: int, seed: int) -> pl.DataFrame:
    """So many requests, by a hash of their id."""
    return frame.bottom_k(count, by=pl.col("request_id").hash(seed)).sort("time", "request")


def _by_time(request: Drawn) -> tuple[int, int]:
    return request.time, request.number


def _request(row: dict[str, Any], items: npt.NDArray[np.int32]) -> Drawn:
    return Drawn(
        number=int(row["request"]),
        request_id=str(row["request_id"]),
        fold=int(row["fold"]),
        user=int(row["user"]),
        time=int(row["time"]),
        store_id=row["store_id"],
        week=row["week"],
        items=items,
    )


def _rows_of(
    examples: Examples, requests: npt.NDArray[np.int32]
) -> dict[int, tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]]:
    """Items and features of requests, as written, by ordinal."""
    found = {}
    for path in examples.files("examples"):
        request = pq.read_table(path, columns=["request"], partitioning=None)["request"].to_numpy()
        index = np.flatnonzero(np.isin(request, requests))
        if not len(index):
            continue
        columns = ["item", *examples.names]
        table = pq.read_table(path, columns=columns, partitioning=None).take(pa.array(index))
        features = np.stack([table[name].to_numpy() for name in examples.names], axis=1)
        item, group = table["item"].to_numpy(), request[index]
        for number in np.unique(group):
            mine = group == number
            found[int(number)] = (item[mine], np.ascontiguousarray(features[mine]))
    return found


def _frame(table: pa.Table) -> pl.DataFrame:
    """A requests table with `time` in UTC ms."""
    unread = ("history", "query", "session")
    names = [name for name in schema.REQUESTS.names if name not in unread]
    frame = pl.from_arrow(table.select(names))
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(time=pl.col("timestamp").dt.epoch("ms"))
