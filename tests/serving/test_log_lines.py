"""What log lines hold, as Serve writes them (JSON): routes and faults, and nobody's data."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import pytest
from ray._common.formatters import JSONFormatter

from raysys.serving.access import ACCESS
from raysys.serving.arms import Arms
from raysys.serving.events import EventService
from raysys.serving.keys import ROLES, KeyFile
from raysys.serving.operator import Operator
from raysys.serving.problems import Problem, fault
from raysys.serving.ranker import Ranker
from raysys.serving.service import Service
from raysys.serving.shown_lists import ShownLog
from raysys.serving.text import TextService
from tests.serving.test_arms import Shop

pytestmark = pytest.mark.long

MARK: Final = "zyxwv"  # stands in all that is somebody's
USER, SESSION, QUERY, TEXT = (f"{MARK}-{kind}" for kind in ("user", "session", "query", "text"))
WHO: Final = {"user_id": USER, "session_id": SESSION, "attributes": {"told": MARK}}
EVENT: Final = {"event_type": "click", "event_id": MARK, "item_id": "i00001", "request_id": MARK}
BODIES: Final[dict[str, dict[str, Any]]] = {
    "/v1/recommend": WHO,
    "/v1/search": {"query": QUERY, "user_id": USER, "session_id": SESSION},
    "/v1/similar": {"item_id": "i00001", "user_id": USER},
    "/v1/rank": {"item_ids": ["i00001", MARK], "user_id": USER, "query": QUERY},
    "/v1/events": {
        "events": [
            EVENT | {"user_id": USER, "session_id": SESSION},
            EVENT | {"event_id": f"{MARK}-2", "user_id": USER, "item_id": MARK},
            {"event_type": "search", "user_id": USER, "query": QUERY},
            {"event_type": MARK, "user_id": USER},
        ]
    },
    "/v1/text/classify": {"texts": [TEXT]},
    "/v1/text/sentiment": {"texts": [TEXT]},
    "/v1/text/entities": {"texts": [TEXT]},
    "/v1/text/relevance": {"query": QUERY, "texts": [TEXT]},
    "/v1/admin/promote": {"bundle": MARK},
    "/v1/admin/rollback": {"name": MARK},
    "/v1/admin/canary": {"bundle": MARK, "share": 0.5},
}
FORMS: Final = {
    "/cart": {"item_id": "i00001", "request": MARK, "order": MARK, "action": "add"},
    "/visitor": {"user": USER},
    "/seen": {},
    "/console/login": {"key": f"rsk_{MARK}"},
    "/console/leave": {},
    "/console/champion": {"bundle": MARK},
}
ASKED: Final = {"q": QUERY, "query": QUERY, "user_id": USER, "item_ids": MARK, "k": "5"}


def as_logged(route: str) -> str:
    """As docs and log lines write a route: without the kinds of its parameters."""
    return re.sub(r":\w+}", "}", route)


class Walk:
    """A replica with all that there is, and somebody who calls every route of it."""

    def __init__(self, root: Path, champion: Path) -> None:
        file = KeyFile(root / "keys.json")
        self.key = file.create("all", tuple(ROLES))[1]
        self.shop = Shop(
            root / "registry",
            champion,
            auth={"keys": str(root / "keys.json")},
            events={"roll_events": 0},
            shown_lists={"inputs_share": 1},
            monitor={"share": 1},
            pages={"storefront": True, "console": True},
        )
        self.client = self.shop.client

    def __call__(self, *, wrong: bool = False) -> dict[str, int]:
        """Status by route of well-formed calls; with `wrong` others that are not are made too."""
        said = {"X-API-Key": self.key, "X-Session-Id": SESSION, "X-Request-Id": MARK}
        self.client.post("/console/login", data={"key": self.key})
        found = {}
        for method, route in (each.split(" ", 1) for each in ACCESS):  # no other is reachable
            if route == "/console/leave":
                continue  # would end the walk through the console
            path = re.sub(r"{file:path}", "swagger-ui.css", route)
            path = f"{re.sub(r'{[^}]*}', USER, path)}?{urlencode(ASKED)}"
            answer = self.client.request(
                method, path, headers=said, follow_redirects=False, **self._body(method, route)
            )
            found[f"{method} {as_logged(route)}"] = answer.status_code
            if not wrong:
                continue
            bad = {"json": {"user_id": [USER], "query": {QUERY: QUERY}, MARK: MARK}}
            self.client.request(method, path, headers=said, **(bad if method == "POST" else {}))
            self.client.request(method, path, headers={"X-API-Key": f"rsk_{MARK}"})
            self.client.post(path, content=MARK, headers=said | {"Content-Type": MARK})
        self.client.get(f"/{MARK}", headers=said)
        return found

    def _body(self, method: str, route: str) -> dict[str, Any]:
        if method != "POST":
            return {}
        assert (route in BODIES) != (route in FORMS), f"say what {route} is sent"
        if route == "/seen":
            return {"json": [{"list": MARK, "item_id": "i00001", "position": 1}]}
        return {"json": BODIES[route]} if route in BODIES else {"data": FORMS[route]}


@pytest.fixture(scope="module")
def walk(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    made = Walk(tmp_path_factory.mktemp("walk"), bundle)
    yield made
    made.shop.arms.close()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Gives what has been logged, of any level, by anything but the caller's own HTTP client."""
    with caplog.at_level(logging.DEBUG):
        form = JSONFormatter()
        yield lambda: [
            json.loads(form.format(record))
            for record in caplog.records
            if not record.name.startswith(("httpx", "httpcore"))
        ]


def check(walk: Walk, told: list[dict[str, Any]]) -> None:
    for line in told:
        text = json.dumps(line)
        assert MARK not in text.lower(), text
        assert walk.key not in text and walk.key.rpartition("_")[2] not in text, text


def test_a_walk_over_all_routes_leaves_nobodys_data(
    walk: Walk, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    statuses = walk(wrong=True)
    assert statuses["POST /v1/recommend"] == statuses["POST /v1/events"] == 200
    assert statuses["GET /console/query"] == statuses["GET /search"] == 200
    assert statuses["POST /cart"] == 303
    assert max(statuses.values()) < 500
    check(walk, lines())


FAULTS: Final = {
    (Service, "content"): "POST /v1/recommend",
    (Service, "profile"): "GET /v1/users/{user_id}/profile",
    (Service, "answer"): "GET /search",
    (Service, "readiness"): "GET /readyz",
    (Arms, "status"): "GET /v1/admin/canary",
    (Ranker, "scored"): "POST /v1/search",
    (Ranker, "arrange"): "POST /v1/rank",
    (Service, "asking"): "POST /v1/similar",
    (EventService, "take"): "POST /v1/events",
    (TextService, "classify"): "POST /v1/text/classify",
    (TextService, "sentiment"): "POST /v1/text/sentiment",
    (TextService, "entities"): "POST /v1/text/entities",
    (TextService, "relevance"): "POST /v1/text/relevance",
    (ShownLog, "note"): "POST /v1/recommend",
    (Operator, "bundles"): "GET /console",
}
"""What breaks, and a route that this is a fault of."""


@pytest.mark.parametrize(("where", "route"), FAULTS.items(), ids=lambda each: str(each)[-40:])
def test_a_fault_is_told_by_its_route(
    walk: Walk,
    lines: Callable[[], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    where: tuple[type, str],
    route: str,
) -> None:
    def broken(*args: Any, **named: Any) -> None:
        raise RuntimeError("forced")

    monkeypatch.setattr(*where, broken)
    statuses = walk()
    assert statuses[route] == 500, statuses
    told = lines()
    check(walk, told)
    faults = [line for line in told if line["message"] == f"a fault while answering {route}"]
    assert faults and all("RuntimeError: forced" in line["exc_text"] for line in faults)


@pytest.mark.parametrize("cause", [False, True])
def test_a_fault_while_a_call_is_refused_quotes_nothing(
    lines: Callable[[], list[dict[str, Any]]], cause: bool
) -> None:
    try:
        try:
            raise Problem(404, "unknown-user", f"nothing is known of {USER}")
        except Problem as problem:
            if cause:
                raise LookupError("inner") from problem
            raise LookupError("inner")  # noqa: B904  as a fault within a handler does
    except LookupError as inner:
        try:
            raise RuntimeError("forced") from inner
        except RuntimeError as error:
            fault({"method": "GET", "path": f"/v1/users/{USER}/profile"}, error)
    (line,) = lines()
    assert "forced" in line["exc_text"] and "inner" in line["exc_text"]
    assert MARK not in json.dumps(line)
