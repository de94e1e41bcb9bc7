"""Pages for people where the calls answer with problem+json."""

from __future__ import annotations

import json
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raysys.serving.access import PAGES, AccessTable, path_of
from raysys.web import Pages, Refused

_KEPT = ("allow", "retry-after")
_API = ("/v1", "/console")


class PageErrors:
    """Turns a problem into a page for a browser that asked for one, as ASGI middleware.

    So it is at the addresses of the shop's pages, and at those where nothing is: a browser says
    that it wants HTML. Calls below /v1, probes and the API page keep their problem+json, and the
    console tells problems by itself.

    Args:
        app: what answers.
        name: of the shop.
    """

    def __init__(self, app: ASGIApp, name: str) -> None:
        self.app, self.pages, self.table = app, Pages(name), AccessTable()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or not self._is_for_people(scope):
            await self.app(scope, receive, send)
            return
        problem: Message | None = None
        body = bytearray()

        async def held(message: Message) -> None:
            nonlocal problem
            if message["type"] == "http.response.start":
                said = Headers(raw=message["headers"]).get("content-type", "")
                problem = message if said.startswith("application/problem+json") else None
            if problem is None:
                await send(message)
            else:
                body.extend(message.get("body", b""))

        await self.app(scope, receive, held)
        if problem is not None:
            await self._page(scope, receive, send, problem, bytes(body))

    async def _page(
        self, scope: Scope, receive: Receive, send: Send, problem: Message, body: bytes
    ) -> None:
        status, said = problem["status"], Headers(raw=problem["headers"])
        fragment = "fragment" in parse_qs(scope.get("query_string", b"").decode("latin-1"))
        # with keys, who has none is told nothing of what is there: of this address that is nothing
        if status in (401, 404) and not self.table.route(path_of(scope)):
            told = {"heading": "No such page", "said": f"There is no {path_of(scope)} here."}
            page = self.pages.render("missing.html", 404, **told)
        else:
            wait = said.get("retry-after", "")
            refused = Refused(
                status, json.loads(body)["detail"], int(wait) if wait.isdigit() else None
            )
            page = self.pages.refusal(refused, fragment=fragment)
        page.headers.update({name: said[name] for name in _KEPT if name in said})
        await page(scope, receive, send)

    def _is_for_people(self, scope: Scope) -> bool:
        path = path_of(scope)
        if any(path == each or path.startswith(f"{each}/") for each in _API):
            return False
        if "text/html" not in Headers(scope=scope).get("accept", "").lower():
            return False
        route = self.table.route(path)
        return not route or any(page.endswith(f" {route}") for page in PAGES)
