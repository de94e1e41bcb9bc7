"""`raysys features audit` as a shop runs it: a log in a file, then table, page and exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from raysys.cluster import ray_session
from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.features import columns
from raysys.features.drift import Sample
from raysys.ingest.spread import InProcess
from raysys.stages import audit as stage
from raysys.stages import features, ingest
from raysys.storage import Workspace
from tests.features import logs, test_columns
from tests.ingest.shop import COLUMNS

DAY = 86_400
START = 1_700_000_000
PLAN = {
    "tables": {
        "item": {"keys": ["item"], "half_lives_days": [7]},
        "user": {"keys": ["user"], "half_lives_days": [28]},
        "user_item": {"keys": ["user", "item"], "half_lives_days": [28]},
    },
    "features": [
        {"name": "item_7d", "kind": "decayed_count", "table": "item", "half_life_days": 7},
        {"name": "orders", "kind": "moments", "table": "user"},
        {"name": "mine", "kind": "decayed_count", "table": "user_item", "half_life_days": 28},
        {"name": "recency", "kind": "recency", "table": "user_item"},
        {"name": "together", "kind": "covisitation"},
        {"name": "weekday", "kind": "moment", "unit": "weekday"},
    ],
}
SETTINGS = {
    "group_by": ["session_id"],
    "train_days": 20,
    "validation_days": 10,
    "report_days": 10,
    "covisitation": {"min_count": 1, "refit_days": 7},
    "plan": PLAN,
}


def write_log(path: Path) -> None:
    """Sixty days of baskets of eight users."""
    rng = np.random.default_rng(0)
    lines = ["event,user,item,what,time,price,quantity,query"]
    for day in range(60):
        for user in range(8):
            if rng.random() < 0.8:
                moment = START + day * DAY + int(rng.integers(0, DAY // 2))
                for line, item in enumerate(rng.choice(30, 3, replace=False)):
                    key = f"e{day}-{user}-{line}"
                    lines.append(f"{key},u{user},i{item},purchase,{moment},9.5,1,")
    path.write_text("\n".join(lines))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Ingested and featured by the real stages."""
    root = tmp_path_factory.mktemp("audit")
    write_log(root / "log.csv")
    files = {"paths": str(root / "log.csv"), "columns": COLUMNS, "time": {"unit": "seconds"}}
    source = {"source": {"kind": "files", "events": [files]}}
    place = Workspace(root / "shop")
    with ray_session():
        ingest.run(parse_settings(ingest.IngestSettings, source, where="ingest"), place)
        features.run(settings(), place)
    return place


def settings(**more) -> features.FeaturesSettings:
    return parse_settings(features.FeaturesSettings, {**SETTINGS, **more}, where="features")


def command(workspace: Workspace, *words: str) -> subprocess.CompletedProcess:
    config = workspace.root.parent / "features.yaml"
    config.write_text(yaml.safe_dump(SETTINGS))
    line = ["features", "audit", "-c", str(config), "-w", str(workspace.root), *words]
    return subprocess.run([sys.executable, "-m", "raysys", *line], capture_output=True, text=True)


@pytest.mark.slow
@test_columns.WAYS
def test_features_of_every_kind_are_sound_however_examples_are_chosen(tmp_path, more) -> None:
    """Windows, rates, last things, vectors, sessions, queries, state that ages: all of them."""
    events, made = test_columns.log(), test_columns.settings(**more)
    shop = logs.workspace(tmp_path, logs.as_rows(events))
    features.run(made, shop, spread=InProcess())
    findings = stage.examine(made, shop, stage.AuditOptions(requests=16))
    outcome = findings.audit
    assert outcome.compared
    assert outcome.leaks == {}
    assert outcome.differences == {}
    assert outcome.shuffled == 16
    moved = {name for name in outcome.names if outcome.verdict(name) == "ok"}
    of_events = {
        f.name for f in made.plan.features if f.kind in ("recency", "window_count", "rate")
    }
    assert of_events
    assert of_events <= moved


@pytest.mark.slow
def test_a_sound_shop_gets_its_table_page_and_json(workspace) -> None:
    done = command(workspace, "--requests", "24")
    assert done.returncode == 0, done.stderr
    assert "No leak: in 24 requests" in done.stdout
    assert "every written value follows from the past alone" in done.stdout
    content = json.loads((workspace.audit / "audit.json").read_text())
    assert content["sound"]
    assert content["written_compared"]
    verdicts = {row["feature"]: row["verdict"] for row in content["features"]}
    assert verdicts.pop("weekday") == "no event"
    assert set(verdicts.values()) == {"ok"}
    drift = {row["feature"]: row for row in content["drift"]["features"]}
    assert drift["orders"]["level"] == "large"  # it only ever grows
    assert drift["orders"]["shift"] > 1
    assert drift["weekday"]["psi"] < drift["orders"]["psi"]
    assert "<svg" in (workspace.audit / "report.html").read_text()
    manifest = json.loads((workspace.audit / "manifest.json").read_text())
    assert manifest["figures"]["sound"]
    assert manifest["counts"]["requests"] == 24
    again = command(workspace, "--requests", "24", "--json", "-q")
    assert json.loads(again.stdout) == content


@pytest.mark.slow
def test_a_replay_that_counts_the_moment_of_the_request_is_found_out(
    workspace, monkeypatch, tmp_path
) -> None:
    """The classic mistake, ≤ where < belongs, in the code of the replay itself."""
    copy = copied(workspace, tmp_path)
    real = columns._Replay.through
    monkeypatch.setattr(
        columns._Replay,
        "through",
        lambda self, events, reads: real(self, events, replace(reads, time=reads.time + 1)),
    )
    findings = stage.examine(settings(), copy, stage.AuditOptions(requests=12))
    assert not findings.audit.sound
    assert {"item_7d", "mine", "recency", "orders"} <= set(findings.audit.leaks)
    assert "weekday" not in findings.audit.leaks
    assert not findings.audit.differences  # written before the mistake
    leak = findings.audit.leaks["recency"]
    assert leak.after < 1e-6  # days
    assert leak.events
    assert all(event["after_ms"] == 0 for event in leak.events)
    assert json.loads((copy.audit / "audit.json").read_text())["leaks"]


@pytest.mark.slow
def test_a_value_written_wrongly_is_found_and_named(workspace, tmp_path) -> None:
    copy = copied(workspace, tmp_path)
    for path in (copy.features / "examples").rglob("*.parquet"):
        table = pq.read_table(path, partitioning=None)
        at = table.column_names.index("mine")
        values = table["mine"].to_numpy() + np.float32(1)
        pq.write_table(table.set_column(at, table.schema.field(at), pa.array(values)), path)
    done = command(copy, "--requests", "8")
    assert done.returncode == 1
    assert "mine differs" in done.stdout
    assert "item_7d differs" not in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_other_settings_are_audited_on_the_log_alone(workspace, tmp_path) -> None:
    copy = copied(workspace, tmp_path)
    findings = stage.examine(settings(seed=5), copy, stage.AuditOptions(requests=8))
    assert findings.audit.sound
    assert not findings.audit.compared
    assert findings.notes == [
        "written examples were not compared: they come from another log or from other settings; "
        "run `raysys features` with this config"
    ]
    assert findings.drifts  # between the periods that are there


@pytest.mark.slow
def test_periods_are_folds_days_or_folders(workspace) -> None:
    def period(words: str) -> Sample:
        return stage._period(words, workspace.features, seed=0)

    train, everything = period("train"), period("all")
    assert train.requests < everything.requests
    assert period(f"{workspace.root}#train").values.tobytes() == train.values.tobytes()
    assert period(str(workspace.features)).requests == everything.requests
    first = train.words.partition("(")[2][:10]
    assert 0 < period(f"{first}..{first}").requests < train.requests
    for words, told in (
        ("trian", "no such period: 'trian'"),
        ("2026-13-01..2026-14-01", "not a day: '2026-13-01'"),
        ("1999-01-01..1999-02-01", "no request in this period"),
        ("/nowhere#report", "nothing here yet"),
    ):
        with pytest.raises(UserError, match=told):
            period(words)


def copied(workspace: Workspace, place: Path) -> Workspace:
    import shutil

    shutil.copytree(workspace.root, place / "shop")
    return Workspace(place / "shop")
