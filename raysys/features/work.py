"""The work of the features stage, piece by piece: each piece is a task, and is not done twice.

Everything lies in a working folder whose name is the fingerprint of the plan: a stage that was
killed goes on where it was. A piece's file appears whole or not at all; where it is, the piece is
done.

    log/                     the numbered log (`numbered`)
    catalogue.parquet, promotions.safetensors, weeks.npy, attributes/
    baskets/, near/          orders as sets of items; neighbourhoods as of each period
    popular/                 what sells, day by day; and how much, where negatives are drawn by it
    chosen/, blocks/         what becomes an example (`chosen`)
    columns/                 what the tables say of it (`columns`)
    out/                     examples and requests
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys import schema
from raysys.catalogue import Catalogue
from raysys.features.chosen import Block, gather, is_chosen
from raysys.features.columns import Family, is_replayed, replay_family
from raysys.features.kernels import DAY_MS
from raysys.features.live import LiveFeatures
from raysys.features.negative_rows import NegativeSources
from raysys.features.negatives import NegativeSettings
from raysys.features.numbered import NumberedLog
from raysys.features.plan import FeaturePlan
from raysys.features.promotions import DISPLAY, MAILER, Promotions
from raysys.features.proposing import CandidateSettings
from raysys.features.replay import CHOOSING, Recall, Retrieval, choose_part, popularity_by_day
from raysys.features.requests import Requests
from raysys.features.resources import Resources, Vectors, load_resources
from raysys.features.sessions import with_last
from raysys.features.shown import LabelRows, choose_shown
from raysys.features.stitching import Stitcher, join_state
from raysys.features.user_attributes import (
    UserAttributes,
    attributes_read,
    require_attributes,
    texts_of,
)
from raysys.features.user_updates import UserUpdates
from raysys.features.weeks import KnownWeeks
from raysys.retrieval.baskets import Baskets, BasketWriter
from raysys.retrieval.covisitation import CoVisitation
from raysys.retrieval.popular import Popular
from raysys.storage import write_atomic

_REGISTERED: Final = "registered.parquet"  # of whom the shop tells and the log does not


@dataclass(frozen=True)
class Work:
    """What all tasks know; small, and picklable.

    Attributes:
        root: the working folder, readable and writable by all tasks.
        plan, candidates: as in the settings.
        moments: from when on each neighbourhood holds; the last is that of serving.
        parts: into how many the users are dealt.
    """

    root: Path
    plan: FeaturePlan
    candidates: CandidateSettings
    moments: tuple[int, ...] = ()
    parts: int = 1

    @cached_property
    def log(self) -> NumberedLog:
        """The numbered log."""
        return NumberedLog(self.root / "log")

    def live(self, states: Sequence[str] | None = None) -> LiveFeatures:
        """Empty state; of some tables, windows and last things only if they are named."""
        plan = self.plan
        resources = Resources.load(self.root / "resources", spaces=states is None)
        if states is not None:
            kept: dict[str, Any] = {
                kind: {n: s for n, s in getattr(plan, kind).items() if n in states}
                for kind in ("tables", "windows", "last")
            }
            # validated as a whole already: its features are not read without their states
            plan = plan.model_copy(update={**kept, "vectors": {}, "features": []})
        catalogue, log = self.catalogue(), self.log
        return LiveFeatures(
            *(plan, catalogue, log.users, log.stores, self.candidates),
            queries=log.queries,
            resources=resources,
            attributes=UserAttributes.load(self.root / "attributes", plan, len(log.users)),
        )

    def write_attributes(self, users: Path) -> None:
        """What the shop tells of users, once.

        Raises:
            UserError: an attribute that no user has.
        """
        folder = self.root / "attributes"
        if folder.exists() or not attributes_read(self.plan):
            return
        told = pq.read_table(users) if users.exists() else schema.USERS.empty_table()
        require_attributes(self.plan, told)
        texts, active = texts_of(self.plan, told), pa.array(self.log.users, pa.string())
        fresh = self.root / ".attributes"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        UserAttributes.fit(self.plan, texts, self.log.users).save(fresh)
        known = pc.is_in(texts["user_id"], value_set=active)
        pq.write_table(texts.filter(pc.invert(known)), fresh / _REGISTERED)
        fresh.rename(folder)

    def write_resources(
        self, root: Path, make: Callable[[Catalogue, Sequence[str]], dict[str, Vectors]]
    ) -> None:
        """What the plan reads from files, whose paths start from `root`; and vectors of texts.

        Args:
            root: of relative paths.
            make: gives the latter by name, of a catalogue and of queries by number.

        Raises:
            UserError: see `load_resources`.
        """
        folder = self.root / "resources"
        if not folder.exists():
            fresh = self.root / ".resources"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            catalogue, queries = self.catalogue(), self.log.queries
            made = make(catalogue, queries) if self.plan.encoded else {}
            load_resources(self.plan, root, made=made, catalogue=catalogue, queries=queries).save(
                fresh
            )
            fresh.rename(folder)

    def write_catalogue(self, items: Path) -> Catalogue:
        """The shop's items, once."""
        path = self.root / "catalogue.parquet"
        if not path.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".tmp")
            Catalogue(pq.read_table(items)).save(fresh)
            fresh.replace(path)
        return self.catalogue()

    def catalogue(self) -> Catalogue:
        """What `write_catalogue` wrote."""
        path = self.root / "catalogue.parquet"
        return _catalogue(path, path.stat().st_mtime_ns)

    def write_promotions(self, source: Path, first_week: int, last_week: int) -> None:
        """Promotions of some weeks; none if the shop tells of none."""
        path = self.root / "promotions.safetensors"
        if path.exists():
            return
        known = self.root / "weeks.tmp.npy"
        KnownWeeks.of(self.log).save(known)
        known.replace(self.root / "weeks.npy")
        promotions = Promotions.empty()
        if source.exists() and first_week >= 0:
            promotions = self._read_promotions(source, first_week, last_week)
        fresh = path.with_suffix(".tmp")
        promotions.save(fresh)
        fresh.replace(path)

    def promotions(self) -> Promotions:
        """What `write_promotions` wrote."""
        return Promotions.load(self.root / "promotions.safetensors")

    def weeks(self) -> KnownWeeks:
        """Which promotion week was the newest when; `write_promotions` wrote it."""
        return KnownWeeks.load(self.root / "weeks.npy")

    def write_baskets(self) -> None:
        """Orders as sets of items; an order that lies in two slices is put together at the end."""
        folder = self.root / "baskets"
        if (folder / "item_ends.npy").exists():
            return
        seen = np.full(self.log.n_orders, -1, dtype=np.int32)
        torn = np.zeros(self.log.n_orders, dtype=np.bool_)
        for number, each in enumerate(self.log.slices()):
            order = each.events.order
            torn[order[seen[order] >= 0]] = True
            seen[order] = number
        del seen
        writer = BasketWriter(folder, pq.read_metadata(self.root / "catalogue.parquet").num_rows)
        rest = []
        for each in self.log.slices():
            order, item = each.events.order, each.events.item
            epoch = np.searchsorted(self.moments, each.events.time, side="right").astype(np.uint16)
            apart = torn[order]
            writer.add(order[~apart], item[~apart], epoch[~apart])
            rest.append((order[apart], item[apart], epoch[apart]))
        writer.add(*(np.concatenate(columns) for columns in zip(*rest, strict=True)))
        writer.close()

    def fit_neighbourhood(self, epoch: int, settings: Any) -> None:
        """Neighbourhoods from events strictly before a moment (see `CoVisitationSettings`)."""
        path = self.root / "near" / f"{epoch:05d}.safetensors"
        if path.exists():
            return
        path.parent.mkdir(exist_ok=True)
        baskets = Baskets.load(self.root / "baskets")
        fitted = CoVisitation.fit_baskets(
            baskets,
            epoch,
            k=settings.k,
            min_count=settings.min_count,
            shrinkage=settings.shrinkage,
        )
        fresh = path.with_suffix(".tmp")
        fitted.save(fresh)
        fresh.replace(path)

    def neighbourhood(self, epoch: int) -> CoVisitation:
        """What `fit_neighbourhood` wrote."""
        return CoVisitation.load(self.root / "near" / f"{epoch:05d}.safetensors")

    def neighbourhoods(self) -> list[tuple[int, CoVisitation]]:
        """Those that requests of the log are answered with, each with its first moment."""
        return [(at, self.neighbourhood(n)) for n, at in enumerate(self.moments[:-1])]

    def write_popular(self, first: int, last: int, *, amounts: bool = False) -> None:
        """What sells as of midnight of each day between two moments; and `amounts` of each item."""
        folder = self.root / "popular"
        days = range(first // int(DAY_MS), last // int(DAY_MS) + 1)
        if (folder / f"{days[-1]}.safetensors").exists():
            return
        folder.mkdir(exist_ok=True)

        live = self.live(["item"])

        def save(day: int, popularity: npt.NDArray[np.float64]) -> None:
            fresh = folder / f"{day}.tmp"
            if amounts:
                np.save(folder / f"{day}.npy", popularity.astype(np.float32))
            Popular(popularity, live.codes["category"]).save(fresh)
            fresh.replace(folder / f"{day}.safetensors")

        popularity_by_day(live, self.log, days, save)

    def popular(self, day: int) -> Popular:
        """What `write_popular` wrote of a day."""
        return Popular.load(self.root / "popular" / f"{day}.safetensors")

    def negative_sources(self, settings: NegativeSettings) -> NegativeSources:
        """What negatives are drawn from."""
        ids = pl.Series(self.catalogue().ids, dtype=pl.String)

        def sold(day: int) -> tuple[Popular, npt.NDArray[np.float64]]:
            amounts = np.load(self.root / "popular" / f"{day}.npy")
            return self.popular(day), amounts.astype(np.float64)

        return NegativeSources(
            *(settings, self.neighbourhoods(), sold),
            *(ids.hash(settings.seed).to_numpy(), self.candidates.seeds),
        )

    def choose_retrieved(
        self, part: int, requests: Requests, blocks: Sequence[Block], history: int
    ) -> dict[str, Any]:
        """Candidates of one part's requests."""

        def choose() -> dict[int, Recall]:
            retrieval = Retrieval(self.neighbourhoods(), self.popular, history)
            return choose_part(
                *(self.live(CHOOSING), self.log, requests.frame, requests.relevant, retrieval),
                *(blocks, self.root / "chosen", part, self.parts),
            )

        return self._chosen(part, choose)

    def choose_logged(
        self,
        part: int,
        label_rows: LabelRows,
        blocks: Sequence[Block],
        *,
        negatives: NegativeSettings | None = None,
        **how: Any,
    ) -> dict[str, Any]:
        """Examples among the events of one part's users; see `choose_shown`."""

        def choose() -> dict[int, Recall]:
            sources = None if negatives is None else self.negative_sources(negatives)
            return choose_shown(
                *(self.log, self.plan, label_rows, blocks, self.root / "chosen", part, self.parts),
                negatives=sources,
                **how,
            )

        return self._chosen(part, choose)

    def _chosen(self, part: int, choose: Any) -> dict[str, Any]:
        """What a task chose, or had chosen before: its recall by fold."""
        told = self.root / "chosen" / f"recall-{part:05d}.json"
        if not (told.exists() and is_chosen(self.root / "chosen", part)):
            recalls = choose()
            content = {str(fold): asdict(recall) for fold, recall in recalls.items()}
            write_atomic(told, json.dumps(content))
        recall: dict[str, Any] = json.loads(told.read_text())
        return {"recall": recall}

    def gather(self, block: Block) -> dict[str, Any]:
        """Put a block together."""
        return gather(self.root / "chosen", self.parts, block, self.root / "blocks")

    def replay(self, family: Family, part: int, blocks: Sequence[Block]) -> None:
        """Replay a family of tables over the log."""
        out = self.root / "columns"
        if not is_replayed(family, part, out):
            replay_family(
                *(self.live(family.states), self.plan, self.log, family, part),
                *(family.parts(self.parts), blocks, self.root / "blocks", out),
            )

    def stitcher(self) -> Stitcher:
        """Puts the columns together."""
        return Stitcher(
            *(self.live(), self.parts, self.promotions(), self.weeks(), self.neighbourhoods()),
            *(self.root / "blocks", self.root / "columns", self.root / "out"),
        )

    def write_state(self, families: Sequence[Family], folder: Path) -> None:
        """The state at the end of the log, into the empty folder of the features."""
        state = self.live()
        state.covisitation = self.neighbourhood(len(self.moments) - 1)
        promotions = self.promotions()
        state.promotions = promotions.between(promotions.last_week - 1, promotions.last_week)
        sessions = self.log.newest_sessions(state.sessions.keep)
        last = np.zeros(1 + max(sessions["session"].tail(1), default=-1), dtype=np.int64)
        for each in self.log.slices():
            state.note(each.events)
            known = each.events.session >= 0
            last[each.events.session[known]] = each.events.time[known]  # in time order
        state.sessions.name(with_last(sessions, last, self.log.users))
        registered = self.root / "attributes" / _REGISTERED
        if registered.exists():  # numbered after those of the log
            UserUpdates(state, state.open_user).take_rows(pq.read_table(registered))
        folder.mkdir()
        state.save(folder)
        kinds = [(kind, getattr(self.plan, kind)) for kind in ("tables", "windows", "last")]
        for family in families:
            for name in family.states:
                kind = next(kind for kind, names in kinds if name in names)
                join_state(
                    self.root / "columns" / "states",
                    name,
                    family.parts(self.parts),
                    folder / kind / f"{name}.safetensors",
                )

    def _read_promotions(self, source: Path, first_week: int, last_week: int) -> Promotions:
        catalogue = self.catalogue()
        stores = pl.Series(self.log.stores, dtype=pl.String)
        numbers = pl.Series(np.arange(len(stores)), dtype=pl.Int64)
        columns: list[list[Any]] = [[], [], [], []]
        for batch in pq.ParquetFile(source).iter_batches(2_000_000):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            frame = frame.filter(pl.col("week").is_between(first_week, last_week))
            store = frame["store_id"].replace_strict(
                stores, numbers, default=-1, return_dtype=pl.Int64
            )
            flags = frame.select(
                pl.col("display").is_not_null().cast(pl.UInt8) * DISPLAY
                + pl.col("mailer").is_not_null().cast(pl.UInt8) * MAILER
            ).to_series()
            item = catalogue.numbers(frame["item_id"].to_arrow()).astype(np.int64)
            weeks = frame["week"].cast(pl.Int64).to_numpy()
            for column, values in zip(
                columns, (weeks, store.to_numpy(), item, flags.to_numpy()), strict=True
            ):
                column.append(values)
        made = [np.concatenate(column) for column in columns]
        return Promotions.of_columns(
            made[0], made[1], made[2], made[3], max(1, len(stores)), len(catalogue)
        )


@lru_cache(maxsize=1)
def _catalogue(path: Path, changed: int) -> Catalogue:
    """Read once for all tasks that a process does; `changed` (ns) tells a new one from the last."""
    return Catalogue.load(path)
