"""Which role each route needs. What is not in this table is not reachable with keys on."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

from starlette.routing import compile_path
from starlette.types import Scope

from raysys.serving.keys import Role

Access = Role | Literal["open"]

ASSETS: Final = "/assets/{name}"
"""Styles and scripts of the pages."""

PAGES: Final = (
    *("GET /", "GET /search", "GET /item/{item_id:path}", "GET /cart", "GET /why/{item_id:path}"),
    f"GET {ASSETS}",
    *("POST /cart", "POST /visitor", "POST /seen"),
    *("GET /console/login", "POST /console/login", "POST /console/leave"),
    *("GET /console", "GET /console/compare", "GET /console/live", "GET /console/query"),
    *("GET /console/experiments", "GET /console/experiments/{name}"),
    "POST /console/champion",
    *("GET /console/drift", "GET /console/feedback"),
)
"""Of people with browsers: the shop is everybody's, the console has a login of its own."""

ACCESS: Final[dict[str, Access]] = {
    "GET /healthz": "open",
    "GET /readyz": "open",  # without a key it names the bundles and nothing else
    "GET /docs": "open",  # the same for every raysys of this version: no secret
    "GET /docs-assets/{file:path}": "open",
    "GET /openapi.json": "open",
    "POST /v1/recommend": "read",
    "POST /v1/search": "read",
    "POST /v1/rank": "read",
    "POST /v1/similar": "read",
    "POST /v1/events": "events",
    "GET /v1/users/{user_id:path}/profile": "read",
    "POST /v1/text/classify": "read",
    "POST /v1/text/sentiment": "read",
    "POST /v1/text/entities": "read",
    "POST /v1/text/relevance": "read",
    "GET /v1/admin/bundles": "admin",
    "POST /v1/admin/promote": "admin",
    "POST /v1/admin/rollback": "admin",
    "GET /v1/admin/canary": "admin",
    "POST /v1/admin/canary": "admin",
    "DELETE /v1/admin/canary": "admin",
    "GET /v1/admin/experiments": "admin",
    **dict.fromkeys(PAGES, "open"),
}
"""Method and path of each route, as the application declares them, to the role that it needs."""


class AccessTable:
    """Finds the role that a request needs.

    Args:
        access: as `ACCESS`.
    """

    def __init__(self, access: dict[str, Access] = ACCESS) -> None:
        self._exact: dict[str, dict[str, Access]] = {}
        self._forms: list[tuple[re.Pattern[str], str, dict[str, Access]]] = []
        by_path: dict[str, dict[str, Access]] = {}
        for route, role in access.items():
            method, path = route.split(" ", 1)
            by_path.setdefault(path, {})[method] = role
        for path, methods in by_path.items():
            if "GET" in methods:
                methods.setdefault("HEAD", methods["GET"])
            if "{" in path:
                self._forms.append((compile_path(path)[0], path, methods))
            else:
                self._exact[path] = methods

    def methods(self, path: str) -> dict[str, Access]:
        """Method → role of what lies at a path (decoded, without the route prefix)."""
        return self._find(path)[1]

    def route(self, path: str) -> str:
        """The route of a path, as the application declares it; empty where none is."""
        return self._find(path)[0]

    def _find(self, path: str) -> tuple[str, dict[str, Access]]:
        if (exact := self._exact.get(path)) is not None:
            return path, exact
        for form, route, methods in self._forms:
            if form.match(path):
                return route, methods
        return "", {}


def path_of(scope: Scope) -> str:
    """The path that routes are matched with: without the prefix that Serve puts before it."""
    path, root = scope["path"], scope.get("root_path", "")
    if root and (path == root or path.startswith(f"{root}/")):
        return str(path[len(root) :])
    return str(path)


SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key as bearer token."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def with_roles(schema: dict[str, Any], *, open_to_all: bool) -> dict[str, Any]:
    """Say in an OpenAPI schema which role each route needs, and how a key is sent.

    Args:
        schema: changed in place, and returned.
        open_to_all: whether the deployment has no keys.
    """
    schema.setdefault("components", {})["securitySchemes"] = dict(SCHEMES)
    roles = {re.sub(r":\w+}", "}", route): role for route, role in ACCESS.items()}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            role = roles.get(f"{method.upper()} {path}")
            if role is None or role == "open":
                operation["security"] = []
                continue
            # 3.1: of schemes other than OAuth the list names the roles that are needed
            operation["security"] = [{name: [role]} for name in SCHEMES]
            if open_to_all:
                operation["security"].append({})
            operation["x-role"] = role
            problem = operation["responses"].get("default", {}).get("content", {})
            for status, meaning in (
                ("401", "No valid key"),
                ("403", f"A key without the role {role}"),
                ("429", "Too many requests with this key: see Retry-After"),
            ):
                operation["responses"][status] = {"description": meaning, "content": problem}
    return schema
