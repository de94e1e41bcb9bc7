"""What a deployment can be told: the `args` of the application in a serve config."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysys.config import Settings
from raysys.serving.policy import PolicyArgs


class ListArgs(Settings):
    """Of one surface's lists.

    Attributes:
        candidates: most items that are scored for one answer.
        policy: what is done with the ranking before it is shown.
    """

    candidates: Annotated[int, Field(ge=1, le=5000)] = 300
    policy: PolicyArgs = PolicyArgs()


class SearchArgs(ListArgs):
    """Of search: how its two sides weigh against each other.

    Attributes:
        relevance_weight: of how well the item fits the query (fused words and meaning, 0 to 1).
        personal_weight: of how well it fits the user (the ensemble, 0 to 1 among the candidates).
    """

    relevance_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    personal_weight: Annotated[float, Field(ge=0, le=1)] = 0.5


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
        name: of the shop, on its pages.
    """

    storefront: bool = False
    name: Annotated[str, Field(min_length=1, max_length=60)] = "raysys shop"


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
        deadline_ms: learners whose turn comes later than this after the request arrived are left
            out, and the answer says so; null: wait for all.
        recommend: lists without a query.
        search: lists for a query.
        text: text tasks that are served as well.
        pinned_text: task → id of the bundle, as `pinned`.
        pages: pages for people.
    """

    registry: str = "runs/demo/registry"
    bundle: str | None = "champion"
    pinned: str | None = None
    clock: Literal["wall", "log_end"] = "wall"
    k_max: Annotated[int, Field(ge=1, le=1000)] = 100
    threads: Annotated[int, Field(ge=1, le=64)] = 2
    deadline_ms: Annotated[float, Field(gt=0, le=60_000)] | None = None
    recommend: ListArgs = ListArgs()
    search: SearchArgs = SearchArgs()
    text: TextArgs = TextArgs()
    pinned_text: dict[str, str] = {}
    pages: PagesArgs = PagesArgs()

    @model_validator(mode="after")
    def _something(self) -> ServeArgs:
        if self.bundle is None and not self.text.named():
            raise ValueError("bundle: give a bundle that ranks, or text tasks, or both")
        return self

    @property
    def registry_path(self) -> Path:
        """The registry's folder; see `registry`."""
        path = Path(self.registry).expanduser()
        return path if path.is_absolute() else Path(os.environ.get("RAYSYS_HOME", ".")) / path
