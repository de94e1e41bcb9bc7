"""A request for a list in numbers, and what of it nobody knows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from raysys.catalogue import Catalogue
from raysys.features.incoming import visitor
from raysys.registry import Bundle
from raysys.serving.api import (
    Filters,
    RankRequest,
    RecommendRequest,
    SearchRequest,
    SimilarRequest,
)
from raysys.serving.args import ServeArgs
from raysys.serving.asking import ABOUT_ITEMS, Ask, Context, new_request_id
from raysys.serving.events import EventService
from raysys.serving.filters import Permissions, key_of
from raysys.serving.problems import FieldError, Problem, invalid

ListRequest = RecommendRequest | SearchRequest | SimilarRequest | RankRequest

SURFACES: Final[dict[type[ListRequest], str]] = {
    RecommendRequest: "recommend",
    SearchRequest: "search",
    SimilarRequest: "similar",
    RankRequest: "rank",
}


@dataclass(frozen=True)
class Intake:
    """Reads requests.

    Attributes:
        args: the deployment's.
        bundle: numbers users, sessions, queries and items.
        permissions: what may be shown.
        events: knows the session that a user is in; None: events are not taken.
    """

    args: ServeArgs
    bundle: Bundle
    permissions: Permissions
    events: EventService | None

    def read(self, asked: ListRequest, context: Context, now: int) -> tuple[Ask, list[str]]:
        """A request in numbers, and the items that it names and nobody knows.

        Args:
            asked: as it came.
            context: how it came.
            now: UTC ms at which features are read.

        Raises:
            Problem: k out of range; the shop knows none of the items that the list is about.
        """
        surface = SURFACES[type(asked)]
        features = self.bundle.features
        named = [asked.item_id] if isinstance(asked, SimilarRequest) else []
        named = asked.item_ids if isinstance(asked, RecommendRequest | RankRequest) else named
        seeds, unknown = _known(features.catalogue, named)
        place = asked.place if isinstance(asked, RecommendRequest) else surface
        if not len(seeds) and (surface in ("rank", "similar") or place in ABOUT_ITEMS):
            raise self._unknown_items(named, surface)
        k = len(seeds) if isinstance(asked, RankRequest) else asked.k
        if not isinstance(asked, RankRequest) and k > self.args.k_max:
            raise invalid("body.k", f"must be from 1 to {self.args.k_max}", k)
        text = asked.query if isinstance(asked, SearchRequest | RankRequest) else None
        who = who_asks(asked.user_id, asked.session_id)
        user = -1 if who is None else features.user_number(who)
        at = context.at or _now()
        filters = () if isinstance(asked, RankRequest) else _filters(asked.filters)
        allowed = None
        if surface != "rank":  # all of the caller's own are wanted back
            allowed = self.permissions.allowed(surface, filters, user, now)
        ask = Ask(
            surface=surface,
            user=user,
            k=k,
            now=now,
            at=at,
            request_id=context.request_id or new_request_id(at),
            until=until(context, self.args),
            seeds=seeds,
            place=place,
            filters=filters,
            allowed=allowed,
            session=self._session(user, asked.session_id, now),
            query=features.query_number(text),
            text=text,
        )
        return ask, unknown

    def _session(self, user: int, session_id: str | None, now: int) -> int:
        if session_id is None and self.events is not None:
            return self.events.session(user, now)
        return self.bundle.features.sessions.number(user, session_id)

    def _unknown_items(self, item_ids: Sequence[str], surface: str) -> Problem:
        field = "body.item_id" if surface == "similar" else "body.item_ids.{}"
        errors = [
            FieldError(path=field.format(i), message="no such item", value=item_id[:80])
            for i, item_id in enumerate(item_ids[:20])
        ]
        detail = f"the catalogue of bundle {self.bundle.id} has none of the items"
        return Problem(404, "unknown-item", detail, errors)


def who_asks(user_id: str | None, session_id: str | None) -> str | None:
    """Who asks; a stranger is known by their session, from the first event of theirs on."""
    return visitor(session_id) if user_id is None and session_id is not None else user_id


def until(context: Context, args: ServeArgs) -> float:
    """`time.perf_counter()` at which the answer has to be there."""
    deadline = context.deadline_ms or args.deadline_ms
    return float("inf") if deadline is None else context.arrived + deadline / 1000


def _known(catalogue: Catalogue, item_ids: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Numbers of the known items, each once, in order: int32[m]; and the unknown ids."""
    numbers = {item_id: catalogue.number(item_id) for item_id in item_ids}
    known = [number for number in numbers.values() if number is not None]
    unknown = [item_id for item_id, number in numbers.items() if number is None]
    return np.array(known, dtype=np.int32), unknown


def _filters(filters: Filters | None) -> Any:
    return () if filters is None else key_of(filters.model_dump(exclude_defaults=True))


def _now() -> int:
    return time.time_ns() // 1_000_000
