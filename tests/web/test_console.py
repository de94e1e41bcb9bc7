"""The console: who gets in, what it shows, and that its buttons do what they say."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from raysys.registry import Registry
from raysys.serving.app import http_app
from raysys.serving.args import ServeArgs
from raysys.serving.arms import Arms
from raysys.serving.keys import KeyFile
from raysys.serving.service import Service
from tests.serving.test_arms import Shop


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    file = KeyFile(path)
    secrets = {role: file.create(role, (role,))[1] for role in ("admin", "read", "events")}
    return path, secrets


@pytest.fixture
def app(service: Service, keys: tuple[Path, dict[str, str]]) -> FastAPI:
    args = ServeArgs.model_validate(
        {
            **service.args.model_dump(),
            "pages": {"storefront": True, "console": True, "name": "Corner Shop"},
            "auth": {"keys": str(keys[0])},
        }
    )
    service.args = args
    service.ready = True
    return http_app(service, Arms(args, lambda _: service, watch=False))


@pytest.fixture
def operator(app: FastAPI, keys: tuple[Path, dict[str, str]]) -> TestClient:
    client = TestClient(app)
    page = client.post("/console/login", data={"key": keys[1]["admin"]})
    assert page.url.path == "/console" and page.status_code == 200
    return client


PATHS = ("", "/live", "/query", "/compare?a=x&b=y", "/query?query=bread", "/drift", "/feedback")


@pytest.mark.long
def test_only_admins_get_in(
    app: FastAPI, service: Service, keys: tuple[Path, dict[str, str]]
) -> None:
    client = TestClient(app)
    for path in PATHS:
        assert client.get(f"/console{path}").url.path == "/console/login", path
    registry = Registry(service.args.registry_path)
    before = registry.pointers()
    page = client.post("/console/champion", data={"action": "rollback"})
    assert page.url.path == "/console/login"
    for key in (keys[1]["read"], keys[1]["events"], "rsk_00000000_" + "A" * 43, "", "é"):
        page = client.post("/console/login", data={"key": key})
        assert page.status_code == 403 and "no valid key" in page.text
        assert client.get("/console").url.path == "/console/login"
    assert registry.pointers() == before


@pytest.mark.parametrize("token", ["", "open", "a.b.c", "0.9999999999.0", "..", "x" * 999])
def test_a_made_up_token_is_none(app: FastAPI, token: str) -> None:
    client = TestClient(app, cookies={"console": token})
    assert client.get("/console").url.path == "/console/login"


def test_a_token_cannot_be_stretched_or_lent(operator: TestClient, app: FastAPI) -> None:
    name, until, signature = operator.cookies["console"].split(".")
    for forged in (
        f"{name}.{int(until) + 1}.{signature}",
        f"{name}.1.{signature}",
        f"{name}.{until}.",
        f"{name}.{until}.é",
    ):
        stranger = TestClient(app, headers={"Cookie": f"console={forged}".encode("latin-1")})
        assert stranger.get("/console").url.path == "/console/login", forged


def test_a_revoked_key_ends_its_logins(
    app: FastAPI, keys: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raysys.serving.keys.LOOK_S", 0.0)
    file = KeyFile(keys[0])
    made, secret = file.create("short-lived", ("admin",))
    client = TestClient(app)
    assert client.post("/console/login", data={"key": secret}).url.path == "/console"
    file.revoke(made.id)
    assert client.get("/console").url.path == "/console/login"


def test_a_form_of_another_site_is_refused(operator: TestClient) -> None:
    for origin in ("https://evil.example", "http://["):
        headers = {"Origin": origin}
        page = operator.post("/console/champion", data={"action": "rollback"}, headers=headers)
        assert page.status_code == 403, origin
    assert page.status_code == 403 and "another site" in page.text


def test_bundles_are_listed_and_the_last_cannot_be_rolled_back(
    operator: TestClient, service: Service
) -> None:
    page = operator.get("/console")
    assert service.bundle.id in page.text and "champion" in page.text
    assert "Roll back" not in page.text
    page = operator.post("/console/champion", data={"action": "rollback"})
    assert page.status_code == 404 and 'role="status"' in page.text
    page = operator.post("/console/champion", data={"bundle": "../../etc", "action": "promote"})
    assert page.status_code == 404


def test_figures_with_intervals_are_shown_by_their_values(
    operator: TestClient, service: Service
) -> None:
    """`raysys learn` publishes its figure with its interval, `raysys train` as a number."""
    registry = Registry(service.args.registry_path)
    figures = {
        "ndcg10": {"full": {"value": 0.4321, "low": 0.4, "high": 0.46}, "popular": None},
        "weights": {"full": {"popular": 0.25, "next_item": {"value": 0.75}}},
    }
    learned = registry.publish(
        lambda fresh: (fresh / "popular.json").write_text("{}"),
        name_hint="learned",
        learners={"popular": "baseline"},
        figures=figures,
    )
    try:
        page = operator.get("/console")
        assert page.status_code == 200 and learned in page.text and "0.4321" in page.text
        page = operator.get("/console/compare", params={"a": service.bundle.id, "b": learned})
        assert page.status_code == 200
        assert "0.4321" in page.text and "0.2500" in page.text and "0.7500" in page.text
    finally:
        shutil.rmtree(registry.bundles / learned)


@pytest.fixture
def two(service: Service, tmp_path: Path) -> Iterator[Shop]:
    """Two bundles whose replica follows the champion, and its console."""
    bundle = Registry(service.args.registry_path).path("champion")
    made = Shop(tmp_path / "two", bundle, follow=True, pages={"console": True})
    yield made
    made.arms.close()


def test_files_are_read_beside_the_answers(two: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def watched(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **more: Any) -> Any:
            with pytest.raises(RuntimeError, match="no running event loop"):
                asyncio.get_running_loop()
            read.append(name)
            return work(*given, **more)

        return run

    for name in ("list", "verify", "rollback"):
        monkeypatch.setattr(Registry, name, watched(name, getattr(Registry, name)))
    for path in ("", f"/compare?a={two.first}&b={two.second}"):
        assert two.client.get(f"/console{path}").status_code == 200
    assert "list" in read
    promoted = {"action": "promote", "bundle": two.second}
    for form, done in ((promoted, "verify"), ({"action": "rollback"}, "rollback")):
        assert two.client.post("/console/champion", data=form).status_code == 200
        assert done in read


def test_it_is_said_who_answers_from_a_new_champion(two: Shop) -> None:
    page = two.client.post("/console/champion", data={"bundle": two.second, "force": "1"})
    assert "There is a new champion; replicas that run go over to it within seconds." in page.text
    assert two.ask("u1")["bundle"] == two.second
    offered = page.text.partition("Roll back to the champion before")[2]
    assert f"<code>{two.first}</code>" in offered
    page = two.client.post("/console/champion", data={"action": "rollback"})
    assert "The champion before is back; replicas that run" in page.text
    two.arms.args = two.arms.args.model_copy(update={"follow": False})
    page = two.client.post("/console/champion", data={"bundle": two.second, "force": "1"})
    assert "There is a new champion; replicas that start from now on answer from it." in page.text

    registry = two.registry
    text = registry.publish(
        lambda folder: (folder / "text.json").write_text(json.dumps({"task": "classify"})),
        name_hint="words",
        surface="text",
    )
    page = two.client.post("/console/champion", data={"bundle": text, "force": "1"})
    assert "text-classify means another bundle now; replicas that start" in page.text
    assert "new champion" not in page.text and registry.pointers()["text-classify"] == text
    page = two.client.get("/console", params={"done": "promoted", "name": "whatever you like"})
    assert "whatever you like" not in page.text


def test_the_journal_says_who_promoted_and_whether_by_force(
    two: Shop, keys: tuple[Path, dict[str, str]]
) -> None:
    two.client.post("/console/champion", data={"bundle": two.second})
    two.client.post("/console/champion", data={"action": "rollback"})
    causes = [change.cause for change in two.registry.journal()[-2:]]
    assert causes[0].startswith("promoted in the console by a caller of this machine: ")
    assert causes[1] == "rolled back in the console by a caller of this machine"

    auth = {"auth": {"keys": str(keys[0])}}
    args = ServeArgs.model_validate({**two.arms.args.model_dump(), **auth})
    two.made[0].args = two.arms.args = args
    client = TestClient(http_app(two.arms, two.arms))  # type: ignore[arg-type]
    client.post("/console/login", data={"key": keys[1]["admin"]})
    worse = two.registry.publish(
        lambda folder: (folder / "a.json").write_text("{}") and None,
        figures={"ndcg10": {"full": 0.1}},
    )
    assert client.post("/console/champion", data={"bundle": worse}).status_code == 409
    page = client.post("/console/champion", data={"bundle": worse, "force": "1"})
    assert page.status_code == 200
    client.post("/console/champion", data={"action": "rollback"})
    who = f"key {keys[1]['admin'].split('_')[1]} (admin)"
    causes = [change.cause for change in two.registry.journal()[-2:]]
    assert causes[0].startswith(f"promoted in the console by {who}, forced: ")
    assert causes[1] == f"rolled back in the console by {who}"


def test_one_query_is_taken_apart(operator: TestClient, service: Service) -> None:
    page = operator.get("/console/query", params={"query": "bread", "user_id": "u1", "k": "5"})
    assert page.status_code == 200
    for word in ("Candidates by source", "Milliseconds by stage", "Ensemble", "Features", "Policy"):
        assert word in page.text
    for learner in service.bundle.learners:
        assert learner.replace("_", " ") in page.text
    assert len(re.findall(r'<td class="n">\d+</td><td><a href="/item/', page.text)) == 5
    ids = ",".join(str(each) for each in service.catalogue.ids[:3])
    page = operator.get("/console/query", params={"query": "bread", "item_ids": ids})
    assert "POST /v1/rank" in page.text
    assert page.text.count("<rect") > 3 and "style=" not in page.text
    assert "style-src 'self';" in page.headers["content-security-policy"]
    page = operator.get("/console/query", params={"user_id": "u1"})
    assert "POST /v1/recommend" in page.text
    page = operator.get("/console/query", params={"user_id": "u1", "place": "item"})
    assert 'role="alert"' in page.text  # nothing in view


def test_traffic_is_counted(operator: TestClient, keys: tuple[Path, dict[str, str]]) -> None:
    headers = {"X-API-Key": keys[1]["read"]}
    for _ in range(3):
        answer = operator.post("/v1/recommend", json={"user_id": "u1"}, headers=headers)
        assert answer.status_code == 200
    page = operator.get("/console/live", params={"fragment": 1})
    assert "<html" not in page.text and "/v1/recommend" in page.text
    assert "runs without Ray Serve" in page.text and "answers" in page.text
    assert ">whole, recommend<" in page.text and "false" not in page.text


def test_leaving_ends_it(operator: TestClient) -> None:
    operator.post("/console/leave")
    assert operator.get("/console").url.path == "/console/login"


def test_the_shop_needs_no_key(app: FastAPI) -> None:
    client = TestClient(app)
    assert client.get("/").status_code == 200
    assert client.post("/v1/recommend", json={"user_id": "u1"}).status_code == 401
