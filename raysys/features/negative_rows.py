"""Negatives as rows of requests: for logs that tell what was wanted and never what was passed over.

Each wanted row of a request draws by `sample_negatives`, all as of the request's moment: what other
sessions touched strictly before it, what sold by the midnight before it, and what retrieval would
have offered. So all of a request draw from the same pools, and a negative that any of its k wanted
rows may name has the probability 1 - (1 - π)^k. The draw is by the names of the request and of the
wanted item: neither how the log is cut nor who draws what changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from raysys.features.chosen import ROW_COLUMNS, Block
from raysys.features.kernels import DAY_MS
from raysys.features.negatives import NegativeSettings, Positives, Touched, sample_negatives
from raysys.features.numbered import LogSlice, NumberedLog
from raysys.ingest.inclusion import mix_each
from raysys.retrieval.covisitation import CoVisitation
from raysys.retrieval.popular import Popular

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

_LOOKED_AT = 10  # windows of events that `sample_negatives` looks back at most


@dataclass(frozen=True)
class NegativeSources:
    """What tasks share.

    Attributes:
        settings: how many, from where.
        neighbourhoods: as in `Retrieval`, each fitted on events before its moment only.
        sold: by day (moment ÷ one day): what sells as of its midnight, in order, and how much of
            every item, float64[n_items].
        item_names: uint64[n_items], a hash of each item's id.
        seeds: last items of the user that co-visitation starts from.
    """

    settings: NegativeSettings
    neighbourhoods: Sequence[tuple[int, CoVisitation]]
    sold: Callable[[int], tuple[Popular, npt.NDArray[np.float64]]]
    item_names: UInt64
    seeds: int


class NegativeDraw:
    """Adds negatives to one block of requests after the other.

    Args:
        sources: what is drawn from.
        log: what happened; the in-session source reads it on the way.
    """

    def __init__(self, sources: NegativeSources, log: NumberedLog) -> None:
        self._sources, self._log = sources, log
        self._at = log.first
        self._tail = Touched(np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64))

    def add(self, block: Block, requests: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows of a block with the negatives of its requests.

        Args:
            block: later than all before.
            requests: of the block: request_id, time, session, history (newest first).
            rows: of these (`ROW_COLUMNS`): `at` is the row of `requests`; label above 0: wanted.
        """
        wanted = rows.filter(pl.col("label") > 0)
        if wanted.is_empty():
            return rows
        settings, touched = self._sources.settings, self._around(block)
        at, item = (wanted[name].to_numpy().astype(np.int64) for name in ("at", "item"))
        time, session = (requests[name].to_numpy().astype(np.int64) for name in ("time", "session"))
        request = requests["request_id"].hash(settings.seed).to_numpy()
        name = mix_each(request[at], self._sources.item_names[item])
        day = time // int(DAY_MS)
        drawn = []
        for number in np.unique(day[at]):
            mine = np.flatnonzero(day[at] == number)
            popular, popularity = self._sources.sold(int(number))
            asked = np.unique(at[mine])
            of_request = at[mine]
            offered = None
            if settings.sizes[2]:  # else there may be no neighbourhoods at all
                offered = self._offered(requests[asked], popular)
                offered = offered[np.searchsorted(asked, of_request)]
            positives = Positives(
                *(item[mine].astype(np.int32), of_request, session[of_request], time[of_request]),
                *(name[mine], offered),
            )
            found = sample_negatives(positives, touched, popularity, settings)
            drawn.append(
                pl.DataFrame(
                    {
                        "at": of_request[found.positive],
                        "item": found.item,
                        "sampling_probability": found.probability,
                    }
                )
            )
        unique = (
            pl.concat(drawn)
            .cast({"at": rows.schema["at"], "item": rows.schema["item"]})
            .group_by("at", "item")
            .agg(pl.col("sampling_probability").max())  # the same for each that named it
            .join(rows.select("at", "item"), on=["at", "item"], how="anti")
        )
        named_by = np.bincount(at, minlength=len(requests))[unique["at"].to_numpy()]
        none = (1 - unique["sampling_probability"].to_numpy()) ** named_by
        negatives = unique.with_columns(
            position=pl.lit(0),
            label=pl.lit(0.0),
            weight=pl.lit(1.0),
            retrieved=pl.lit(True),
            sampling_probability=pl.Series(1 - none),
        )
        return pl.concat(
            [each.select(pl.col(n).cast(to) for n, to in ROW_COLUMNS.items())
             for each in (rows, negatives)]
        )  # fmt: skip

    def _offered(self, requests: pl.DataFrame, popular: Popular) -> Int32:
        """What retrieval would have offered each request, best first: int32[r, last rank].

        The neighbours of the user's last items by co-visitation, then what sells.
        """
        last = self._sources.settings.ranks[1]
        histories = requests["history"].list.head(self._sources.seeds)
        seeds = histories.explode(empty_as_null=False).to_numpy().astype(np.int32)
        sizes = histories.list.len().to_numpy()
        ends = np.cumsum(sizes).astype(np.int64)
        starts = [start for start, _ in self._sources.neighbourhoods]
        epoch = np.searchsorted(starts[1:], requests["time"].to_numpy(), side="right")
        fill = popular.top(last + self._sources.seeds)
        out = np.full((len(requests), last), -1, dtype=np.int32)
        for number in np.unique(epoch):
            mine = np.flatnonzero(epoch == number)
            near = self._sources.neighbourhoods[number][1]
            near.offer_requests(seeds, ends, mine, fill, out)
        return out

    def _around(self, block: Block) -> Touched:
        """What was touched in a block, and just before it as far as anybody looks back."""
        if self._at < block.start:
            for each in self._log.between(self._at, block.start):
                self._tail = self._last(_joined([self._tail, _touched(each)]))
        inside = [_touched(each) for each in self._log.between(block.start, block.end)]
        touched = _joined([self._tail, *inside])
        self._tail, self._at = self._last(touched), block.end
        return touched

    def _last(self, touched: Touched) -> Touched:
        n = _LOOKED_AT * self._sources.settings.window
        return Touched(touched.item[-n:], touched.session[-n:], touched.time[-n:])


def _touched(rows: LogSlice) -> Touched:
    """Events with an item, but for impressions that ingest concluded."""
    events = rows.events
    kept = (events.item >= 0) & np.isnan(rows.probability)
    return Touched(events.item[kept], events.session[kept].astype(np.int64), events.time[kept])


def _joined(parts: Sequence[Touched]) -> Touched:
    return Touched(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("item", "session", "time")
        )
    )
