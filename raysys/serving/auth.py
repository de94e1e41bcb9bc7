"""Who may call: API keys and roles in front of every route, as ASGI middleware."""

from __future__ import annotations

import ipaddress
import os
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from raysys.serving.access import AccessTable, path_of
from raysys.serving.edge_args import AuthArgs
from raysys.serving.keys import Key, KeyRing
from raysys.serving.problems import Problem

_WWW = {"WWW-Authenticate": 'Bearer realm="raysys"'}


class Auth:
    """Refuses with 401 who has no valid key, with 403 who lacks the role, and passes on the rest.

    With keys, a route that `access.ACCESS` does not name is not there (404). The key that called
    is `scope["state"]["key"]`, and whether there are keys at all `["keyed"]`.

    Without keys, only this machine is answered unless `open` says otherwise, and on admin routes
    and the console even then: neither another machine (403), nor a page of another site that a
    browser here shows (told by its Origin, or by a name of its own that leads here).

    Args:
        app: what answers.
        args: the deployment's.
        cors_origins: pages that may call though they are of another origin.

    Raises:
        UserError: the file of keys is missing or damaged.
    """

    def __init__(self, app: ASGIApp, args: AuthArgs, cors_origins: tuple[str, ...] = ()) -> None:
        self.app, self.args, self.cors_origins = app, args, cors_origins
        path = args.keys_path
        self.ring = None if path is None else KeyRing(path)
        self.table = AccessTable()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "websocket":  # there is none to allow
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["key"], state["keyed"] = None, self.ring is not None
        try:
            if self.ring is not None:
                state["key"] = self._admit(scope, self.ring)
            elif not self.args.open or self._operates(scope):
                _check_near(scope, self.cors_origins)
        except Problem as problem:
            response = problem.response(scope["path"])
            if problem.status == 401:
                response.headers.update(_WWW)
            elif problem.status == 405:  # RFC 9110, 15.5.6: it has to say what is
                methods = self.table.methods(path_of(scope)).keys() - {"HEAD"}
                response.headers["Allow"] = ", ".join(sorted(methods))
            await response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _operates(self, scope: Scope) -> bool:
        """Whether this changes what is served, or shows it to operators."""
        path = path_of(scope)
        # the console's own login is a key; where there are none it lets in whoever comes
        return "admin" in self.table.methods(path).values() or path.startswith("/console")

    def _admit(self, scope: Scope, ring: KeyRing) -> Key | None:
        methods = self.table.methods(path_of(scope))
        role = methods.get(scope["method"])
        secret = _secret(scope)
        if role == "open" and secret is None:
            return None
        key = _valid(secret, ring)
        if role is None:
            if methods:
                detail = f"{scope['method']} is not for {scope['path']}; /docs lists what is"
                raise Problem(405, "method-not-allowed", detail)
            raise Problem(
                404, "not-found", f"there is no {scope['path']}; /docs lists what there is"
            )
        if role != "open" and role not in key.roles:
            detail = f"this needs a key with the role {role!r}; yours has {', '.join(key.roles)}"
            raise Problem(403, "role-missing", detail)
        return key


def _valid(secret: str | None, ring: KeyRing) -> Key:
    if secret is None:
        detail = "send an API key: `Authorization: Bearer rsk_…` or `X-API-Key: rsk_…`"
        raise Problem(401, "key-missing", detail)
    key = ring.find(secret)
    if key is None:
        raise Problem(401, "key-invalid", "there is no such key; `raysys key create` makes one")
    state = key.state(datetime.now(UTC))
    if state != "valid":  # whoever holds the secret may know what became of it
        raise Problem(401, f"key-{state}", f"the key {key.id} is {state}; ask for another one")
    return key


def _secret(scope: Scope) -> str | None:
    """The key that was sent; None: none was.

    Raises:
        Problem: 401, more than one, or another scheme than Bearer.
    """
    sent = []
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            sent.append(value.decode("latin-1"))
        elif name == b"authorization":
            scheme, _, credentials = value.decode("latin-1").partition(" ")
            if scheme.lower() != "bearer":
                raise Problem(401, "key-invalid", "the scheme of Authorization is Bearer here")
            sent.append(credentials.strip())
    if len(sent) > 1:
        raise Problem(401, "key-invalid", "send one key, once")
    return sent[0] if sent else None


def behind_haproxy() -> bool:
    """Whether Serve answers through its HAProxy: then every caller looks like this machine.

    It connects to the replicas of its node from this very machine, whoever asked it, and as Ray
    sets it up names nobody in X-Forwarded-For.
    """
    return os.environ.get("RAY_SERVE_ENABLE_HA_PROXY", "0") not in ("", "0")


def _check_near(scope: Scope, cors_origins: tuple[str, ...]) -> None:
    """Refuse what does not come from this machine.

    Raises:
        Problem: 403.
    """
    headers = Headers(scope=scope)
    told = ",".join(headers.getlist("x-forwarded-for"))  # a proxy may add a line of its own
    forwarded = [part.strip() for part in told.split(",")]
    client = scope.get("client")
    mend = "set up keys (`raysys key create`, then `auth.keys` in the serve config)"
    if behind_haproxy():
        detail = f"behind HAProxy nobody can tell where a call comes from: {mend}"
        raise Problem(403, "not-local", detail)
    near = all(_is_loopback(host) for host in forwarded if host)
    # a socket of this machine has no address
    if not near or (client and _is_address(client[0]) and not _is_loopback(client[0])):
        detail = f"without keys only the machine itself is answered: {mend}, or set auth.open"
        raise Problem(403, "not-local", detail)
    if _is_foreign(headers.get("host", ""), headers.get("origin"), cors_origins):
        detail = (
            f"without keys no page of another site is answered: {mend}, or name it in cors_origins"
        )
        raise Problem(403, "foreign-page", detail)


def _is_foreign(host: str, origin: str | None, cors_origins: tuple[str, ...]) -> bool:
    """Whether a page of another site asks, or one by a name of its own that leads here."""
    try:
        named = urlsplit(f"//{host}").hostname or ""
        site = host if origin is None else urlsplit(origin).netloc
    except ValueError:  # no browser of anybody's writes that
        return True
    if "." in named and not _is_address(named):
        return True  # it can be anybody's, pointed at 127.0.0.1 (DNS rebinding)
    return site != host and origin not in cors_origins


@lru_cache(maxsize=1024)
def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@lru_cache(maxsize=1024)
def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
