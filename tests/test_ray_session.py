"""Ray as a stage starts it, from a process of one's own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.request import urlopen

import httpx
import pytest

from raysys.cluster import ray_session, settle_environment
from raysys.errors import UserError

NOTEBOOK = """
import ray
from raysys.cluster import ray_session

with ray_session():
    print("answer:", ray.get(ray.remote(lambda: 42).remote()))
"""


@pytest.mark.slow
def test_ray_may_have_been_imported_before() -> None:
    """A token that is asked for after Ray's import is one that its own processes do not send."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "answer: 42" in done.stdout


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "nonsense", "127.0.0.1:none"])
def test_a_named_cluster_that_cannot_be_is_said(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match="no cluster to work on") as caught, ray_session():
        pass
    assert caught.value.where == "RAY_ADDRESS" and address in caught.value.what
    assert "HOST:6379" in caught.value.mend


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_is_gone_is_said_before_ray_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{probe.getsockname()[1]}"  # nobody listens
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was asked, which waits"))
        with pytest.raises(UserError, match="refused") as caught, ray_session():
            pass
    assert caught.value.where == "RAY_ADDRESS" and address in caught.value.what


class Here(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "4")
        self.end_headers()
        self.wfile.write(b"here")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("lower", "upper", "kept"),
    [(None, None, ""), ("shop.example", None, "shop.example"), (None, "shop.example", "shop.exa")],
)
def test_this_machine_is_asked_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch, lower: str | None, upper: str | None, kept: str
) -> None:
    for name, value in (("no_proxy", lower), ("NO_PROXY", upper)):
        monkeypatch.setenv(name, "")  # so that it is as it was afterwards
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody is there
    settle_environment()
    before = dict(os.environ)
    settle_environment()
    assert dict(os.environ) == before
    assert os.environ["no_proxy"].startswith(kept) and os.environ["NO_PROXY"].startswith(kept)
    with HTTPServer(("127.0.0.1", 0), Here) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for host in ("127.0.0.1", "localhost"):
            url = f"http://{host}:{server.server_port}/"
            assert httpx.get(url).text == "here"
            with urlopen(url, timeout=3) as answer:
                assert answer.read() == b"here"
        server.shutdown()
