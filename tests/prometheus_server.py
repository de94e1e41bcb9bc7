"""A Prometheus of the tests' own, with the configuration that is shipped; Debian's prometheus."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import pytest
import yaml

from raysys.config import PRESETS

T = TypeVar("T")
SHIPPED: Final = PRESETS / "monitoring"
EVERY: Final = "1s"
"""Between two scrapes; the shipped ten seconds would only make the tests wait."""


class PrometheusServer:
    """One that scrapes a cluster of Ray.

    Args:
        folder: for its data and its configuration.
        targets: the file in which Ray keeps its targets; each session writes one of its own, to the
            newest of which the shipped configuration points.
    """

    def __init__(self, folder: Path, targets: Path) -> None:
        self.folder, self.targets = folder, targets
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers; skips the test where no Prometheus is installed."""
        program = shutil.which("prometheus")
        if program is None:
            pytest.skip("no prometheus here (Debian: apt install prometheus)")
        path = self.folder / "prometheus.yaml"
        path.write_text(yaml.safe_dump(self._config()))
        with (self.folder / "prometheus.log").open("wb") as said:
            self.process = subprocess.Popen(
                [program, f"--config.file={path}", f"--storage.tsdb.path={self.folder / 'tsdb'}",
                 f"--web.listen-address=127.0.0.1:{self.port}"],
                stdout=said, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.wait_until(lambda: self._ready() or None)

    def _config(self) -> dict[str, Any]:
        """The shipped one, faster and with this session's targets."""
        content: dict[str, Any] = yaml.safe_load((SHIPPED / "prometheus.yaml").read_text())
        content["global"] = dict.fromkeys(content["global"], EVERY)
        content["rule_files"] = [str(SHIPPED / name) for name in content["rule_files"]]
        (job,) = content["scrape_configs"]
        (files,) = job["file_sd_configs"]
        assert [Path(name).name for name in files["files"]] == [self.targets.name]
        files["files"] = [str(self.targets)]
        return content

    def _ready(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log()
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def log(self) -> str:
        """What it has said."""
        return (self.folder / "prometheus.log").read_text()

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of one call of its HTTP API; fails where it refuses."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}"
        answer = httpx.get(url, params=parameters, timeout=30)
        content = answer.json()
        assert content["status"] == "success", (parameters, content)
        return content["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def wait_until(self, look: Callable[[], T | None], seconds: float = 90) -> T:
        """What `look` gives as soon as it is something."""
        until = time.monotonic() + seconds
        while (found := look()) is None:
            assert time.monotonic() < until, self.log()
            time.sleep(0.2)
        return found

    def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None
