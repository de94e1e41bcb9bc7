"""The storefront of a deployment with keys: whom a visitor can be, and how often they may ask."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from limits import RateLimitItemPerHour

from raysys.serving import limits as limits_module
from raysys.serving.app import http_app
from raysys.serving.args import ServeArgs
from raysys.serving.keys import KeyFile
from raysys.serving.pages import Recorder
from raysys.serving.service import Service
from tests.web.conftest import Recorded

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


class Deployed:
    """Clients of a deployment, with keys unless it is told otherwise."""

    def __init__(self, service: Service, keys: Path) -> None:
        self.service, self.keys, self.settings = service, keys, service.args

    def __call__(self, base: str = "http://shop", **more: Any) -> TestClient:
        told = {
            **self.settings.model_dump(),
            "auth": {"keys": str(self.keys)},
            "pages": {"storefront": True, "console": True, **more.pop("pages", {})},
            **more,
        }
        self.service.args = ServeArgs.model_validate(told)
        client = TestClient(http_app(self.service), base_url=base, client=("127.0.0.1", 5))
        client.headers.update({"Accept": HTML["Accept"], "Host": "127.0.0.1"})
        return client


@pytest.fixture
def deployed(service: Service, tmp_path: Path, events: Recorded, monkeypatch: Any) -> Any:
    async def take(self: Recorder, told: Any) -> bool:
        return await events.take(told)

    monkeypatch.setattr(Recorder, "__call__", take)
    path = tmp_path / "keys.json"
    for role in ("read", "events"):
        KeyFile(path).create(role, (role,))
    made = Deployed(service, path)
    yield made
    service.args = made.settings


@pytest.fixture
def long_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of the limiter lasts an hour: no test takes so long."""
    monkeypatch.setattr(limits_module, "RateLimitItemPerSecond", lambda n: RateLimitItemPerHour(n))


def cookie(user: str) -> str:
    content = {"user": user, "session": "s", "cart": []}
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


def bought_by(client: TestClient, events: Recorded, visit: str | None = None) -> str:
    """Whom a purchase is told of."""
    item = re.findall(r'data-item="(\w+)"', client.get("/search?q=bread").text)[0]
    if visit is not None:
        client.cookies.clear()
        client.headers["Cookie"] = f"visit={visit}"
    client.post("/cart", data={"item_id": item, "action": "favorite"}, follow_redirects=False)
    return str(events[-1]["user_id"])


def test_a_visitor_is_nobody_whom_the_pages_did_not_make(
    deployed: Deployed, events: Recorded
) -> None:
    client = deployed()
    mine = bought_by(client, events)
    assert mine.startswith("visitor-") and bought_by(client, events) == mine
    own = client.cookies["visit"]
    value, _, signature = own.rpartition(".")
    assert bought_by(deployed(), events, own) == mine
    forged = cookie("u1")
    for each in (forged, f"{forged}.{signature}", f"{forged}.", f"{value}.{'0' * 64}", value, "."):
        assert bought_by(deployed(), events, each) not in ("u1", mine), each
    # a file of keys with one more has another secret
    KeyFile(deployed.keys).create("another", ("read",))
    assert bought_by(deployed(), events, own) != mine


def test_with_keys_nobody_shops_as_somebody_else(deployed: Deployed, events: Recorded) -> None:
    client = deployed()
    page = client.get("/")
    assert 'id="user"' not in page.text
    assert client.post("/visitor", data={"user": "u1"}).status_code == 403
    assert bought_by(client, events).startswith("visitor-")
    before = client.cookies["visit"]
    assert client.post("/visitor", data={"user": ""}).status_code == 200  # a fresh start
    assert client.cookies["visit"] != before


def test_a_demonstration_shops_as_the_users_that_it_lists(
    deployed: Deployed, events: Recorded
) -> None:
    client = deployed(pages={"shoppers": True})
    user = re.findall(r'<option value="(u\d+)"', client.get("/").text)[0]
    assert client.post("/visitor", data={"user": "somebody"}).status_code == 403
    assert f"What we know of user {user}" in client.post("/visitor", data={"user": user}).text
    assert bought_by(client, events) == user
    # it ends with the setting, whatever cookies are about
    assert bought_by(deployed(), events, client.cookies["visit"]).startswith("visitor-")


def test_without_keys_a_visitor_is_whoever_they_say(deployed: Deployed, events: Recorded) -> None:
    client = deployed(auth={})
    client.post("/visitor", data={"user": "somebody"})
    assert bought_by(client, events) == "somebody"
    assert bought_by(deployed(auth={}), events, cookie("u1")) == "u1"
    assert 'id="user"' not in deployed(auth={}, pages={"shoppers": False}).get("/").text


def test_cookies_are_for_https_alone_where_it_is_said_or_seen(deployed: Deployed) -> None:
    def told(client: TestClient) -> list[bool]:
        page = client.get("/item/i00000")
        return ["secure" in each.lower() for each in page.headers.get_list("set-cookie")]

    assert told(deployed()) == [False, False]
    assert told(deployed("https://shop")) == [True, True]
    assert told(deployed(pages={"secure_cookies": True})) == [True, True]  # TLS ends before it
    assert told(deployed(auth={}, pages={"secure_cookies": True})) == [True, True]


def test_pages_are_limited_by_address(deployed: Deployed, long_seconds: None) -> None:
    client = deployed(limits={"pages_per_second": 3})
    assert [client.get("/cart").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    refused = client.post("/seen", content="[]")
    assert refused.status_code == 429 and "try again in a moment" in refused.text
    assert int(refused.headers["retry-after"]) >= 1 and "<html" in refused.text
    assert "<html" not in client.get("/search?q=bread&fragment=1").text
    script = client.get("/cart", headers={"Accept": "*/*"})
    assert script.json()["type"].endswith("too-many-requests")
    assert client.get("/assets/shop.css").status_code == 200
    assert client.get("/healthz").status_code == 200
    # who has a key is counted by it
    _, secret = KeyFile(deployed.keys).create("more", ("read",))
    client = deployed(limits={"pages_per_second": 1})
    with_key = {"X-API-Key": secret}
    asked = [client.get("/cart", headers=with_key).status_code for _ in range(3)]
    assert asked == [200, 200, 200]
    unlimited = deployed(limits={"pages_per_second": None})
    assert {unlimited.get("/cart").status_code for _ in range(60)} == {200}


@pytest.mark.parametrize("keyed", [True, False])
def test_where_nothing_is_people_find_a_page(deployed: Deployed, keyed: bool) -> None:
    client = deployed(**({} if keyed else {"auth": {}}))
    for path in ("/nonsense", "/a/b<script>", "/%00"):
        page = client.get(path)
        assert page.status_code == 404 and "No such page" in page.text, path
        assert "<script>" not in page.text and 'href="/"' in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
    missing = 401 if keyed else 404
    for path, headers in (("/nonsense", {"Accept": "*/*"}), ("/v1/nothing", {}), ("/v1", {})):
        answer: httpx.Response = client.get(path, headers=headers)
        assert answer.status_code == missing, path
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_problem_at_a_page_is_a_page(deployed: Deployed) -> None:
    client = deployed()
    page = client.get("/search", params={"q": "x" * 1001})
    assert page.status_code == 422 and "<html" in page.text and "That cannot be shown" in page.text
    page = client.post("/cart", content="&".join(f"f{n}=1" for n in range(101)))
    assert page.status_code == 400 and "<html" in page.text


def test_pages_need_no_style_of_their_own(deployed: Deployed) -> None:
    client = deployed()
    css = client.get("/assets/shop.css").text
    for path in ("/", "/search?q=bread", "/item/i00000", "/cart"):
        page = client.get(path)
        policy = page.headers["content-security-policy"]
        assert "style-src 'self';" in policy and "unsafe" not in policy
        assert "style=" not in page.text and "<style" not in page.text
        for hue in re.findall(r"\bhue-\d+", page.text):
            assert f".{hue} " in css
