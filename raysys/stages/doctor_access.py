"""The doctor's look at who may call: tokens of Ray, API keys, and whether Serve asks for one."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import psutil

from raysys.errors import UserError
from raysys.serving.keys import KeyFile
from raysys.stages.doctor_findings import FAIL, OK, WARN, Finding

_SCHEMES = ("http", "https")


def auth(environment: dict[str, str], home: Path) -> Iterator[Finding]:
    """How Ray's API and jobs are guarded, and whether the token can be found."""
    mode = environment.get("RAY_AUTH_MODE", "")
    if mode == "disabled":
        mend = "set RAY_AUTH_MODE=token unless nobody else reaches this machine"
        yield Finding("auth", "RAY_AUTH_MODE", WARN, "disabled: anyone may submit jobs", mend)
    elif mode in ("", "token"):
        found = mode or "not set; raysys starts Ray with token"
        yield Finding("auth", "RAY_AUTH_MODE", OK, found)
    else:
        yield Finding("auth", "RAY_AUTH_MODE", FAIL, repr(mode), "set it to token or disabled")
    if environment.get("RAY_AUTH_TOKEN"):
        yield Finding("auth", "token", OK, "in RAY_AUTH_TOKEN")
        return
    given = environment.get("RAY_AUTH_TOKEN_PATH", "")
    file = Path(given or home / ".ray" / "auth_token")
    try:
        yield _token(file, bool(given))
    except OSError as error:
        mend = f"let this user read {file}" + (", or unset RAY_AUTH_TOKEN_PATH" if given else "")
        why = error.strerror or type(error).__name__
        yield Finding("auth", "token", FAIL, f"{file} cannot be read: {why}", mend)


def _token(file: Path, given: bool) -> Finding:
    """What there is to say of the token's file; `given`: the environment names it.

    Raises:
        OSError: it cannot be read.
    """
    if not file.is_file():
        if given:
            mend = "put the token there, or unset RAY_AUTH_TOKEN_PATH"
            return Finding("auth", "token", FAIL, f"RAY_AUTH_TOKEN_PATH: no file {file}", mend)
        return Finding("auth", "token", OK, "none yet; the first local Ray writes one")
    empty = not file.read_text(errors="replace").strip()
    if file.stat().st_mode & 0o077:
        return Finding("auth", "token", WARN, f"others may read {file}", f"chmod 600 {file}")
    if empty:
        mend = f"rm {file}; ray get-auth-token --generate"
        return Finding("auth", "token", FAIL, f"{file} is empty", mend)
    return Finding("auth", "token", OK, str(file))


def keys(file: Path) -> Iterator[Finding]:
    """The workspace's API keys: readable by others, expired or about to be."""
    if not file.exists():
        yield Finding("auth", "API keys", OK, "none: only this machine is answered")
        return
    try:
        kept = KeyFile(file).read()
    except UserError as error:
        yield Finding("auth", "API keys", FAIL, error.what, error.mend or f"restore {file}")
        return
    now = datetime.now(UTC)
    valid = [key for key in kept if key.state(now) == "valid"]
    soon = [key for key in valid if key.expires and key.expires < now + timedelta(days=14)]
    if file.stat().st_mode & 0o077:
        mend = f"chmod 600 {file}"
        yield Finding("auth", "API keys", WARN, f"others may read the hashes in {file}", mend)
    elif soon or not valid:
        first = f"; {soon[0].id} ({soon[0].name}) ends {soon[0].expires:%Y-%m-%d}" if soon else ""
        mend = "`raysys key create` makes another, then exchange them"
        yield Finding("auth", "API keys", WARN, f"{len(valid)} valid{first}", mend)
    else:
        yield Finding("auth", "API keys", OK, f"{len(valid)} valid of {len(kept)}")


def guarded(port: int) -> Iterator[Finding]:
    """Whether what answers other machines on Serve's port wants a key."""
    try:
        listening = [
            connection.laddr.ip
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
            and connection.laddr
            and connection.laddr.port == port
        ]
    except psutil.Error:
        listening = []
    wide = [host for host in listening if not host.startswith("127.") and host != "::1"]
    if not wide:
        return
    asked = (_status(f"{scheme}://127.0.0.1:{port}/v1/users/-/profile") for scheme in _SCHEMES)
    status = next((each for each in asked if each is not None), None)
    if status is None:
        return  # nothing that speaks HTTP
    if status == 401:
        yield Finding("auth", "HTTP", OK, f"port {port} on {wide[0]} wants a key")
    else:
        mend = "`raysys key create`, `auth: {keys: FILE}` in the serve config, and deploy"
        yield Finding("auth", "HTTP", WARN, f"port {port} on {wide[0]} answers without a key", mend)


def _status(url: str) -> int | None:
    """Of what this machine's port answers, whatever its certificate says; None: nothing."""
    try:
        with urlopen(url, timeout=3, context=ssl._create_unverified_context()) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code
    except (URLError, HTTPException, OSError, ValueError):
        return None
