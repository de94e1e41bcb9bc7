"""What runs on a laptop runs as a Ray job: the same command, on a cluster that is already there."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

BIN = Path(sys.executable).parent
SHOP = """
source:
  kind: files
  title: A small shop
  events:
    - paths: log.csv
      columns: {user_id: who, item_id: what, event_type: did, timestamp: at, price: paid}
      event_types: {bought: purchase}
      time: {unit: seconds}
      constants: {currency: EUR}
"""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; held together so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


@pytest.fixture
def cluster(tmp_path):
    """A head node with its dashboard, guarded by a token; yields its environment and URL."""
    gcs, dashboard, client, agent = free_ports(4)
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    log = (tmp_path / "ray.log").open("w+")
    head = subprocess.Popen(
        [
            *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--port={gcs}"),
            *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
            "--object-store-memory=200000000",
        ],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    children: list[psutil.Process] = []
    try:
        while "--block" not in (tmp_path / "ray.log").read_text():  # its last words when it is up
            with pytest.raises(subprocess.TimeoutExpired):
                head.wait(0.5)
        yield environment, f"http://127.0.0.1:{dashboard}"
    finally:
        children = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
        head.send_signal(signal.SIGTERM)
        head.wait(60)
        _, alive = psutil.wait_procs(children, timeout=30)
        for process in alive:
            process.kill()
        log.close()
    assert not alive


@pytest.mark.slow
def test_a_stage_runs_as_a_job(cluster, tmp_path):
    environment, address = cluster
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "shop.yaml").write_text(SHOP)
    rows = [f"u{n % 7},i{n % 11},bought,{1_700_000_000 + n * 3600},2.5" for n in range(200)]
    rows.append("u1,i1,bought,not a time,1")
    (folder / "log.csv").write_text("\n".join(["who,what,did,at,paid", *rows]) + "\n")
    workspace = tmp_path / "run"
    submit = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", "."]

    def job(name: str, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*submit, "--submission-id", name, "--", "raysys", *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )

    done = job("shop-ingest", "ingest", "--config", "shop.yaml", "--workspace", str(workspace))
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((workspace / "ingest" / "manifest.json").read_text())
    assert manifest["counts"]["events.out"] == 200
    assert manifest["counts"]["events.quarantined"] == 1
    assert "report.html" in done.stdout

    again = job("shop-ingest", "ingest", "--config", "shop.yaml", "--workspace", str(workspace))
    assert again.returncode != 0 and "already exists" in again.stdout + again.stderr

    wrong = job("shop-ingest-2", "ingest", "--config", "shop.yml", "--workspace", str(workspace))
    assert wrong.returncode != 0
    assert "no such configuration: 'shop.yml'" in wrong.stdout
    assert "Traceback" not in wrong.stdout
