"""`benchmarks.latency` against a server that answers at once: what it asks, and what it records."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from benchmarks import latency, result

LISTS = ("recommend", "search", "similar", "rank")


class Shop(BaseHTTPRequestHandler):
    """Answers every list with the same items."""

    protocol_version = "HTTP/1.1"
    asked: Counter[str] = Counter()

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        Shop.asked[self.path] += 1
        if self.path == "/v1/rank":
            assert len(set(asked["item_ids"])) == latency.CANDIDATES
        self._answer({"items": [{"item_id": f"i{n}"} for n in range(latency.CANDIDATES)]})

    def _answer(self, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


class Server(ThreadingHTTPServer):
    """Takes callers that come all at once."""

    request_queue_size = 64


class Closed(Shop):
    """Turns a caller away."""

    def do_GET(self) -> None:
        self.send_error(503)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    server = Server(("127.0.0.1", 0), getattr(request, "param", Shop))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.mark.long
def test_it_measures_the_four_lists_and_records_them_under_its_name(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result, "RESULTS", tmp_path)
    monkeypatch.setattr(result, "ROOT", tmp_path)
    argv = ["/anywhere/benchmarks/latency.py", "--url", url, "--seconds", "0.3"]
    monkeypatch.setattr("sys.argv", argv)
    latency.main()
    assert [path.name for path in tmp_path.iterdir()] == ["latency.json"]
    written = json.loads((tmp_path / "latency.json").read_text())
    assert written["command"] == f"python -m benchmarks.latency --url {url} --seconds 0.3"
    values = {figure["name"]: figure["value"] for figure in written["figures"]}
    assert set(values) == {
        f"{name}_{what}_{n}"
        for name in LISTS
        for what in ("per_s", "p50_ms", "p99_ms")
        for n in (1, 16)
    }
    assert all(value > 0 for value in values.values())
    assert {path for path, n in Shop.asked.items() if n > 1} == {f"/v1/{name}" for name in LISTS}


@pytest.mark.parametrize("url", [Closed], indirect=True)
def test_a_server_that_turns_callers_away_ends_the_run(url: str) -> None:
    with pytest.raises(httpx.HTTPStatusError):
        latency.load(url, "/v1/rank", [{"item_ids": []}], 4, 1.0)
