"""`raysys features`: from the log to examples, and the feature state at the log's end."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from pydantic import Field

from raysys.catalogue import Catalogue
from raysys.cluster import ray_session
from raysys.config import Settings
from raysys.features.live import CandidateSettings, LiveFeatures
from raysys.features.log import EventColumns, Log, read_log
from raysys.features.plan import FeaturePlan
from raysys.features.promotions import DISPLAY, MAILER, Promotions
from raysys.features.replay import Recall, replay
from raysys.features.requests import DAY_MS, Requests, RequestSettings, build_requests
from raysys.progress import task
from raysys.retrieval.covisitation import CoVisitation
from raysys.storage import Manifest, Workspace, is_done, read_manifest, replacing


class CoVisitationSettings(Settings):
    """How neighbourhoods are fitted: see `CoVisitation.fit`; refitted every `refit_days`."""

    k: int = Field(30, ge=1, le=500)
    min_count: int = Field(4, ge=1)
    shrinkage: float = Field(5.0, ge=0)
    refit_days: float = Field(28, gt=0)


class FeaturesSettings(RequestSettings):
    """The YAML of `raysys features`."""

    kind_name: ClassVar[str] = "features"

    group_by: list[Literal["order_id", "session_id"]] = ["order_id", "session_id"]
    history: int = Field(24, ge=1, le=500)
    parts: int = Field(2, ge=1, le=4096)  # tasks that replay the log, each for its requests
    seed: int = 17
    candidates: CandidateSettings = CandidateSettings()
    covisitation: CoVisitationSettings = CoVisitationSettings()
    plan: FeaturePlan


def run(settings: FeaturesSettings, workspace: Workspace, *, force: bool = False) -> Manifest:
    """Write examples by fold, requests, catalogue and state into `workspace.features`.

    Raises:
        UserError: no ingested log, or folds that the log cannot fill.
    """
    planned = Manifest(
        stage="features",
        inputs={"ingest": read_manifest(workspace.ingest).fingerprint},
        settings=settings.model_dump(mode="json"),
    )
    if not force and is_done(workspace.features, planned):
        return read_manifest(workspace.features)
    started = time.monotonic()
    with ray_session(), replacing(workspace.features) as folder:
        with task("features: reading the log") as reading:
            catalogue = Catalogue(pq.read_table(workspace.ingest / "items.parquet"))
            log = read_log(workspace.ingest / "events", catalogue, group_by=settings.group_by)
            requests = build_requests(log, settings, settings.seed)
            reading.note = f"{len(log.events):,} events, {len(requests.frame):,} requests"
        state = LiveFeatures(settings.plan, catalogue, log.users, log.stores, settings.candidates)
        recalls = _write_examples(settings, state, log, requests, workspace.ingest, folder)
        with task("features: state at the end of the log"):
            state.apply(log.events)
            (folder / "state").mkdir()
            state.save(folder / "state")
            catalogue.save(folder / "catalogue.parquet")
        planned.seconds = time.monotonic() - started
        planned.counts = {
            "events": len(log.events),
            "users": len(log.users),
            "items": len(catalogue),
            "requests": sum(recall.requests for recall in recalls.values()),
            "examples": sum(recall.candidates for recall in recalls.values()),
        }
        planned.figures = {
            "folds": {
                "train": list(range(requests.validation)),
                "validation": requests.validation,
                "report": requests.validation + 1,
                "bounds": [str(np.datetime64(bound, "ms")) for bound in requests.folds],
            },
            "names": list(settings.plan.names),
            "recall": {
                str(fold): {**asdict(recall), "recall": recall.found / max(1, recall.relevant)}
                for fold, recall in sorted(recalls.items())
            },
        }
        planned.write(folder)
    return planned


def _write_examples(
    settings: FeaturesSettings,
    state: LiveFeatures,
    log: Log,
    requests: Requests,
    ingest: Path,
    folder: Path,
) -> dict[int, Recall]:
    """Fit neighbourhoods as of each period, replay the parts as Ray tasks, gather their counts.

    Leaves in `state` the newest neighbourhood and the promotions that serving needs.
    """
    import ray

    events = ray.put(log.events)
    n_items = len(state.catalogue)
    step = int(settings.covisitation.refit_days * DAY_MS)
    moments = [*range(requests.folds[0], requests.folds[-1], step), requests.folds[-1]]
    fit = ray.remote(_fit_covisitation)
    fits = [fit.remote(events, moment, n_items, settings.covisitation) for moment in moments]
    promotions = _promotions(ingest, state, requests)
    with task("features: items bought together", len(fits)) as fitting:
        for done in fits:
            ray.wait([done])
            fitting.advance()
    neighbourhoods = list(zip(moments[:-1], fits[:-1], strict=True))
    shared = ray.put(promotions)
    work = ray.remote(_replay_part)
    ticker = ray.remote(_Ticker).options(num_cpus=0).remote()
    parts = [
        work.remote(
            *(settings, state.catalogue, state.users, state.stores, events, shared),
            *(requests.frame.filter(pl.col("request") % settings.parts == part).drop("order"),),
            *(requests.relevant, [at for at, _ in neighbourhoods], str(folder), part, ticker),
            *[fitted for _, fitted in neighbourhoods],
        )
        for part in range(settings.parts)
    ]
    recalls: dict[int, Recall] = {}
    with task("features: replaying the log", len(requests.frame)) as replaying:
        waiting = list(parts)
        while waiting:
            _, waiting = ray.wait(waiting, timeout=1.0)
            replaying.reach(ray.get(ticker.total.remote()))
        for mine in ray.get(parts):
            for fold, recall in mine.items():
                total = recalls.setdefault(fold, Recall())
                for name, value in asdict(recall).items():
                    setattr(total, name, getattr(total, name) + value)
        found = sum(recall.found for recall in recalls.values())
        relevant = sum(recall.relevant for recall in recalls.values())
        replaying.note = f"candidates hold {found / max(1, relevant):.1%} of what was bought"
    state.covisitation = ray.get(fits[-1])
    last = promotions.last_week
    state.promotions = promotions.between(last - 1, last)
    return recalls


class _Ticker:
    """Adds up the progress of all parts."""

    def __init__(self) -> None:
        self._done: dict[int, int] = {}

    def tell(self, part: int, done: int) -> None:
        self._done[part] = done

    def total(self) -> int:
        return sum(self._done.values())


def _fit_covisitation(
    events: EventColumns, until: int, n_items: int, settings: CoVisitationSettings
) -> CoVisitation:
    """Neighbourhoods from events strictly before a moment."""
    stop = int(np.searchsorted(events.time, until))
    return CoVisitation.fit(
        events.order[:stop],
        events.item[:stop],
        n_items,
        k=settings.k,
        min_count=settings.min_count,
        shrinkage=settings.shrinkage,
    )


def _replay_part(
    settings: FeaturesSettings,
    catalogue: Catalogue,
    users: list[str],
    stores: list[str],
    events: EventColumns,
    promotions: Promotions,
    requests: pl.DataFrame,
    relevant: pl.DataFrame,
    moments: list[int],
    folder: str,
    part: int,
    ticker: Any,
    *neighbourhoods: CoVisitation,
) -> dict[int, Recall]:
    """One task: the whole log, the requests of one part."""
    live = LiveFeatures(settings.plan, catalogue, users, stores, settings.candidates)
    live.promotions = promotions
    return replay(
        live,
        events,
        requests,
        relevant,
        list(zip(moments, neighbourhoods, strict=True)),
        Path(folder),
        part,
        settings.history,
        lambda done: ticker.tell.remote(part, done),
    )


def _promotions(ingest: Path, state: LiveFeatures, requests: Requests) -> Promotions:
    """Promotions of the weeks that the requests lie in; none if the shop tells of none."""
    path = ingest / "promotions.parquet"
    weeks = requests.frame["week"].drop_nulls()
    if not path.exists() or weeks.is_empty():
        return Promotions.empty()
    wanted = pl.scan_parquet(path).filter(pl.col("week").is_between(weeks.min(), weeks.max()))
    frame = wanted.select(
        "week",
        item=pl.col("item_id"),
        store=pl.col("store_id"),
        flags=pl.col("display").is_not_null().cast(pl.UInt8) * DISPLAY
        + pl.col("mailer").is_not_null().cast(pl.UInt8) * MAILER,
    ).collect()
    stores = pl.Series(state.stores)
    numbers = pl.Series(np.arange(len(stores)), dtype=pl.Int64)
    store = frame["store"].replace_strict(stores, numbers, default=-1, return_dtype=pl.Int64)
    return Promotions.of_columns(
        frame["week"].cast(pl.Int64).to_numpy(),
        store.to_numpy(),
        state.catalogue.numbers(frame["item"].to_arrow()).astype(np.int64),
        frame["flags"].to_numpy(),
        max(1, len(stores)),
        len(state.catalogue),
    )
