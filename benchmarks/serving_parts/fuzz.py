"""schemathesis over the OpenAPI, thousands of cases: with all roles, and as nobody.

A small shop on uvicorn, events and admin routes included; schemathesis makes requests that the
schema allows and ones that it does not, and checks every answer against it. Cases and statuses are
counted by the server itself.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import httpx

from benchmarks.crash import free_port
from benchmarks.result import Figure
from benchmarks.serving_parts.servers import PATIENCE_S, environment, started

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance",
)  # fmt: skip
COUNTS = "/benchmark/counts"


def measure(environments: Path, *, seconds: int = 240) -> list[Figure]:
    """Cases, faults of the server, and answers that are not as the schema says."""
    from raysys.serving.keys import ROLES, KeyFile
    from tests.serving.shop import publish_shop

    python = environment("schemathesis", environments)
    found: list[Figure] = []
    cases = faults = 0
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        publish_shop(home / "registry", with_encoder=False)
        _, secret = KeyFile(home / "keys.json").create("fuzz", tuple(ROLES))
        for who, key in (("with_roles", secret), ("as_nobody", None)):
            counts, failures, took = _run(home, python, key, seconds)
            n = sum(counts.values())
            bad = sum(many for status, many in counts.items() if status >= 500 and status != 503)
            cases, faults = cases + n, faults + bad
            statuses = ", ".join(f"{many:,} × {status}" for status, many in sorted(counts.items()))
            found.append(
                Figure(
                    f"fuzz_violations_{who}", failures, "failures", aim="0",
                    reference=f"distinct, by schemathesis, in {n:,} cases, {took:.0f} s: "
                    f"{statuses}",
                )
            )  # fmt: skip
    return [
        Figure("fuzz_cases", cases, "requests", aim="thousands", reference="of schemathesis"),
        Figure("fuzz_5xx", faults, "answers", aim="0", reference="503 apart, which is no fault"),
        *found,
    ]


def _run(
    home: Path, python: Path, key: str | None, limit_s: int
) -> tuple[Counter[int], int, float]:
    """Statuses, distinct failures, and how long it took."""
    port = free_port()
    args: dict[str, Any] = {
        "registry": str(home / "registry"), "clock": "log_end", "max_waiting": 1000,
        "events": {"path": str(home / "eventlog")}, "auth": {"keys": str(home / "keys.json")},
        "pages": {},
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.serving_parts.fuzz", str(port), json.dumps(args)]
    log = home / "server.log"
    with log.open("wb") as out, started(command, {}, out):
        url = f"http://127.0.0.1:{port}"
        _wait(url, log)
        header = ["-H", f"Authorization: Bearer {key}"] if key else []
        if key:  # else a made-up X-API-Key joins it, and most cases end at a 401
            header += ["--generation-with-security-parameters", "false"]
        began = time.perf_counter()
        done = subprocess.run(
            [
                *(str(python.with_name("schemathesis")), "run", f"{url}/openapi.json", *header),
                *("--max-time", str(limit_s), "--checks", ",".join(CHECKS), "--seed", "1"),
                *("--no-color", "--no-shrink"),
                *("--continue-on-failure", "--warnings", "off"),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=home,
            timeout=10 * limit_s,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        counted = httpx.get(f"{url}{COUNTS}", timeout=30).json()
    print(done.stdout[-6000:], flush=True)
    said = re.search(r"(\d+) unique failures?", done.stdout)
    failures = int(said[1]) if said else int(done.returncode != 0)
    return Counter({int(status): many for status, many in counted.items()}), failures, seconds


def _wait(url: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/healthz", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise RuntimeError(f"the server does not answer: {log.read_text(errors='replace')[-1500:]}")


class Counted:
    """ASGI: counts the statuses of all answers, and tells them."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.counts: Counter[int] = Counter()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] == "http" and scope["path"] == COUNTS:
            body = json.dumps(self.counts).encode()
            head = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": body})
            return

        async def noted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and scope["path"].startswith("/v1/"):
                self.counts[message["status"]] += 1
            await send(message)

        await self.app(scope, receive, noted)


def serve(port: int, args: dict[str, Any]) -> None:
    """The small shop with all its routes; never returns."""
    from typing import cast

    import uvicorn

    from raysys.serving.app import http_app
    from raysys.serving.args import ServeArgs
    from raysys.serving.arms import Arms
    from raysys.serving.service import Service

    arms = Arms(ServeArgs.model_validate(args))
    arms.warm_up()
    app = Counted(http_app(cast("Service", arms), arms))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    serve(int(sys.argv[1]), json.loads(sys.argv[2]))
