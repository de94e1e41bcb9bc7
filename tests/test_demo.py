"""The README's first command as a newcomer meets it: table, addresses, Ctrl-C, the second run."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from raysys.config import find_config, load_settings
from raysys.stages.demo import CALLS, Call, free_port
from raysys.stages.train_settings import TrainSettings

pytestmark = pytest.mark.slow
PATIENCE_S = 1500


class Demo:
    """A running `raysys demo`, known by a mark in its environment that its children inherit."""

    def __init__(self, workspace: Path, *options: str, terminal: bool = False) -> None:
        self.mark = secrets.token_hex(8)
        environment = {**os.environ, "RAYSYS_TEST_MARK": self.mark, "RAY_AUTH_MODE": "token"}
        environment |= {"TERM": "xterm-256color", "COLUMNS": "120"}
        environment.pop("RAY_ADDRESS", None)
        ours, theirs = pty.openpty() if terminal else os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "raysys", "demo", "-w", str(workspace), *options],
            env=environment,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self._said = os.fdopen(ours, encoding="utf-8", errors="replace", newline="\n")
        self.output = ""

    def read_until(self, telling: str | None) -> None:
        """Read what it says up to a line that holds `telling`; None: to the end."""
        overdue = threading.Timer(PATIENCE_S, self.process.kill)
        overdue.start()
        for line in self._lines():
            self.output += line
            if telling is not None and telling in line:
                break
        else:
            assert telling is None, self.output
            self.process.wait(60)
        overdue.cancel()

    def _lines(self) -> Iterator[str]:
        """Lines without colours and cursor movements; a terminal ends with an error."""
        with contextlib.suppress(OSError):
            for line in self._said:
                yield re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", line)

    def left(self) -> list[psutil.Process]:
        """Processes that carry the mark and still live 30 s after the command ended."""
        mine = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RAYSYS_TEST_MARK") == self.mark:
                    mine.append(process)
        return psutil.wait_procs(mine, timeout=30)[1]


@contextlib.contextmanager
def demo(workspace: Path, *options: str, terminal: bool = False) -> Iterator[Demo]:
    running = Demo(workspace, *options, terminal=terminal)
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.process.kill()
        for process in running.left():
            process.kill()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "run"


@pytest.mark.timeout(PATIENCE_S + 300)
def test_from_nothing_to_answers(workspace: Path) -> None:
    with demo(workspace, "--exit", terminal=True) as first:
        first.read_until(None)
        assert first.process.returncode == 0, first.output
        assert not first.left()
    table = first.output[first.output.index("The last four weeks") :]
    preset = load_settings(TrainSettings, find_config("complete_journey", "train"))
    for name in ("ensemble", *preset.learners):
        assert re.search(rf"│ {name} +│ +0\.\d{{4}} │", table), name
    assert "Traceback" not in first.output and "WARNING" not in first.output
    assert table.count("curl -s http://127.0.0.1:") == 3
    report = json.loads((workspace / "evaluate" / "report.json").read_text())
    gain = report["ensemble_minus"][report["best_single"]]
    assert gain["low"] > -0.002, "the ensemble must not rank worse than its best member"
    baselines = [s for s in report["scorers"].values() if s["kind"] == "baseline"]
    best = max(s["metrics"]["ndcg@10"]["high"] for s in baselines)
    assert report["scorers"]["ensemble"]["metrics"]["ndcg@10"]["low"] > best


@pytest.mark.timeout(PATIENCE_S + 300)
def test_a_second_run_reuses_what_is_done_and_stays_up(workspace: Path) -> None:
    stages = ("ingest", "features", "tune/lightgbm_ranker", "train", "evaluate")
    manifests = [workspace / stage / "manifest.json" for stage in stages]
    before = [path.stat().st_mtime_ns for path in manifests if path.exists()]
    with demo(workspace) as second:
        second.read_until("Up until Ctrl-C")
        if len(before) == len(stages):  # the test above ran
            assert [path.stat().st_mtime_ns for path in manifests] == before
        lines = re.findall(r"^curl -s .*$", second.output, re.MULTILINE)
        assert len(lines) == 3
        for line, call in zip(lines, CALLS, strict=True):
            assert answer_of(line, call), line
        pages = dict(re.findall(r"(API page|Ray dashboard) +(http\S+)", second.output))
        assert "swagger" in httpx.get(pages["API page"]).text.lower()
        assert httpx.get(pages["Ray dashboard"]).status_code == 200
        second.process.send_signal(signal.SIGINT)
        second.read_until(None)
        assert second.process.returncode == 0, second.output
        assert not second.left()


def answer_of(line: str, call: Call) -> dict:
    """What the line for a shell brings; by the same call where there is no curl."""
    if shutil.which("curl"):
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=30)
        return json.loads(done.stdout)
    address = re.search(r"(http://[\d.]+:\d+)", line)
    assert address is not None
    method = "GET" if call.body is None else "POST"
    return httpx.request(method, address[1] + call.path, json=call.body, timeout=30).json()


@pytest.mark.parametrize(
    "moment", ["demo, in seconds", "read and check …", "stage 2 of 6: features …"]
)
def test_ctrl_c_leaves_no_process(moment: str, tmp_path: Path) -> None:
    with demo(tmp_path / "run") as running:
        running.read_until(moment)
        running.process.send_signal(signal.SIGINT)
        running.read_until(None)
        assert running.process.returncode == 130, running.output
        assert not running.left()
        assert "Traceback" not in running.output


def test_two_in_one_workspace_are_refused(tmp_path: Path) -> None:
    with demo(tmp_path / "run") as running:
        running.read_until("demo, in seconds")
        with demo(tmp_path / "run") as other:
            other.read_until(None)
            assert other.process.returncode == 2
            assert f"process {running.process.pid}" in other.output
        running.process.send_signal(signal.SIGINT)
        running.read_until(None)
        assert not running.left()


def test_the_next_free_port_is_taken() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert port < free_port("127.0.0.1", port) < port + 100
