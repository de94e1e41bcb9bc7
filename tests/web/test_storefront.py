"""The shop's pages without a browser: what is on them, and what visitors' steps become."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from raysys.serving.args import ServeArgs
from raysys.serving.events_api import Clock, read_events
from raysys.serving.pages import ServiceAnswers
from raysys.serving.service import Service
from raysys.web import Refused, storefront
from raysys.web.pages import counted, days, days_ago
from raysys.web.shelf import shelf_of
from raysys.web.visit import Cookies, Visit
from tests.web.conftest import Recorded


class Tags(HTMLParser):
    """Start tags with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def having(self, attribute: str) -> list[str]:
        return [str(attrs[attribute]) for _, attrs in self.found if attribute in attrs]


def items(html: str) -> list[str]:
    return Tags(html).having("data-item")


def test_home_recommends_to_everybody_and_personally(visitor: TestClient, service: Service) -> None:
    new = visitor.get("/")
    assert new.status_code == 200 and "Liked by everybody" in new.text
    assert len(items(new.text)) == 12 and "Why this" in new.text
    shoppers = re.findall(r'<option value="(u\d+)"', new.text)
    assert len(shoppers) == 12
    lists = []
    for user in shoppers[:3]:
        page = visitor.post("/visitor", data={"user": user})
        assert f"What we know of user {user}" in page.text and "For you" in page.text
        lists.append(items(page.text))
    assert lists[0] != lists[1] != lists[2]


def test_what_an_answer_lacks_is_said_in_words(service: Service) -> None:
    answer = {
        "items": [],
        "request_id": "r",
        "degraded": True,
        "left_out": ["meaning", "two_tower"],
    }
    shelf = shelf_of(service.catalogue, "“bread”", answer)
    assert shelf.note == "A quick answer, without the search by meaning, two tower."
    assert shelf_of(service.catalogue, "", answer | {"degraded": False}).note == ""


@pytest.mark.parametrize(
    ("value", "length", "ago"),
    [(0.2, "day", "today"), (1.2, "day", "yesterday"), (6.9, "7 days", "7 days ago")],
)
def test_days_are_written_as_people_say_them(value: float, length: str, ago: str) -> None:
    assert days(value) == length
    assert days_ago(value) == ago


@pytest.mark.parametrize(
    ("counter", "tags", "told"),
    [
        ("raysys_answers", "true,search", "degraded, search"),
        ("raysys_arm_answers", "none,none,ok,rank", "none, ok, rank"),
        ("raysys_arm_answers", "true,exp,ok,rank", "true, exp, ok, rank"),
        ("raysys_arm_events", "a,click,none,rank", "a, click, rank"),
        ("raysys_shed", "", "all"),
    ],
)
def test_counters_are_told_in_words(counter: str, tags: str, told: str) -> None:
    assert counted(tags, counter) == told


def test_search_filters_and_says_what_there_is(visitor: TestClient, service: Service) -> None:
    page = visitor.get("/search", params={"q": "bread"})
    found = items(page.text)
    assert found
    facets = re.findall(r'name="brand" value="([^"]+)"', page.text)
    narrowed = visitor.get("/search", params={"q": "bread", "brand": facets[0]})
    brand = {service.catalogue.row(service.catalogue.number(each) or 0)["brand"]
             for each in items(narrowed.text)}  # fmt: skip
    assert brand == {facets[0]}
    assert f'value="{facets[0]}" checked' in narrowed.text
    assert facets[-1] in narrowed.text  # the other choices stay
    fragment = visitor.get("/search", params={"q": "bread", "fragment": 1})
    assert "<html" not in fragment.text and items(fragment.text) == found


def test_nothing_found_is_said(visitor: TestClient) -> None:
    page = visitor.get("/search", params={"q": "bread", "min_price": 1e9})
    assert page.status_code == 200 and "Nothing found for “bread”" in page.text
    assert "Type what you are looking for" in visitor.get("/search").text


def test_what_visitors_do_becomes_events(visitor: TestClient, events: Recorded) -> None:
    user = re.findall(r'<option value="(u\d+)"', visitor.get("/").text)[0]
    home = visitor.post("/visitor", data={"user": user})
    link = next(href for href in Tags(home.text).having("href") if "request=" in href)
    page = visitor.get(link)
    visitor.get(link)  # loaded again
    item_id = link.split("/item/")[1].split("?")[0]
    request = re.search(r"request=(\w+)", link)
    assert request
    for _ in range(2):
        said = [{"item": item_id, "request": request[1], "position": "1"}]
        assert visitor.post("/seen", content=json.dumps(said)).status_code == 204
    visitor.get("/search", params={"q": "rye"})
    hidden = {"item_id": item_id, "request": request[1], "position": "1"}
    assert f'name="request" value="{request[1]}"' in page.text
    visitor.post("/cart", data={**hidden, "action": "favorite"})
    cart = visitor.post("/cart", data={**hidden, "action": "add"})
    assert "Goes with your cart" in cart.text and "Together" in cart.text
    bought = visitor.post("/cart", data={"action": "buy"})
    assert "Bought: 1 item." in bought.text and "Together" not in bought.text

    assert {event["user_id"] for event in events} == {user}
    assert len({event["session_id"] for event in events}) == 1
    for kind in ("impression", "click"):
        told = events.told(kind)
        assert len(told) == 2 and len({event["event_id"] for event in told}) == 1
        assert told[0]["request_id"] == request[1] and told[0]["position"] >= 1
    assert [event["query"] for event in events.told("search")] == ["rye"]
    for kind in ("view", "favorite", "cart", "purchase"):
        assert {event["item_id"] for event in events.told(kind)} == {item_id}, kind
    assert events.told("cart")[0]["request_id"] == request[1]
    assert events.told("purchase")[0]["price"] > 0 and events.told("purchase")[0]["order_id"]


def test_lists_that_nobody_is_shown_are_not_recorded(service: Service, tmp_path: Path) -> None:
    told = {**service.args.model_dump(), "shown_lists": {"folder": str(tmp_path)}}
    recorded = Service(ServeArgs.model_validate(told))
    app = FastAPI()
    app.include_router(storefront(ServiceAnswers(recorded)))
    client = TestClient(app)
    # filtered, so that facets are counted of another list; then why an item is there
    page = client.get("/search", params={"q": "bread", "min_price": 0.01})
    why = client.get(Tags(page.text).having("data-why")[0])
    assert page.status_code == why.status_code == 200
    recorded.close()
    rows = pl.concat([pl.read_parquet(path) for path in tmp_path.rglob("*.parquet")])
    assert rows["request_id"].to_list() == [re.findall(r"request=(\w+)", page.text)[0]]


def test_why_is_told_of_ones_own_lists(visitor: TestClient, service: Service) -> None:
    user = re.findall(r'<option value="(u\d+)"', visitor.get("/").text)[0]
    home = visitor.post("/visitor", data={"user": user})
    for path in (home, visitor.get("/search?q=bread"), visitor.get(f"/item/{items(home.text)[0]}")):
        link = Tags(path.text).having("data-why")[0]
        page = visitor.get(link)
        assert page.status_code == 200 and "Proposed by" in page.text
        fragment = visitor.get(link + "&fragment=1").text
        assert "<html" not in fragment and "Chance of a purchase" in fragment
    deep = base64.urlsafe_b64encode(DEEP[:30_000].encode()).decode()
    for asked in ("", "x", "bm9uZQ", deep, base64.urlsafe_b64encode(b'["rank", {}]').decode()):
        assert visitor.get(f"/why/{items(home.text)[0]}?asked={asked}").status_code == 404


@pytest.fixture
def busy(pages: FastAPI, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the shop refuse what it is asked from now on."""

    def refuse(status: int, *calls: str, retry_after_s: int | None = None) -> None:
        answer = ServiceAnswers.ask

        async def ask(self: ServiceAnswers, call: str, body: dict[str, Any], **how: Any) -> Any:
            if not calls or call in calls:
                raise Refused(status, "body.query: no such words", retry_after_s)
            return await answer(self, call, body, **how)

        monkeypatch.setattr(ServiceAnswers, "ask", ask)

    return refuse


@pytest.mark.parametrize("more", ["", "&fragment=1"])
def test_a_busy_shop_says_so_and_when_to_come_back(
    visitor: TestClient, busy: Callable[..., None], more: str
) -> None:
    why = Tags(visitor.get("/search?q=bread").text).having("data-why")[0]
    busy(503, retry_after_s=3)
    for path in ("/search?q=bread", why):
        page = visitor.get(path + more)
        assert page.status_code == 503 and page.headers["retry-after"] == "3", path
        assert "try again in a moment" in page.text and "Nothing found" not in page.text
        assert ("<html" in page.text) == (not more)
    busy(422)
    for path in ("/search?q=bread", why):
        page = visitor.get(path + more)
        assert page.status_code == 422 and "retry-after" not in page.headers
        assert "no such words" in page.text and "Nothing found" not in page.text


def test_what_is_left_of_a_page_is_shown_though_the_shop_is_busy(
    visitor: TestClient, busy: Callable[..., None], service: Service
) -> None:
    item_id = str(service.catalogue.ids[0])
    visitor.post("/cart", data={"item_id": item_id, "action": "add"})
    visitor.get(f"/item/{item_id}")
    busy(503, "similar")
    page = visitor.get(f"/item/{item_id}")
    assert page.status_code == 200 and "retry-after" not in page.headers
    assert "Goes well with it" in page.text and "Try again in a moment" in page.text
    busy(503)
    for path in (f"/item/{item_id}", "/cart"):  # the item, and what is in the cart, are known
        page = visitor.get(path)
        assert page.status_code == 200 and "Try again in a moment" in page.text, path
    home = visitor.get("/")
    assert home.status_code == 503 and home.headers["retry-after"] == "1"
    assert "try again in a moment" in home.text and home.text.count("<h1") == 1


def test_facets_that_cannot_be_counted_cost_no_results(
    visitor: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = ServiceAnswers.ask

    async def ask(self: ServiceAnswers, call: str, body: Any, *, shown: bool = True) -> Any:
        if not shown:
            raise Refused(503, "busy")
        return await answer(self, call, body, shown=shown)

    monkeypatch.setattr(ServiceAnswers, "ask", ask)
    page = visitor.get("/search", params={"q": "bread", "min_price": 0.01})
    assert page.status_code == 200 and items(page.text)


def test_what_no_search_may_hold_is_told_by_field(visitor: TestClient) -> None:
    page = visitor.get("/search", params={"q": "a\x00b"})
    assert page.status_code == 422 and "body.query" in page.text
    assert "pydantic" not in page.text


def test_an_item_that_left_its_list_is_not_called_unknown(visitor: TestClient) -> None:
    first = items(visitor.get("/search?q=bread").text)[0]
    told = base64.urlsafe_b64encode(json.dumps(["similar", {"item_id": first, "k": 1}]).encode())
    page = visitor.get(f"/why/{first}?asked={told.decode().rstrip('=')}")
    assert page.status_code == 404 and "No reasons to tell" in page.text
    assert "has no item" not in page.text


def test_a_cart_is_kept_and_things_can_be_taken_out(visitor: TestClient, service: Service) -> None:
    two = [str(each) for each in service.catalogue.ids[:2]]
    for item_id in [*two, two[0]]:
        page = visitor.post("/cart", data={"item_id": item_id, "action": "add"})
    assert page.text.count('value="remove"') == 2
    page = visitor.post("/cart", data={"item_id": two[0], "action": "remove"})
    assert page.text.count('value="remove"') == 1
    assert (
        "Nothing in it yet"
        in visitor.post("/cart", data={"item_id": two[1], "action": "remove"}).text
    )


def test_a_form_of_too_many_fields_is_refused(visitor: TestClient, events: Recorded) -> None:
    body = "&".join(f"f{number}=1" for number in range(101))
    headers = {"content-type": "application/x-www-form-urlencoded"}
    for path in ("/cart", "/visitor"):
        assert visitor.post(path, content=body, headers=headers).status_code == 400
    assert not events


def test_a_double_click_buys_once(
    visitor: TestClient, pages: FastAPI, service: Service, events: Recorded
) -> None:
    two = [str(each) for each in service.catalogue.ids[:2]]
    for item_id in two:
        cart = visitor.post("/cart", data={"item_id": item_id, "action": "add"})
    form = {"action": "buy", "order": re.findall(r'name="order" value="(\w+)"', cart.text)[0]}
    held = dict(visitor.cookies)
    for _ in range(2):  # both were sent before the first answer was there
        TestClient(pages, cookies=held).post("/cart", data=form)
    sold = events.told("purchase")
    assert len(sold) == 4 and len({each["event_id"] for each in sold}) == 2
    assert {each["order_id"] for each in sold} == {form["order"]}
    # another cart is another order; so is a form that says nothing, or nonsense
    orders = {form["order"]}
    for order in (None, "'; drop", "0" * 25):
        TestClient(pages, cookies=held).post("/cart", data={"action": "buy", "order": order or ""})
        orders.add(events.told("purchase")[-1]["order_id"])
    page = TestClient(pages, cookies=held).get("/cart").text
    assert f'value="{form["order"]}"' not in page and len(orders) == 4


def test_a_page_that_comes_late_leaves_the_cart_alone(
    visitor: TestClient, service: Service
) -> None:
    one, other = (str(each) for each in service.catalogue.ids[:2])
    home = visitor.get("/")
    assert "set-cookie" in home.headers  # a new visitor
    visitor.post("/cart", data={"item_id": one, "action": "add"})
    for path in ("/", "/search?q=bread", "/cart"):
        assert "set-cookie" not in visitor.get(path).headers, path
    # an item's page is asked for; the cart changes before it is there
    late = visitor.get(f"/item/{other}")
    assert [each.split("=")[0] for each in late.headers.get_list("set-cookie")] == ["seen"]
    assert "Goes with what you looked at" in visitor.get("/").text
    # what another session looked at is not this one's
    looks = visitor.cookies["seen"]
    visitor.post("/visitor", data={"user": ""})
    visitor.cookies.delete("seen")
    visitor.cookies.set("seen", looks)
    assert "Goes with what you looked at" not in visitor.get("/").text


DEEP = "[" * 100_000  # Python gives up at some depth


@pytest.mark.parametrize(
    "body", ["", "{", "[1]", '{"item": 1}', '[{"position": "x"}]', "null", DEEP]
)
def test_what_a_script_garbles_is_refused(visitor: TestClient, events: Recorded, body: str) -> None:
    assert visitor.post("/seen", content=body).status_code == 400
    assert not events


def test_events_have_legal_ids_however_long_those_of_items_are() -> None:
    visit = Visit.begin("somebody")
    clock = Clock(now=2**41, earliest=0, latest=2**42, quarantine=False)
    for kind in ("impression", "click"):
        one, again, other = (
            visit.noticed(kind, "i" * 200, request_id=request, position=1)
            for request in ("r" * 200, "r" * 200, "s")
        )
        assert [outcome.status for outcome in read_events([one], clock)[2]] == ["accepted"]
        assert one["event_id"] == again["event_id"] != other["event_id"]


def test_an_unknown_item_is_a_page_too(visitor: TestClient) -> None:
    for name in ("nothing", "a/b", "<script>alert(1)</script>", "%00"):
        page = visitor.get(f"/item/{name}")
        assert page.status_code == 404 and "No such item" in page.text
        assert "<script>alert" not in page.text


def test_what_visitors_type_is_text(visitor: TestClient) -> None:
    page = visitor.get("/search", params={"q": '"><script>alert(1)</script>'})
    assert "<script>alert" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "cookie",
    [
        *("", "nonsense", "e30=", base64.b64encode(b'{"cart": 3}').decode()),
        base64.b64encode(DEEP.encode()).decode(),
        base64.b64encode(rb'{"user": "\ud800", "session": "s", "cart": []}').decode(),
        base64.b64encode(rb'{"user": "u1", "session": "s", "cart": ["\ud800"]}').decode(),
    ],
)
def test_a_cookie_that_was_tampered_with_begins_a_visit(pages, cookie: str) -> None:
    assert TestClient(pages, cookies={"visit": cookie}).get("/").status_code == 200


@given(st.lists(st.text(max_size=300), max_size=70))
def test_a_cookie_always_fits(ids: list[str]) -> None:
    visit = Visit.begin("somebody")
    for item_id in ids:
        visit = visit.with_item(item_id).looked_at(item_id)

    class Jar(dict[str, str]):
        def set_cookie(self, name: str, value: str, **_: object) -> None:
            self[name] = value

    jar = Jar()
    scope = {"type": "http", "scheme": "http", "server": ("shop", 80), "path": "/", "headers": []}
    signed = Cookies(sign=lambda value: "f" * 64)
    visit.keep(jar, Request(scope), signed)  # type: ignore[arg-type]
    assert jar.keys() == {"visit", "seen"}
    assert max(len(value) for value in jar.values()) <= 4000


def test_no_page_is_heavy(visitor: TestClient) -> None:
    sizes = [len(visitor.get(f"/assets/{name}").content) for name in ("shop.css", "shop.js")]
    assert sum(sizes) < 20_000
    assert visitor.get("/assets/../visit.py").status_code == 404


def test_a_cookie_of_long_names_ends_nothing(pages) -> None:
    """Ids of 200 signs that JSON writes with twelve letters each do not fit into any cookie."""
    content = {"user": "\U0001f600" * 200, "session": "\U0001f600" * 200, "cart": [], "seen": []}
    raw = json.dumps(content, ensure_ascii=False).encode()
    cookie = base64.urlsafe_b64encode(raw).decode()
    client = TestClient(pages, cookies={"visit": cookie})
    assert client.get("/").status_code == 200


def test_numbers_and_calls_that_a_link_garbles_are_passed_over(visitor: TestClient) -> None:
    known = items(visitor.get("/").text)[0]
    for position in ("\u00b2", "9" * 5000, "-1", "1e3"):
        assert visitor.get(f"/item/{known}", params={"position": position}).status_code == 200
        sent = {"item_id": known, "position": position}
        assert visitor.post("/cart", data=sent, follow_redirects=False).status_code in (200, 303)
    for asked in ("NQ", "W10", "WzFd", "bnVsbA"):
        assert visitor.get(f"/why/{known}", params={"asked": asked}).status_code == 404
