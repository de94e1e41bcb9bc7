"""The console: bundles and their figures, how answers go, and one query taken apart."""

# No `from __future__ import annotations` here: FastAPI reads the annotations of the routes.
import asyncio
import json
import re
from typing import Any
from urllib.parse import urlencode, urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from raysys.web.answers import Answers, Refused
from raysys.web.experiments import add_experiments
from raysys.web.operations import BundleFacts, Operations
from raysys.web.pages import Pages
from raysys.web.shelf import card_of
from raysys.web.visit import BELIEVED, Cookies, form_of, whole_number
from raysys.web.watching import add_watching

_COOKIE = "console"
_HOURS = 8
PLACES = ("home", "item", "cart")
_SHOWN_FEATURES, _MOVED = 60, 3
_TEXT_NAME = re.compile(r"text-\w{1,40}")  # a link may say anything


def console(
    shop: Answers,
    system: Operations,
    name: str = "raysys console",
    cookies: Cookies = BELIEVED,
) -> APIRouter:
    """Routes below /console, for holders of a key with the role admin.

    Args:
        shop: answers the queries that are taken apart.
        system: the registry, traffic and keys.
        name: on every page.
        cookies: how the login's is written; it has a signature of its own.
    """
    router = APIRouter(prefix="/console", include_in_schema=False)
    pages = Pages(name)

    def page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
        return pages.render(f"console/{template}", status, **values)

    def refused(request: Request) -> Response | None:
        """Where to go who may not be here; None for those who may."""
        if request.method != "GET" and _is_foreign(request):
            return page("login.html", 403, note="A form of another site was refused.")
        if system.admits(request.cookies.get(_COOKIE)):
            return None
        return RedirectResponse("/console/login", 303)

    async def listing(said: str, status: int = 200) -> Response:
        known = await asyncio.to_thread(system.bundles)
        earlier = await asyncio.to_thread(system.earlier_champion)
        champion = next((each for each in known if "champion" in each.pointers), None)
        told = {"bundles": known, "champion": champion, "earlier": earlier, "said": said}
        return page("bundles.html", status, **told)

    @router.get("/login")
    async def ask_for_key() -> HTMLResponse:
        return page("login.html", note="")

    @router.post("/login")
    async def enter(request: Request) -> Response:
        token = system.enter((await form_of(request)).get("key", "").strip())
        if token is None or _is_foreign(request):
            note = "That is no valid key with the role admin."
            return page("login.html", 403, note=note)
        response = RedirectResponse("/console", 303)
        kept: dict[str, Any] = {"max_age": _HOURS * 3600, "path": "/console", "samesite": "strict"}
        cookies.put(response, request, _COOKIE, token, **kept)
        return response

    @router.post("/leave")
    async def leave() -> Response:
        response = RedirectResponse("/console/login", 303)
        response.delete_cookie(_COOKIE, path="/console")
        return response

    @router.get("")
    async def bundles(
        request: Request, done: str = "", name: str = "", live: bool = False
    ) -> Response:
        if away := refused(request):
            return away
        return await listing(_said(done, name, live=live))

    @router.get("/compare")
    async def compare(request: Request, a: str = "", b: str = "") -> Response:
        if away := refused(request):
            return away
        by_id = {each.id: each for each in await asyncio.to_thread(system.bundles)}
        if a not in by_id or b not in by_id:
            return RedirectResponse("/console", 303)
        pair = by_id[a], by_id[b]
        rows = [("quality", *row) for row in _beside(pair[0].quality, pair[1].quality)]
        rows += [("weight", *row) for row in _beside(pair[0].weights, pair[1].weights)]
        return page("compare.html", pair=pair, rows=rows, settings=_differences(*pair))

    @router.post("/champion")
    async def champion(request: Request) -> Response:
        if away := refused(request):
            return away
        form, token = await form_of(request), request.cookies.get(_COOKIE)
        refusal: Refused | None = None
        try:
            # in a thread: a bundle's files are hashed, and lists are answered meanwhile
            if form.get("action") == "rollback":
                now = await asyncio.to_thread(system.roll_back, token=token)
                done = "rolled_back"
            else:
                bundle, force = form.get("bundle", ""), "force" in form
                now = await asyncio.to_thread(system.promote, bundle, force=force, token=token)
                done = "promoted"
        except Refused as problem:
            refusal = problem
        if refusal is not None:  # a fault from here on quotes nothing of it
            return await listing(refusal.detail, refusal.status)
        told = {"done": done, "name": now.name, "live": int(now.live)}
        return RedirectResponse(f"/console?{urlencode(told)}", 303)

    @router.get("/live")
    async def live(request: Request, fragment: bool = False) -> Response:
        if away := refused(request):
            return away
        template = "live_table.html" if fragment else "live.html"
        traffic = await asyncio.to_thread(system.traffic)
        deployments = await asyncio.to_thread(system.deployments)
        return page(template, traffic=traffic, deployments=deployments)

    add_experiments(router, pages, refused, system)

    @router.get("/query")
    async def query(request: Request) -> Response:
        if away := refused(request):
            return away
        asked = dict(request.query_params)
        values: dict[str, Any] = {
            "asked": asked, "places": PLACES, "answer": None, "problem": "", "users": shop.users(5)
        }  # fmt: skip
        if asked:
            call, body = _call_of(asked)
            try:
                values["answer"] = _taken_apart(shop, await shop.ask(call, body))
            except Refused as problem:
                values["problem"] = problem.detail
            values["body"] = json.dumps(body, indent=1)
            values["call"] = f"POST /v1/{call}"
        return page("query.html", **values)

    add_watching(router, pages, refused, system)
    return router


def _said(done: str, name: str, *, live: bool) -> str:
    """What became of a form, in words; empty: there was none."""
    if done == "rolled_back":
        what = "The champion before is back"
    elif done == "promoted" and name == "champion":
        what = "There is a new champion"
    elif done == "promoted" and _TEXT_NAME.fullmatch(name):
        what = f"{name} means another bundle now"
    else:
        return ""
    who = "replicas that run go over to it within seconds"
    return f"{what}; {who if live else 'replicas that start from now on answer from it'}."


def _is_foreign(request: Request) -> bool:
    """Whether a form comes from a page of another site."""
    origin = request.headers.get("origin")
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc != request.headers.get("host")
    except ValueError:  # no page of ours is there
        return True


def _beside(
    left: dict[str, float], right: dict[str, float]
) -> list[tuple[str, float | None, float | None]]:
    """The figures of two bundles by name: those of the first in its order, then the others."""
    names = [*left, *(name for name in right if name not in left)]
    return [(name, left.get(name), right.get(name)) for name in names]


def _differences(a: BundleFacts, b: BundleFacts) -> list[tuple[str, str, str]]:
    """Settings and versions in which two bundles differ, as path and values."""
    flat = [_flat({"settings": each.settings, "versions": each.versions}) for each in (a, b)]
    paths = sorted(flat[0].keys() | flat[1].keys())
    rows = [(path, flat[0].get(path, "–"), flat[1].get(path, "–")) for path in paths]
    return [row for row in rows if row[1] != row[2]]


def _flat(content: Any, path: str = "") -> dict[str, str]:
    if not isinstance(content, dict) or not content:
        return {path: json.dumps(content)}
    found: dict[str, str] = {}
    for name, value in content.items():
        found |= _flat(value, f"{path}.{name}" if path else str(name))
    return found


def _call_of(asked: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Which call a form means, and its body."""
    ids = asked.get("item_ids", "").replace(",", " ").split()
    query, user = asked.get("query", "").strip(), asked.get("user_id", "").strip()
    k = whole_number(asked.get("k", "")) or 10
    body: dict[str, Any] = {"explain": True}
    if user:
        body["user_id"] = user
    if query and ids:
        return "rank", body | {"query": query, "item_ids": ids}
    body["k"] = k
    if query:
        return "search", body | {"query": query}
    place = asked.get("place", "home")
    if place not in PLACES:
        place = "home"
    if not user:
        body["session_id"] = "console"
    return "recommend", body | {"place": place, "item_ids": ids}


def _taken_apart(shop: Answers, answer: dict[str, Any]) -> dict[str, Any]:
    """An answer as tables: its stages, its items by learner, and their features."""
    items = [each for each in answer["items"] if each.get("why")]
    learners = list(items[0]["why"]["base_scores"]) if items else []
    names = list(items[0]["why"]["features"])[:_SHOWN_FEATURES] if items else []
    told = [
        {
            **each,
            "title": card.title if (card := card_of(shop.catalogue, each["item_id"])) else "",
            "base": [each["why"]["base_scores"].get(name) for name in learners],
            "moved": list(each["why"]["moved_by"].items())[:_MOVED],
        }
        for each in items
    ]
    rows = [(name, [each["why"]["features"].get(name) for each in items]) for name in names]
    said = answer["explanation"]
    stages = list(said["milliseconds"].items())
    longest = max((spent for _, spent in stages), default=0) or 1
    most = max(said["by_source"].values(), default=0) or 1
    return {
        "answer": answer, "items": told, "learners": learners, "features": rows, "said": said,
        "stages": [(name, spent, 100 * spent / longest) for name, spent in stages],
        "sources": [(name, n, 100 * n / most) for name, n in said["by_source"].items()],
        "unranked": [each["item_id"] for each in answer["items"] if not each.get("why")],
    }  # fmt: skip
