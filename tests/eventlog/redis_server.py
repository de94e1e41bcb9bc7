"""A Redis of the tests' own, as durable as ours must be; Debian's redis-server."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


class RedisServer:
    def __init__(self, folder: Path, port: int, fsync: str = "always") -> None:
        self.folder, self.port, self.fsync = folder, port, fsync
        self.url = f"redis://127.0.0.1:{port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def redis(self) -> Any:
        import redis

        return redis.Redis.from_url(self.url, decode_responses=True)

    def start(self) -> None:
        """Start, and wait until it answers; skips the test where no Redis is installed."""
        pytest.importorskip("redis", reason="the extra `redis` is not installed")
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("no redis-server here (Debian: apt install redis-server)")
        self.process = subprocess.Popen(
            [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder),
             "--appendonly", "yes", "--appendfsync", self.fsync, "--save", "",
             "--logfile", str(self.folder / "redis.log")],
        )  # fmt: skip
        import redis
        from redis.backoff import ConstantBackoff
        from redis.retry import Retry

        patient = redis.Redis.from_url(
            self.url,
            retry=Retry(ConstantBackoff(0.05), 400),
            retry_on_error=[redis.exceptions.BusyLoadingError],
        )
        assert patient.ping()
        patient.close()

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
