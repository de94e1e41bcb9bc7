"""The shop: search as you type, item pages, a cart; what visitors do comes back as events."""

# No `from __future__ import annotations` here: FastAPI reads the annotations of the routes.
import asyncio
import base64
import contextlib
import json
import re
from collections.abc import Awaitable, Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from raysys.web.answers import Answers, Refused
from raysys.web.pages import Pages
from raysys.web.shelf import FACETS, Shelf, card_of, facets_of, price_of, reasons_of, shelf_of
from raysys.web.visit import BELIEVED, Cookies, Visit, form_of, new_order, parsed, whole_number

HOME_K, BESIDE_K, SEARCH_K = 12, 6, 24
SHOPPERS = 12
_CALLS = ("recommend", "search", "similar")
_ORDER = re.compile(r"[0-9a-f]{24}")


def storefront(shop: Answers, name: str = "Shop", cookies: Cookies = BELIEVED) -> APIRouter:
    """Routes of the shop's pages: /, /search, /item/ID, /cart and the forms between them.

    Every list is an answer of the calls that HTTP offers, with its reasons; visitors without
    script can do all but search as they type. A visitor is a cookie.

    Args:
        shop: the system behind the pages.
        name: of the shop, on every page.
        cookies: how visits are kept, and whether they may be those of users that the log knows.
    """
    router = APIRouter(include_in_schema=False)
    pages = Pages(name)

    async def listed(
        heading: str, call: str, body: dict[str, Any], *, shown: bool = True
    ) -> Shelf | None:
        """The shelf of a call; None where there is nothing to show.

        Raises:
            Refused: the call is answered with a problem.
        """
        answer = await shop.ask(call, body, shown=shown)
        shelf = shelf_of(shop.catalogue, heading, answer, _packed(call, body))
        return shelf if shelf.cards else None

    def page(
        request: Request,
        visit: Visit,
        template: str,
        status: int = 200,
        *,
        refused: Refused | None = None,
        **values: Any,
    ) -> HTMLResponse:
        """A page for a visitor; with `refused` it says so, and is one of that status if it failed.

        Args:
            request, visit: who asks.
            template, status, values: see `Pages.render`.
            refused: why a list of it, or all of it, is not there.
        """
        shoppers = shop.users(SHOPPERS) if cookies.shoppers else []
        if not visit.is_new and visit.user not in shoppers:
            shoppers = [visit.user, *shoppers]
        told = {"visit": visit, "shoppers": shoppers, "refused": refused, **values}
        response = pages.render(template, status, **told)
        if refused is not None and refused.status == status:
            response.headers.update(refused.headers)
        visit.keep(response, request, cookies, Visit.kept(request, cookies))
        return response

    def may_be(user: str) -> bool:
        """Whether a visitor may shop as this user; where cookies are not signed anybody can."""
        return cookies.shoppers and (cookies.sign is None or user in shop.users(SHOPPERS))

    @router.get("/")
    async def home(request: Request) -> HTMLResponse:
        visit = Visit.of(request, cookies)
        who = {"user_id": visit.user, "session_id": visit.session}
        heading = "Liked by everybody" if visit.is_new else "For you"
        asked = [listed(heading, "recommend", {**who, "place": "home", "k": HOME_K})]
        known = [item for item in visit.seen if shop.catalogue.number(item) is not None]
        if known:
            body = {**who, "place": "item", "item_ids": known, "k": BESIDE_K}
            asked.append(listed("Goes with what you looked at", "recommend", body))
        shelves, refused = await _made(asked)
        status = 200 if shelves or refused is None else refused.status
        profile = None if visit.is_new else await shop.profile(visit.user)
        told: dict[str, Any] = {"refused": refused, "shelves": shelves, "profile": profile}
        return page(request, visit, "home.html", status, **told)

    @router.get("/search")
    async def search(
        request: Request,
        q: Annotated[str, Query(max_length=1000)] = "",
        fragment: bool = False,
    ) -> HTMLResponse:
        visit = Visit.of(request, cookies)
        wanted = {name: request.query_params.getlist(name)[:20] for name in FACETS}
        wanted = {name: values for name, values in wanted.items() if any(values)}
        prices = _prices(request.query_params)
        values: dict[str, Any] = {"q": q, "facets": [], "shelf": None, "prices": prices}
        template = "results.html" if fragment else "search.html"
        if q.strip():
            body = {
                "query": q.strip(), "k": SEARCH_K,
                "user_id": visit.user, "session_id": visit.session,
            }  # fmt: skip
            filters = {**wanted, **prices}
            heading = f"“{q.strip()}”"
            try:
                shelf = await listed(heading, "search", body | _filtered(filters))
            except Refused as refused:
                return page(request, visit, template, refused.status, refused=refused, **values)
            values["shelf"] = whole = shelf
            if filters:  # only to count what there is to choose from
                with contextlib.suppress(Refused):
                    whole = await listed("", "search", body, shown=False)
            ids = [card.item_id for card in whole.cards] if whole else []
            values["facets"] = facets_of(shop.catalogue, ids, wanted)
            if not fragment:
                await shop.record([visit.event("search", query=q.strip())])
        return page(request, visit, template, **values)

    @router.get("/item/{item_id:path}")
    async def item(request: Request, item_id: str) -> HTMLResponse:
        visit = Visit.of(request, cookies)
        number = shop.catalogue.number(item_id)
        if number is None:
            return page(request, visit, "missing.html", 404, **_no_item(item_id))
        row = shop.catalogue.row(number)
        visit = visit.looked_at(item_id)
        who = {"user_id": visit.user, "session_id": visit.session}
        body = {**who, "place": "item", "item_ids": [item_id], "k": BESIDE_K}
        similar = {**who, "item_id": item_id, "k": BESIDE_K}
        asked = [
            listed("Goes well with it", "recommend", body),
            listed("Similar items", "similar", similar),
        ]
        shelves, refused = await _made(asked)
        came = _joined(request.query_params)
        events = [visit.event("view", item_id=item_id, **came)]
        if came:  # a link in a list; its own id, so that a page loaded again is not a second click
            events.append(visit.noticed("click", item_id, **came))
        await shop.record(events)
        facts = [
            (name, row[name])
            for name in ("department", "category", "subcategory", "brand", "size")
            if row[name]
        ]
        return page(
            request, visit, "item.html", card=card_of(shop.catalogue, item_id), facts=facts,
            description=row["description"], shelves=shelves, came=came,
            kept="kept" in request.query_params, refused=refused,
        )  # fmt: skip

    @router.get("/why/{item_id:path}")
    async def why(
        request: Request, item_id: str, asked: str = "", fragment: bool = False
    ) -> HTMLResponse:
        visit = Visit.of(request, cookies)
        card = card_of(shop.catalogue, item_id)
        if card is None:
            return page(request, visit, "missing.html", 404, **_no_item(item_id))
        try:
            call, body = _unpacked(asked)
            # of the visitor's own lists only, whoever else the link names
            body |= {"user_id": visit.user, "session_id": visit.session, "explain": True}
            listed = (await shop.ask(call, body))["items"]
        except ValueError:
            listed = []
        except Refused as refused:
            template = "refused.html" if fragment else "cannot.html"
            return page(request, visit, template, refused.status, refused=refused)
        told = next((each["why"] for each in listed if each["item_id"] == item_id), None)
        if told is None:
            said = f"The list that this link is of does not show {card.title} any more."
            missing: dict[str, Any] = {"heading": "No reasons to tell", "said": said}
            return page(request, visit, "missing.html", 404, **missing)
        template = "reasons.html" if fragment else "why.html"
        return page(request, visit, template, card=card, why=reasons_of(told))

    @router.get("/cart")
    async def cart(request: Request, bought: int = 0) -> HTMLResponse:
        visit = Visit.of(request, cookies)
        cards = [card for held in visit.cart if (card := card_of(shop.catalogue, held))]
        asked = []
        if cards:
            body = {
                "user_id": visit.user, "session_id": visit.session, "place": "cart",
                "item_ids": [card.item_id for card in cards], "k": BESIDE_K,
            }  # fmt: skip
            asked = [listed("Goes with your cart", "recommend", body)]
        shelves, refused = await _made(asked)
        total = _total(shop, [card.item_id for card in cards])
        return page(
            request, visit, "cart.html", cards=cards, total=total, shelves=shelves, bought=bought,
            order=new_order(), refused=refused,
        )  # fmt: skip

    @router.post("/cart")
    async def change(request: Request) -> Response:
        visit, form = Visit.of(request, cookies), await form_of(request)
        item_id, action = form.get("item_id", ""), form.get("action", "add")
        events, place = [], "/cart"
        if action == "remove":
            visit = visit.without(item_id)
        elif action == "buy":
            order = form.get("order", "")
            order = order if _ORDER.fullmatch(order) else new_order()
            held = [each for each in visit.cart if shop.catalogue.number(each) is not None]
            events = [visit.bought(order, _sale(shop, each)) for each in held]
            visit = Visit(visit.user, visit.session, (), visit.seen)
            place = f"/cart?bought={len(events)}"
        elif shop.catalogue.number(item_id) is not None:
            kind = "favorite" if action == "favorite" else "cart"
            events = [visit.event(kind, **_sale(shop, item_id), **_joined(form))]
            if kind == "cart":
                visit = visit.with_item(item_id)
            else:
                place = f"/item/{quote(item_id, safe='')}?kept=1"
        await shop.record(events)
        response = RedirectResponse(place, 303)
        visit.keep(response, request, cookies, Visit.kept(request, cookies))
        return response

    @router.post("/visitor")
    async def switch(request: Request) -> Response:
        user = (await form_of(request)).get("user", "")[:200]
        if user and not may_be(user):
            refused = Refused(403, "Nobody may shop here as somebody else.")
            visit = Visit.of(request, cookies)
            return page(request, visit, "cannot.html", refused.status, refused=refused)
        response = RedirectResponse("/", 303)
        Visit.begin(user or None).keep(response, request, cookies)
        return response

    @router.post("/seen")
    async def seen(request: Request) -> Response:
        """Impressions: what of a list came into view, as the page's script reports."""
        visit, raw = Visit.of(request, cookies), await request.body()
        try:
            events = [_impression(visit, each) for each in parsed(raw)[:100]]
        except (ValueError, TypeError, KeyError, AttributeError):
            return Response(status_code=400)
        taken = await shop.record(events)
        return Response(status_code=204 if taken else 202)

    return router


async def _made(
    asked: Sequence[Awaitable[Shelf | None]],
) -> tuple[list[Shelf], Refused | None]:
    """The shelves that have something on them, and why one of the others could not be made."""
    made = await asyncio.gather(*asked, return_exceptions=True)
    refused = None
    for each in made:
        if isinstance(each, Refused):
            refused = each if refused is None or each.busy else refused
        elif isinstance(each, BaseException):
            raise each
    return [shelf for shelf in made if isinstance(shelf, Shelf)], refused


def _no_item(item_id: str) -> dict[str, Any]:
    return {"heading": "No such item", "said": f"The catalogue has no item {item_id}."}


def _filtered(filters: Mapping[str, Any]) -> dict[str, Any]:
    return {"filters": dict(filters)} if filters else {}


def _packed(call: str, body: dict[str, Any]) -> str:
    """A call and its body, all but who asks, as text for a link."""
    told = {name: value for name, value in body.items() if name not in ("user_id", "session_id")}
    return base64.urlsafe_b64encode(json.dumps([call, told]).encode()).decode().rstrip("=")


def _unpacked(text: str) -> tuple[str, dict[str, Any]]:
    """What `_packed` gave.

    Raises:
        ValueError: it is something else.
    """
    told = parsed(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    if not isinstance(told, list) or len(told) != 2:
        raise ValueError("no call")
    call, body = told
    if call not in _CALLS or not isinstance(body, dict):
        raise ValueError("no call")
    return call, body


def _prices(params: Mapping[str, str]) -> dict[str, float]:
    """`min_price` and `max_price`, where they are numbers that make sense."""
    found = {}
    for name in ("min_price", "max_price"):
        try:
            value = float(params.get(name, ""))
        except ValueError:
            continue
        if 0 <= value < float("inf"):
            found[name] = value
    return found


def _sale(shop: Answers, item_id: str) -> dict[str, Any]:
    """What an event says of an item's price."""
    number = shop.catalogue.number(item_id)
    row = {} if number is None else shop.catalogue.row(number)
    said = {"item_id": item_id, "quantity": 1}
    if row.get("price") is not None and row.get("currency"):
        said |= {"price": row["price"], "currency": row["currency"]}
    return said


def _total(shop: Answers, item_ids: list[str]) -> str:
    """The sum of the prices that are known, in the first currency."""
    rows = [shop.catalogue.row(n) for n in map(shop.catalogue.number, item_ids) if n is not None]
    priced = [row for row in rows if row["price"] is not None]
    if not priced:
        return ""
    currency = priced[0]["currency"]
    total = sum(float(str(row["price"])) for row in priced if row["currency"] == currency)
    return price_of({"price": total, "currency": currency})


def _joined(said: Mapping[str, str]) -> dict[str, Any]:
    """`request_id` and `position` of a list, from a link's or form's fields."""
    found: dict[str, Any] = {}
    if said.get("request"):
        found["request_id"] = said["request"][:200]
    position = whole_number(said.get("position", ""))
    if position is not None and 0 < position <= 1000:
        found["position"] = position
    return found


def _impression(visit: Visit, said: Mapping[str, Any]) -> dict[str, Any]:
    """One item of a list that came into view; the same one, told twice, has one id."""
    fields = _joined({name: str(said.get(name, "")) for name in ("request", "position")})
    return visit.noticed("impression", str(said["item"])[:200], **fields)
