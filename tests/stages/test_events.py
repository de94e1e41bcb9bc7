"""`raysys events`: what it says and does, of a workspace's log and of a deployment's."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from raysys.errors import UserError
from raysys.eventlog.local import LocalLog
from raysys.eventlog.rolled import Rolled
from raysys.eventlog.settings import LogSettings
from raysys.stages import events as stage
from raysys.stages.monitor import MonitorOptions, _places
from raysys.storage import Workspace
from tests.eventlog.entries import entries, entry


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def log(workspace: Workspace) -> LocalLog:
    log = LocalLog(workspace.eventlog, LogSettings(segment_mb=1))
    log.append([entry("a"), entry("b", kind="item", item_id="i")])
    return log


def said(what: str, workspace: Workspace, capsys, config: str | None = None) -> dict:
    stage.run(what, config, workspace, Console(file=io.StringIO()), as_json=True)
    told: dict = json.loads(capsys.readouterr().out)
    return told


def test_it_says_how_the_log_stands(log: LocalLog, workspace: Workspace, capsys) -> None:
    told = said("status", workspace, capsys)
    assert (told["entries"], told["waiting"], told["rolled_events"]) == (2, 2, 0)
    told = said("roll", workspace, capsys)
    assert (told["entries"], told["waiting"], told["rolled_events"]) == (2, 0, 1)
    assert Rolled(workspace.eventlog).last() == 2
    log.append(entries("c"))  # a server that runs goes on meanwhile
    assert said("status", workspace, capsys)["waiting"] == 1


def test_people_read_a_table(log: LocalLog, workspace: Workspace) -> None:
    out = io.StringIO()
    stage.run("roll", None, workspace, Console(file=out, width=200))
    assert "events in Parquet" in out.getvalue() and str(workspace.eventlog) in out.getvalue()


def test_compacting_keeps_what_running_replicas_may_need(
    log: LocalLog, workspace: Workspace, capsys, monkeypatch
) -> None:
    for at in range(3):
        log.append([entry(f"{at}-{n}", query="x" * 1000) for n in range(700)])
    assert said("compact", workspace, capsys)["first"] == 1  # came in less than a minute ago
    monkeypatch.setattr(stage, "_MARGIN_MS", -1)
    told = said("compact", workspace, capsys)
    assert told["first"] > 1 and told["waiting"] == 0 and told["entries"] == 2102


def test_a_serve_config_names_the_log(log: LocalLog, workspace: Workspace, capsys) -> None:
    config = {
        "applications": [
            {"name": "raysys", "import_path": "raysys.serving.app:build",
             "args": {"registry": str(workspace.registry), "events": {}}}
        ]
    }  # fmt: skip
    path = workspace.root / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    assert said("status", workspace, capsys, str(path))["entries"] == 2
    config["applications"][0]["args"]["events"] = {"path": str(workspace.root / "elsewhere")}
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="no event log here"):
        said("status", workspace, capsys, str(path))
    del config["applications"][0]["args"]["events"]
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="takes no events"):
        said("status", workspace, capsys, str(path))


def test_events_and_monitor_look_where_deploy_keeps_what_it_serves(tmp_path: Path) -> None:
    """With a workspace beside its registry, without one beside that which the config names."""
    args = {"registry": str(tmp_path / "a" / "registry"), "events": {}, "shown_lists": {}}
    app = {"name": "raysys", "import_path": "raysys.serving.app:build", "args": args}
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump({"applications": [app]}))
    options = MonitorOptions(config=str(path))
    for workspace, name in ((None, "a"), (Workspace(tmp_path / "b"), "b")):
        root = tmp_path / name
        assert stage.named_log(str(path), workspace)[1] == root / "eventlog"
        places = _places(options, workspace)
        assert places.registry == root / "registry" and places.windows == root / "monitor"
        assert places.lists == root / "shown_lists"
        assert places.log is not None and places.log[1] == root / "eventlog"


@pytest.mark.long
def test_the_command_line_has_it(log: LocalLog, workspace: Workspace) -> None:
    command = [sys.executable, "-m", "raysys", "events"]
    told = subprocess.run(
        [*command, "roll", "--workspace", str(workspace.root), "--json"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["rolled_events"] == 1
    missing = subprocess.run(
        [*command, "status", "--workspace", str(workspace.root / "nothing")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert missing.returncode == 2 and "no event log here" in missing.stderr
