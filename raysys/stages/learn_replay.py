"""The recent past lived through once more: what would have been shown at each request, and from
what the learners would have scored it.

The state of the champion's bundle goes on event by event, by the code of a replica. At a request it
has seen what came strictly before; candidates and features are read then, as often as there are
sides to compare, and become examples in the form of `raysys features`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from raysys import schema
from raysys.features.batch import Batch
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.learners.protocol import Float32
from raysys.retrieval.covisitation import CoVisitation
from raysys.stages.learn_events import GATE, PARTS, Requests

FROZEN, BEFORE, AFTER = "frozen", "before", "after"
"""Sides: the champion as published; with the state of the moment; and with new neighbourhoods."""

_SPLITS = ("train", "validation", "report")
_AT_ONCE = 500  # requests of a row group


@dataclass
class ExampleWriter:
    """Examples and requests of one side, a file a part.

    Attributes:
        folder: like that of `raysys features`; made if it is missing.
        names: of the features.
    """

    folder: Path
    names: tuple[str, ...]
    _rows: dict[int, list[pa.Table]] = field(default_factory=dict)
    _requests: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    _files: dict[int, tuple[pq.ParquetWriter, pq.ParquetWriter]] = field(default_factory=dict)

    def add(self, request: Mapping[str, Any], batch: Batch) -> None:
        """One request with its candidates, labelled."""
        fold, n = int(request["fold"]), len(batch)
        keys = {
            "request": np.full(n, request["request"], np.int32),
            "item": batch.item,
            "label": batch.label,
            "weight": batch.weight,
            "retrieved": np.ones(n, np.bool_),
            "sampling_probability": batch.sampling_probability,
        }
        columns = dict(zip(self.names, batch.features.T, strict=True))
        self._rows.setdefault(fold, []).append(pa.table(keys | columns))
        known = {name: request.get(name) for name in schema.REQUESTS.names}
        known |= {
            "timestamp": request["time"],
            "week": _known(request["week"]),
            "split": _SPLITS[fold],
            "session": _known(request.get("session")),
            "history": batch.history[0],
            "query": request["text"] if batch.queries is None else batch.queries[0],
        }
        self._requests.setdefault(fold, []).append(known)
        if len(self._rows[fold]) == _AT_ONCE:
            self._flush(fold)

    def close(self) -> None:
        """Everything is written."""
        for fold in list(self._rows):
            self._flush(fold)
        for pair in self._files.values():
            for file in pair:
                file.close()

    def _flush(self, fold: int) -> None:
        if not self._rows.get(fold):
            return
        rows = pa.concat_tables(self._rows.pop(fold))
        requests = pa.Table.from_pylist(self._requests.pop(fold), schema=schema.REQUESTS)
        if fold not in self._files:
            paths = [self.folder / kind / f"fold={fold}" for kind in ("examples", "requests")]
            for path in paths:
                path.mkdir(parents=True, exist_ok=True)
            first, second = (path / "part-00000.parquet" for path in paths)
            self._files[fold] = (
                pq.ParquetWriter(first, rows.schema, compression="zstd"),
                pq.ParquetWriter(second, requests.schema, compression="zstd"),
            )
        for file, table in zip(self._files[fold], (rows, requests), strict=True):
            file.write_table(table)


@dataclass(frozen=True)
class Neighbourhoods:
    """Items bought together: as the champion has them, and with the orders before each part."""

    champion: CoVisitation
    of_part: tuple[CoVisitation, ...]


def relive(
    live: LiveFeatures,
    events: EventColumns,
    requests: Requests,
    near: Neighbourhoods,
    out: Path,
    *,
    frozen: LiveFeatures | None,
    history: int,
    queries: Mapping[str, Mapping[str, Float32]] | None = None,
    advance: Callable[[], object] = lambda: None,
) -> None:
    """Write the examples of all sides; afterwards `live` holds all events.

    Args:
        live: the state of the champion's bundle.
        events: since then, in time order.
        requests: among them.
        near: neighbourhoods by part, none of which holds an order of its part.
        out: gets a folder a side: `after` of all parts, `before` and `frozen` of the gate's.
        frozen: another copy of the bundle's state, which sees no event; None: no such side.
        history: items of the user kept with each request.
        queries: vectors of queries that the state does not know, by text and by their name, for
            features that compare items with them.
        advance: called after each request.
    """
    sides = {name: ExampleWriter(out / name, live.names) for name in (AFTER, BEFORE, FROZEN)}
    wanted = _by_request(requests.relevant)
    shown = None if requests.shown is None else _by_request(requests.shown)
    at = 0
    for request in requests.frame.iter_rows(named=True):
        until = int(np.searchsorted(events.time, request["time"]))
        if until > at:
            live.apply(events.slice(at, until))
            at = until
        number, fold = request["request"], request["fold"]
        asked = [(AFTER, live, near.of_part[fold])]
        if fold == GATE:
            asked.append((BEFORE, live, near.champion))
            if frozen is not None:
                asked.append((FROZEN, frozen, near.champion))
        store = live.stores[request["store"]] if request["store"] >= 0 else None
        for name, state, neighbourhood in asked:
            state.covisitation = neighbourhood
            if shown is None:
                batch = _offered(state, request, store, history, wanted[number])
            else:
                vectors = (queries or {}).get(request["text"])
                batch = _shown(state, request, store, history, shown[number], vectors)
            orders = state.orders(_user(state, request))
            sides[name].add(request | {"n_orders": orders, "store_id": store}, batch)
        advance()
    for each in sides.values():
        each.close()
    live.apply(events.slice(at, len(events)))


def _by_request(rows: pl.DataFrame) -> dict[int, pl.DataFrame]:
    return {key[0]: part for key, part in rows.group_by("request", maintain_order=True)}


def _offered(
    state: LiveFeatures,
    request: Mapping[str, Any],
    store: str | None,
    history: int,
    relevant: pl.DataFrame,
) -> Batch:
    """Candidates and features as a replica would have had them."""
    user, time = _user(state, request), int(request["time"])
    items = state.candidates(user, time).items
    batch = state.batch(user, items, time, store, history=history, session=request["session"])
    ones = np.ones(len(items), np.float32)
    label = _labels(items, relevant)
    return replace(batch, label=label, weight=ones, sampling_probability=ones)


def _shown(
    state: LiveFeatures,
    request: Mapping[str, Any],
    store: str | None,
    history: int,
    rows: pl.DataFrame,
    query_vectors: Mapping[str, Float32] | None,
) -> Batch:
    """What was shown, with features as they stood."""
    batch = state.batch(
        *(_user(state, request), rows["item"].to_numpy(), int(request["time"]), store),
        history=history,
        session=request["session"],
        query=request["query"],
        query_vectors=query_vectors,
        positions=rows["position"].to_numpy(),
    )
    return replace(
        batch,
        label=rows["label"].to_numpy(),
        weight=rows["weight"].to_numpy(),
        sampling_probability=rows["sampling_probability"].to_numpy(),
    )


def _user(state: LiveFeatures, request: Mapping[str, Any]) -> int:
    """Their number; -1 of users that a frozen state has not met."""
    return int(request["user"]) if request["user"] < state.n_users else -1


def _labels(items: npt.NDArray[np.int32], relevant: pl.DataFrame) -> npt.NDArray[np.float32]:
    """Gain of each candidate: float32[n]."""
    wanted, gains = relevant["item"].to_numpy(), relevant["label"].to_numpy()
    place = np.minimum(np.searchsorted(wanted, items), len(wanted) - 1)
    return np.where(wanted[place] == items, gains[place], 0.0).astype(np.float32)


def parts_of(requests: Requests) -> dict[str, int]:
    """How many requests each part has."""
    fold = requests.frame["fold"].to_numpy()
    return {name: int((fold == number).sum()) for number, name in enumerate(PARTS)}


def _known(number: int | None) -> int | None:
    """A number as a table holds it: null where it is unknown."""
    return None if number is None or number < 0 else number
