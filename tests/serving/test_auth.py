"""Who is let through: every route with every role and with none."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Mount, Route
from starlette.websockets import WebSocketDisconnect

from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.serving.access import ACCESS
from raysys.serving.app import http_app, settle
from raysys.serving.args import ServeArgs
from raysys.serving.arms import Arms
from raysys.serving.edge import protect
from raysys.serving.keys import ROLES, KeyFile
from raysys.serving.metrics import Metrics
from raysys.serving.service import Service
from raysys.serving.traffic import Traffic
from raysys.serving.workers import Workers
from raysys.stages.deploy_plan import DeploySettings, plan

WRONG = ("missing", "unknown", "expired", "revoked", "malformed", "twice", "basic", "hash")


class Keyed:
    """An application with keys: one a role, and those that no longer open anything."""

    def __init__(self, service: Service, path: Path) -> None:
        file = KeyFile(path)
        self.secrets = {role: file.create(role, (role,))[1] for role in ROLES}
        kept, self.ended = {}, {}
        for state in ("expired", "revoked"):
            kept[state], self.ended[state] = file.create(state, ROLES, days=1)
        file.revoke("revoked")
        text = path.read_text()
        long_ago = datetime.now(UTC) - timedelta(days=9)
        expires = kept["expired"].model_dump(mode="json")["expires"]
        path.write_text(text.replace(expires, long_ago.isoformat()))
        self.hash = kept["expired"].sha256
        content = {**service.args.model_dump(), "auth": {"keys": str(path)}}
        self.args = ServeArgs.model_validate(content)
        arms = Arms(self.args, lambda args: Clothed(service, args), watch=False)
        self.app = http_app(cast("Service", arms), arms)
        self.client = TestClient(self.app, raise_server_exceptions=False)

    def wrong(self) -> dict[str, Any]:
        """Headers that let nobody in, by what is wrong with them."""
        good = self.secrets["admin"]
        found: dict[str, Any] = {
            "missing": {},
            "unknown": {"X-API-Key": "rsk_00000000_" + "0" * 43},
            "expired": {"Authorization": f"Bearer {self.ended['expired']}"},
            "revoked": {"Authorization": f"Bearer {self.ended['revoked']}"},
            "malformed": {"Authorization": f"Bearer{good}"},
            "twice": [("X-API-Key", good), ("Authorization", f"Bearer {good}")],
            "basic": {"Authorization": f"Basic {good}"},
            "hash": {"X-API-Key": self.hash},
        }
        assert set(found) == set(WRONG)
        return found


class Clothed(Service):
    """A warm service under other arguments, without loading its bundle again."""

    def __init__(self, service: Service, args: ServeArgs) -> None:
        self.__dict__.update(service.__dict__)
        self.args = args


@pytest.fixture(scope="module")
def keyed(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Keyed:
    return Keyed(service, tmp_path_factory.mktemp("keys") / "keys.json")


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """Method and path of all that the application answers, in the OpenAPI or not."""
    found = []
    for route in app.routes:
        if isinstance(route, Mount):
            found.append(("GET", f"{route.path}/{{file:path}}"))
        elif isinstance(route, Route) or hasattr(route, "methods"):
            found += [(method, route.path) for method in route.methods - {"HEAD"}]
    return sorted(found)


def call(client: TestClient, method: str, path: str, headers: Any) -> httpx.Response:
    path = path.replace("{file:path}", "swagger-ui.css").replace("{user_id:path}", "u1")
    assert "{" not in path
    content = b"{}" if method == "POST" else None
    sent = httpx.Headers(headers)
    if content:
        sent["Content-Type"] = "application/json"
    return client.request(method, path, content=content, headers=sent)


@pytest.mark.long
def test_every_route_declares_its_role(keyed: Keyed) -> None:
    found = {f"{method} {path}" for method, path in routes(keyed.app)}
    assert found - ACCESS.keys() == set(), "name them in raysys/serving/access.py"
    assert set(ACCESS.values()) <= {*ROLES, "open"}


@pytest.mark.long
def test_every_route_with_every_role_and_with_none(keyed: Keyed) -> None:
    wrong = keyed.wrong()
    for method, path in routes(keyed.app):
        needed = ACCESS[f"{method} {path}"]
        for role, secret in keyed.secrets.items():
            for headers in ({"X-API-Key": secret}, {"Authorization": f"bearer {secret}"}):
                response = call(keyed.client, method, path, headers)
                if needed in (role, "open"):
                    assert response.status_code in (200, 404, 422), (method, path, role)
                else:
                    problem = response.json()
                    assert response.status_code == 403, (method, path, role)
                    assert problem["type"].endswith("role-missing")
                    assert repr(needed) in problem["detail"]  # says which role
        for name, headers in wrong.items():
            response = call(keyed.client, method, path, headers)
            if needed == "open" and name == "missing":
                assert response.status_code == 200
                continue
            assert response.status_code == 401, (method, path, name)
            assert response.headers["www-authenticate"].startswith("Bearer")
            assert response.headers["content-type"] == "application/problem+json"
            assert not any(secret in response.text for secret in keyed.secrets.values())


def test_what_became_of_a_key_is_told_to_its_holder_only(keyed: Keyed) -> None:
    for name, headers in keyed.wrong().items():
        kind = keyed.client.get("/v1/users/u1/profile", headers=headers).json()["type"]
        expected = name if name in ("missing", "expired", "revoked") else "invalid"
        assert kind == f"urn:raysys:problem:key-{expected}"


def test_what_is_not_declared_is_not_there(keyed: Keyed) -> None:
    app = FastAPI()
    workers = Workers(1, 1)
    protect(app, keyed.args, Traffic(), Metrics, lambda: workers)

    @app.get("/v1/secret")
    @app.delete("/v1/search")
    async def undeclared() -> str:
        return "leaked"

    client = TestClient(app)
    for secret in keyed.secrets.values():
        headers = {"X-API-Key": secret}
        assert client.get("/v1/secret", headers=headers).status_code == 404
        wrong = client.delete("/v1/search", headers=headers)
        assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
        wrong = client.put("/v1/admin/canary", headers=headers)
        assert wrong.headers["allow"] == "DELETE, GET, POST"
    for path in ("/v1/secret", "/v1/nothing", "/nothing", "/V1/search", "/v1/search/"):
        assert client.get(path).status_code == 401
    with pytest.raises(WebSocketDisconnect) as caught, client.websocket_connect("/v1/secret"):
        pass
    assert caught.value.code == 1008


def raw_get(app: FastAPI, target: str) -> tuple[int, bytes]:
    """GET as a server gets it, without a client that makes the path neat first."""
    path, _, query = target.partition("?")
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"testserver")],
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 8000),
    }
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize(
    "path",
    [
        "/docs-assets/../v1/users/u1/profile",
        "/docs-assets/%2e%2e/v1/users/u1/profile",
        "/healthz/../v1/users/u1/profile",
        "/healthz%2f..%2fv1%2fusers%2fu1%2fprofile",
        "/v1/users/u1/profile?x=/healthz",
        "/v1/users/u1/profile;/healthz",
        "/v1/users/u1/profile%00/healthz",
    ],
)
def test_no_path_leads_around_the_keys(keyed: Keyed, path: str) -> None:
    status, body = raw_get(keyed.app, path)
    assert status in (401, 404)
    assert b"interests" not in body


def test_a_prefix_before_the_routes_changes_nothing(keyed: Keyed) -> None:
    client = TestClient(keyed.app, root_path="/shop", raise_server_exceptions=False)
    assert client.get("/shop/healthz").status_code == 200
    assert client.get("/shop/v1/users/u1/profile").status_code == 401
    headers = {"X-API-Key": keyed.secrets["read"]}
    assert client.get("/shop/v1/users/u1/profile", headers=headers).status_code == 200
    headers = {"X-API-Key": keyed.secrets["admin"]}
    assert client.get("/shop/v1/users/u1/profile", headers=headers).status_code == 403


def test_readiness_says_little_without_a_key(keyed: Keyed, service: Service) -> None:
    bare = keyed.client.get("/readyz").json()
    assert bare["bundle"] == service.bundle.id
    assert not bare["items"] and not bare["users"] and not bare["learners"]
    full = keyed.client.get("/readyz", headers={"X-API-Key": keyed.secrets["events"]}).json()
    assert full["items"] == len(service.catalogue)


def test_no_secret_is_logged(keyed: Keyed, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for secret in [*keyed.secrets.values(), *keyed.ended.values()]:
        keyed.client.get("/v1/users/u1/profile", headers={"X-API-Key": secret})
        assert secret not in caplog.text


def test_a_revoked_key_is_refused_without_a_restart(service: Service, tmp_path: Path) -> None:
    keyed = Keyed(service, tmp_path / "keys.json")
    headers = {"X-API-Key": keyed.secrets["read"]}
    assert keyed.client.get("/v1/users/u1/profile", headers=headers).status_code == 200
    KeyFile(tmp_path / "keys.json").revoke("read")
    auth = find(keyed.app, "Auth")
    auth.ring._looked -= 2  # as if two seconds had passed
    assert keyed.client.get("/v1/users/u1/profile", headers=headers).status_code == 401


def find(app: Any, name: str) -> Any:
    """A middleware of an application that has answered once."""
    layer = app.middleware_stack
    while type(layer).__name__ != name:
        layer = layer.app
    return layer


@pytest.mark.long
def test_openapi_says_how_to_send_a_key_and_which_role(keyed: Keyed, client: TestClient) -> None:
    schema = keyed.client.get("/openapi.json").json()
    OpenAPIV31SpecValidator(schema).validate()
    assert set(schema["components"]["securitySchemes"]) == {"bearer", "header"}
    declared = {route.replace(":path}", "}"): role for route, role in ACCESS.items()}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            needed = declared[f"{method.upper()} {path}"]
            if needed == "open":
                assert operation["security"] == []
                continue
            assert operation["security"] == [{"bearer": [needed]}, {"header": [needed]}]
            assert {"401", "403", "429"} <= set(operation["responses"])
    free = client.get("/openapi.json").json()
    OpenAPIV31SpecValidator(free).validate()
    assert {} in free["paths"]["/v1/search"]["post"]["security"]  # a key is optional


def near(service: Service, **update: Any) -> FastAPI:
    content = {**service.args.model_dump(), **update}
    return http_app(Clothed(service, ServeArgs.model_validate(content)))


@pytest.mark.parametrize(
    ("client", "headers", "status"),
    [
        ("127.0.0.1", {"host": "127.0.0.1:8000"}, 200),
        ("127.8.9.1", {"host": "localhost"}, 200),
        ("::1", {"host": "[::1]:8000"}, 200),
        ("::ffff:127.0.0.1", {}, 200),
        ("10.0.0.7", {}, 403),
        ("2001:db8::1", {}, 403),
        ("127.0.0.1", {"x-forwarded-for": "10.0.0.7"}, 403),
        ("10.0.0.7", {"x-forwarded-for": "127.0.0.1"}, 403),
        ("127.0.0.1", {"x-forwarded-for": "127.0.0.1, ::1"}, 200),
        ("127.0.0.1", {"x-forwarded-for": "unknown"}, 403),
        ("127.0.0.1", {"host": "evil.example"}, 403),
        ("127.0.0.1", {"host": "127.0.0.1.evil.example:8000"}, 403),
        ("127.0.0.1", {"host": "localhost:8000", "origin": "https://evil.example"}, 403),
        ("127.0.0.1", {"host": "localhost:8000", "origin": "null"}, 403),
        ("127.0.0.1", {"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
        ("127.0.0.1", {"host": "localhost:8000", "origin": "https://shop.example"}, 200),
        ("127.0.0.1", {"host": "localhost:8000", "origin": "http://["}, 403),
        ("127.0.0.1", {"host": "["}, 403),
    ],
)
def test_without_keys_only_this_machine_is_answered(
    service: Service, client: str, headers: dict[str, str], status: int
) -> None:
    app = near(service, cors_origins=["https://shop.example"])
    found = TestClient(app, client=(client, 5)).get("/v1/users/u1/profile", headers=headers)
    assert found.status_code == status, found.text
    wide = near(service, auth={"open": True})
    found = TestClient(wide, client=(client, 5)).get("/v1/users/u1/profile", headers=headers)
    assert found.status_code == 200


@pytest.mark.parametrize("path", ["/v1/admin/bundles", "/console", "/console/live"])
def test_who_is_open_to_all_lets_nobody_operate_it(service: Service, path: str) -> None:
    args = {"auth": {"open": True}, "pages": {"console": True}}
    args = ServeArgs.model_validate({**service.args.model_dump(), **args})
    arms = Arms(args, lambda args: Clothed(service, args), watch=False)
    app = http_app(cast("Service", arms), arms)
    far = TestClient(app, client=("10.0.0.7", 5)).get(path)
    assert far.status_code == 403 and far.json()["type"].endswith("not-local")
    here = TestClient(app, client=("127.0.0.1", 5)).get(path, follow_redirects=False)
    assert here.status_code == 200


def test_behind_haproxy_nobody_counts_as_near(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It connects from this very machine and names nobody: all callers look alike."""
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    args = {"auth": {"open": True}, "pages": {"console": True}}
    args = ServeArgs.model_validate({**service.args.model_dump(), **args})
    arms = Arms(args, lambda args: Clothed(service, args), watch=False)
    wide = TestClient(http_app(cast("Service", arms), arms), client=("127.0.0.1", 5))
    for path in ("/v1/admin/bundles", "/console"):
        refused = wide.get(path)
        assert refused.status_code == 403 and "behind HAProxy" in refused.json()["detail"]
    assert wide.get("/v1/users/u1/profile").status_code == 200
    closed = TestClient(near(service), client=("127.0.0.1", 5))
    assert closed.get("/v1/users/u1/profile").status_code == 403


def test_each_line_of_x_forwarded_for_counts(service: Service) -> None:
    client = TestClient(near(service), client=("127.0.0.1", 5))
    lines = [("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-For", "203.0.113.7")]
    assert client.get("/v1/users/u1/profile", headers=lines[:1]).status_code == 200
    found = client.request("GET", "/v1/users/u1/profile", headers=httpx.Headers(lines))
    assert found.status_code == 403


def config(registry_root: Path, host: str | None, **args: Any) -> DeploySettings:
    content: dict[str, Any] = {
        "applications": [
            {
                "name": "raysys",
                "import_path": "raysys.serving.app:build",
                "args": {"registry": str(registry_root), **args},
            }
        ],
    }
    if host is not None:
        content["http_options"] = {"host": host}
    return parse_settings(DeploySettings, content, where="x.yaml")


def test_deploy_wants_keys_or_the_machine_alone(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)
    root = service.args.registry_path
    for host in ("0.0.0.0", "::", "10.0.0.7", "shop.example", None):
        with pytest.raises(UserError, match="raysys key create"):
            plan(config(root, host), None)
        plan(config(root, host, auth={"open": True}), None)
    plan(config(root, "127.0.0.1"), None)
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(UserError, match="nobody would be answered") as caught:
        plan(config(root, "127.0.0.1"), None)
    assert caught.value.where == "applications.0.args.auth"
    with pytest.raises(UserError, match="no keys: No such file"):
        plan(config(root, "0.0.0.0", auth={"keys": str(tmp_path / "keys.json")}), None)
    KeyFile(tmp_path / "keys.json").create("a", ("read",))
    monkeypatch.setenv("RAYSYS_HOME", str(tmp_path))
    planned, _ = plan(config(root, "0.0.0.0", auth={"keys": "keys.json"}), None)
    settled = planned["applications"][0]["args"]["auth"]
    assert settled == {"keys": str(tmp_path / "keys.json"), "open": False}


def test_a_replica_without_its_keys_does_not_start(service: Service, tmp_path: Path) -> None:
    app = near(service, auth={"keys": str(tmp_path / "none.json")})
    with pytest.raises(UserError, match="no keys"), TestClient(app) as client:
        client.get("/healthz")
    assert settle(ServeArgs(registry=str(service.args.registry_path))).auth.keys is None
