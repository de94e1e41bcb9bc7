"""The system behind the web pages: the calls of HTTP, answered in process from one replica."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property
from typing import Any

from fastapi import FastAPI
from pydantic import ValidationError

from raysys.catalogue import Catalogue
from raysys.serving.api import RankRequest, RecommendRequest, SearchRequest, SimilarRequest
from raysys.serving.args import ServeArgs
from raysys.serving.arms import Arms
from raysys.serving.asking import Context
from raysys.serving.events_routes import keep_events
from raysys.serving.intake import ListRequest
from raysys.serving.keys import KeyRing
from raysys.serving.operator import Operator
from raysys.serving.problems import Problem, field_errors
from raysys.serving.service import Service
from raysys.serving.traffic_board import TrafficBoard
from raysys.serving.workers import NORMAL, URGENT
from raysys.web import Cookies, Refused, assets, console, storefront

log = logging.getLogger("raysys")

Record = Callable[[Sequence[dict[str, Any]]], Awaitable[bool]]

_MODELS: dict[str, type[ListRequest]] = {
    "recommend": RecommendRequest,
    "search": SearchRequest,
    "similar": SimilarRequest,
    "rank": RankRequest,
}
_LOOKED_AT = 2000


def add_pages(
    app: FastAPI, service: Service, arms: Arms | None, board: TrafficBoard | None
) -> None:
    """Add the pages for people that the deployment asks for.

    Args:
        app: of the calls.
        service: answers what the pages ask.
        arms: what the console changes.
        board: knows the traffic of all replicas; without both there is no console.
    """
    wanted = service.args.pages
    if service.args.bundle is None or not (wanted.storefront or wanted.console):
        return
    shop = ServiceAnswers(service, Recorder(service, arms))
    cookies = cookies_of(service.args)
    app.include_router(assets())
    if wanted.storefront:
        app.include_router(storefront(shop, wanted.name, cookies))
    if wanted.console and arms is not None and board is not None:
        name = f"{wanted.name}: console"
        app.include_router(console(shop, Operator(arms, board), name, cookies))


def cookies_of(args: ServeArgs) -> Cookies:
    """How a deployment's pages write cookies, and whom they believe: with keys no visitor can be
    somebody whom the pages did not make them.

    Raises:
        UserError: the file of keys is missing or damaged.
    """
    path, pages = args.auth.keys_path, args.pages
    if path is None:
        shoppers = pages.shoppers is not False
        return Cookies(secure=pages.secure_cookies, shoppers=shoppers)
    ring = KeyRing(path)

    def sign(value: str) -> str:
        return hmac.new(ring.signing(), f"visit {value}".encode(), hashlib.sha256).hexdigest()

    return Cookies(sign, pages.secure_cookies, shoppers=pages.shoppers is True)


class Recorder:
    """Takes what visitors of the pages do, as POST /v1/events takes it."""

    def __init__(self, service: Service, arms: Arms | None) -> None:
        self._service, self._arms = service, arms

    async def __call__(self, events: Sequence[dict[str, Any]]) -> bool:
        """False where this deployment takes none, or cannot now: the page goes on without."""
        if self._service.events is None:
            return False
        try:
            await keep_events(events, self._service, self._arms)
        except Problem as problem:
            log.warning("what a visitor did is not recorded: %s", problem.detail)
            return False
        return True


class ServiceAnswers:
    """`web.Answers` over a service.

    Args:
        service: of this replica.
        recorder: takes events; None: this deployment takes none.
    """

    def __init__(self, service: Service, recorder: Record | None = None) -> None:
        self._service, self._recorder = service, recorder

    @property
    def catalogue(self) -> Catalogue:
        """Every item of the bundle."""
        return self._service.catalogue

    @cached_property
    def _known(self) -> list[str]:
        """Users, those with the longest history first."""
        features = self._service.bundle.features
        users = list(features.users[:_LOOKED_AT])
        length = [len(features.history(features.user_number(user), 50)) for user in users]
        order = sorted(range(len(users)), key=lambda at: -length[at])
        return [users[at] for at in order]

    def users(self, count: int) -> list[str]:
        """Ids of users that much is known of."""
        return self._known[:count]

    async def ask(self, call: str, body: dict[str, Any], *, shown: bool = True) -> dict[str, Any]:
        """The JSON that POST /v1/CALL answers to a body; unless it is shown, it leaves no record.

        Raises:
            Refused: the call is answered with a problem.
        """
        # who asks for reasons has the list already: those who wait for one come first
        priority = URGENT if call == "search" and not body.get("explain") else NORMAL
        context = Context(time.perf_counter(), None, priority, shown=shown)
        try:
            asked = _MODELS[call].model_validate(body)
            given = await self._service.run(lambda: self._service.answer(asked, context), context)
        except ValidationError as error:
            found = field_errors(error, "body")
            told = "; ".join(f"{each.path}: {each.message}" for each in found)
            raise Refused(422, told) from None
        except Problem as problem:
            raise Refused(problem.status, problem.detail, problem.retry_after_s) from None
        return given.model_dump(mode="json")

    async def profile(self, user_id: str) -> dict[str, Any] | None:
        """The JSON of GET /v1/users/USER_ID/profile; None if nothing is known."""
        try:
            given = await self._service.run(lambda: self._service.profile(user_id))
        except Problem:
            return None
        return given.model_dump(mode="json")

    async def record(self, events: Sequence[dict[str, Any]]) -> bool:
        """Take events as POST /v1/events does; False where this deployment takes none."""
        if self._recorder is None:
            return False
        return await self._recorder(events) if events else True
