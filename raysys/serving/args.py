"""What a deployment can be told: the `args` of the application in a serve config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysys.config import Settings
from raysys.monitoring.settings import MonitorArgs
from raysys.serving.cache import CacheArgs
from raysys.serving.edge_args import AuthArgs, LimitArgs, Origin, under_home
from raysys.serving.events_args import EventsArgs
from raysys.serving.exposures import ExperimentArgs
from raysys.serving.policy import PolicyArgs
from raysys.serving.reranking import RerankArgs
from raysys.serving.shown_lists import ShownArgs
from raysys.serving.stock import StockArgs
from raysys.serving.tracing import TracingArgs
from raysys.serving.transformer import TransformerArgs


class ListArgs(Settings):
    """Of one surface's lists.

    Attributes:
        candidates: most items that are scored for one answer.
        policy: what is done with the ranking before it is shown.
    """

    candidates: Annotated[int, Field(ge=1, le=5000)] = 300
    policy: PolicyArgs = PolicyArgs()


class RecommendArgs(ListArgs):
    """Of lists without a query.

    Attributes:
        next_item: items that the bundle's learner of sequences, if it has one, proposes after what
            the user last took; 0: none.
    """

    next_item: Annotated[int, Field(ge=0, le=2000)] = 40


class SearchArgs(ListArgs):
    """Of search: how its two sides weigh against each other.

    Attributes:
        relevance_weight: of how well the item fits the query (fused words and meaning, 0 to 1).
        personal_weight: of how well it fits the user (the ensemble, 0 to 1 among the candidates).
        rerank: the second look at the best few; see `RerankArgs`.
    """

    relevance_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    personal_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    rerank: RerankArgs = RerankArgs()


class SimilarArgs(ListArgs):
    """Of items like another: how likeness and taste weigh against each other.

    Attributes:
        similarity_weight: of how alike the items are (words, vectors and what goes with it, fused).
        personal_weight: of how well it fits the user (the ensemble, 0 to 1 among the candidates).
    """

    candidates: Annotated[int, Field(ge=1, le=5000)] = 150
    similarity_weight: Annotated[float, Field(ge=0, le=1)] = 0.7
    personal_weight: Annotated[float, Field(ge=0, le=1)] = 0.3


class TextArgs(Settings):
    """Text tasks that are served: for each a pointer (`text-classify`) or a bundle's id.

    Attributes:
        classify: behind /v1/text/classify; null: not served.
        entities: behind /v1/text/entities.
        sentiment: behind /v1/text/sentiment.
        relevance: behind /v1/text/relevance.
    """

    classify: str | None = None
    entities: str | None = None
    sentiment: str | None = None
    relevance: str | None = None

    def named(self) -> dict[str, str]:
        """Task → pointer or id, of those that are served."""
        return {task: name for task, name in self if name is not None}


class PagesArgs(Settings):
    """Pages for people, beside the calls.

    Attributes:
        storefront: the shop's pages at /.
        console: the operators' pages at /console, for keys with the role admin.
        name: of the shop, on its pages.
        shoppers: visitors may shop as users of the log with long histories: for demonstrations, as
            their profiles and lists are shown to everybody. Null: only where there are no keys.
        secure_cookies: cookies are marked as for https alone: where TLS ends before the
            application, which then takes requests for plain HTTP. false: those of answers to
            requests that came by https, as far as Serve can tell.
    """

    storefront: bool = False
    console: bool = False
    name: Annotated[str, Field(min_length=1, max_length=60)] = "raysys shop"
    shoppers: bool | None = None
    secure_cookies: bool = False


class ServeArgs(Settings):
    """Arguments of `raysys.serving.app:build`.

    Attributes:
        registry: folder of the registry; a relative one is looked up under RAYSYS_HOME, or under
            the folder that Ray was started in.
        bundle: a pointer (`champion`) or a bundle's id; null: text tasks only.
        pinned: id of the bundle that `bundle` meant when the application was deployed; replicas
            that start later load the same one. Filled in by `build` and by `raysys deploy`.
        clock: the time at which features are read. `wall`: now. `log_end`: the newest event of
            the bundle, which is right for a historical log.
        k_max: the longest list that may be asked for.
        threads: requests that one replica works on at once.
        max_waiting: requests that wait for one of the threads; beyond that the least urgent is
            refused with 503 and Retry-After. Search goes first, background calls last.
        deadline_ms: milliseconds after the request arrived by which the answer should be there;
            learners that would not be done by then, as their last runs say, are left out, and the
            answer says so. A request may say its own (`X-Deadline-Ms`). null: wait for all.
        recommend: lists without a query.
        search: lists for a query.
        events: the event log that is written to and followed; null: events are not taken.
        similar: lists of items like another.
        stock: where it is told what is in stock; null: all is.
        cache: how long scores are kept for the same request; null: not at all.
        shown_lists: where it is recorded what was shown to whom; null: nowhere.
        experiments: how experiments are served; which are is `user_config.experiments`.
        monitor: how drift, and what comes of the lists, are watched; null: not at all.
        text: text tasks that are served as well.
        pinned_text: task → id of the bundle, as `pinned`.
        follow: load the bundle that `bundle` means as soon as that changes, without a deployment;
            false: `pinned` stays.
        pages: pages for people.
        auth: who may call.
        limits: how often one key, or one address, may call.
        transformer: queries, histories and pairs are read in a deployment of its own,
            `Transformer`, which `deployments` may say more of; null: in each replica itself.
        tracing: where traces of answers go; null: none are made.
        cors_origins: pages whose scripts may call from browsers, such as `https://shop.example`.
    """

    registry: str = "runs/demo/registry"
    bundle: str | None = "champion"
    pinned: str | None = None
    clock: Literal["wall", "log_end"] = "wall"
    k_max: Annotated[int, Field(ge=1, le=1000)] = 100
    threads: Annotated[int, Field(ge=1, le=64)] = 2
    max_waiting: Annotated[int, Field(ge=1, le=10_000)] = 64
    deadline_ms: Annotated[float, Field(gt=0, le=60_000)] | None = None
    recommend: RecommendArgs = RecommendArgs()
    search: SearchArgs = SearchArgs()
    events: EventsArgs | None = None
    similar: SimilarArgs = SimilarArgs()
    stock: StockArgs | None = None
    cache: CacheArgs | None = None
    shown_lists: ShownArgs | None = None
    monitor: MonitorArgs | None = None
    experiments: ExperimentArgs = ExperimentArgs()
    text: TextArgs = TextArgs()
    pinned_text: dict[str, str] = {}
    follow: bool = False
    pages: PagesArgs = PagesArgs()
    auth: AuthArgs = AuthArgs()
    limits: LimitArgs = LimitArgs()
    transformer: TransformerArgs | None = None
    tracing: TracingArgs | None = None
    cors_origins: tuple[Origin, ...] = ()

    @model_validator(mode="after")
    def _something(self) -> ServeArgs:
        if self.bundle is None and not self.text.named():
            raise ValueError("bundle: give a bundle that ranks, or text tasks, or both")
        return self

    def of(self, surface: str) -> ListArgs:
        """Those of one surface's lists."""
        return {"recommend": self.recommend, "search": self.search, "similar": self.similar}[
            surface
        ]

    @property
    def registry_path(self) -> Path:
        """The registry's folder; see `registry`."""
        return under_home(self.registry)

    @property
    def exposures_path(self) -> Path:
        """The exposures' folder; see `ExperimentArgs.exposures`."""
        if self.experiments.exposures is None:
            return self.registry_path.parent / "exposures"
        return under_home(self.experiments.exposures)

    @property
    def shown_lists_path(self) -> Path:
        """The shown lists' folder; see `ShownArgs.folder`."""
        if self.shown_lists is None or self.shown_lists.folder is None:
            return self.registry_path.parent / "shown_lists"
        return under_home(self.shown_lists.folder)

    @property
    def monitor_path(self) -> Path:
        """Where drift is counted; see `MonitorArgs.folder`."""
        if self.monitor is None or self.monitor.folder is None:
            return self.registry_path.parent / "monitor"
        return under_home(self.monitor.folder)

    @property
    def events_path(self) -> Path:
        """The event log's folder; see `EventsArgs.path`."""
        if self.events is None or self.events.path is None:
            return self.registry_path.parent / "eventlog"
        return under_home(self.events.path)
