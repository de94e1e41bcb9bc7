"""Dashboard and alerts speak of metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import string
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from raysys.config import PRESETS
from raysys.serving.metrics import GAUGES, NAMES, SECONDS, SIZES

FOLDER = PRESETS / "monitoring"
KNOWN = (
    {f"ray_{name}_total" for name in NAMES}
    | {f"ray_{name}_{part}" for name in {**SECONDS, **SIZES} for part in ("bucket", "sum", "count")}
    | {f"ray_{name}" for name in GAUGES}
)


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    return content


def rules() -> list[dict[str, Any]]:
    content = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    of_panels = [t["expr"] for panel in dashboard()["panels"] for t in panel.get("targets", ())]
    return of_panels + [rule["expr"] for rule in rules()]


def test_every_metric_there_is_known_and_most_are_shown() -> None:
    shown = set(re.findall(r"ray_raysys_\w+", " ".join(expressions())))
    assert shown <= KNOWN
    plain = {re.sub(r"^ray_|_(total|bucket|sum|count)$", "", name) for name in shown}
    assert plain >= set(NAMES) | set(SECONDS) | set(SIZES)


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["type"] == "row" or (panel["description"] and panel["targets"])


def test_alerts_say_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"] and rule["annotations"]["action"]
    assert len({rule["alert"] for rule in rules()}) == len(rules())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool: apt install prometheus")
def test_prometheus_takes_them() -> None:
    for words in (("rules", "alerts.yaml"), ("config", "prometheus.yaml")):
        done = subprocess.run(["promtool", "check", *words], cwd=FOLDER, capture_output=True)
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool: apt install prometheus")
def test_drift_is_told_and_quiet_days_are_not(tmp_path: Path) -> None:
    """An hour of gauges as a replica tells them; Prometheus says which alerts fire."""

    def case(psi: float, missing: float, change: float, fires: set[str]) -> dict[str, Any]:
        series = {
            'ray_raysys_drift_psi_max{arm="champion", kind="score"}': psi,
            'ray_raysys_drift_missing_rise_max{arm="champion"}': missing,
            'ray_raysys_outcome_change{surface="search", outcome="click"}': change,
        }
        names = {rule["alert"]: rule for rule in rules()}
        expected = {
            "RaysysScoresDrift": ({"arm": "champion"}, "/console/drift"),
            "RaysysFeaturesAreMissing": ({"arm": "champion"}, "/console/drift"),
            "RaysysOutcomesChange": (
                {"surface": "search", "outcome": "click"},
                "/console/feedback",
            ),
        }
        for name, (_, page) in expected.items():
            assert page in names[name]["annotations"]["action"]
        return {
            "interval": "1m",
            "input_series": [
                {"series": name, "values": f"{value}x90"} for name, value in series.items()
            ],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)',
                    "eval_time": "80m",
                    "exp_samples": [{"labels": "{}", "value": float(name in fires)}],
                }
                for name in expected
            ],
        }

    content = {
        "rule_files": [str(FOLDER / "alerts.yaml")],
        "evaluation_interval": "1m",
        "tests": [
            case(0.3, 0.0, 0.0, {"RaysysScoresDrift"}),
            case(0.2, 0.3, -0.1, {"RaysysFeaturesAreMissing"}),
            case(0.0, 0.05, -0.4, {"RaysysOutcomesChange"}),
        ],
    }
    path = tmp_path / "alerts_test.yaml"
    path.write_text(yaml.safe_dump(content))
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool: apt install prometheus")
def test_a_gauge_that_is_reported_late_makes_no_alert_begin_anew(tmp_path: Path) -> None:
    """Ray leaves a gauge out of a scrape (`stale`) when its replica reports late."""
    series = 'ray_raysys_drift_missing_rise_max{arm="champion"}'
    firing = 'count(ALERTS{alertname="RaysysFeaturesAreMissing",alertstate="firing"})'
    content = {
        "rule_files": [str(FOLDER / "alerts.yaml")],
        "evaluation_interval": "10s",
        "tests": [
            {
                "interval": "10s",
                "input_series": [{"series": series, "values": " ".join(["0.9x9 stale"] * 20)}],
                "promql_expr_test": [
                    {
                        "expr": f"{firing} or vector(0)",
                        "eval_time": at,
                        "exp_samples": [{"labels": "{}", "value": value}],
                    }
                    for at, value in (("10m", 0.0), ("20m", 1.0), ("30m", 1.0))
                ],
            }
        ],
    }
    path = tmp_path / "late.yaml"
    path.write_text(yaml.safe_dump(content))
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def expanded(value: str) -> str:
    """As Grafana reads its provisioning: with what the environment says."""
    return string.Template(value).substitute(RAYSYS_MONITORING=str(FOLDER))


def test_grafana_finds_the_dashboard_and_its_source_of_data() -> None:
    (places,) = (FOLDER / "grafana" / "dashboards").glob("*.yaml")
    content = yaml.safe_load(places.read_text())
    assert content["apiVersion"] == 1
    (provider,) = content["providers"]
    assert provider["type"] == "file"
    folder = Path(expanded(provider["options"]["path"]))
    found = sorted(folder.rglob("*.json"))
    assert [json.loads(path.read_text())["uid"] for path in found] == [dashboard()["uid"]]

    (sources,) = (FOLDER / "grafana" / "datasources").glob("*.yaml")
    content = yaml.safe_load(sources.read_text())
    assert content["apiVersion"] == 1
    (source,) = content["datasources"]
    assert source["type"] == "prometheus" and source["access"] == "proxy" and source["isDefault"]
    assert urlsplit(source["url"]).scheme == "http"
    every = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == every  # or $__rate_interval holds one sample

    (choice,) = dashboard()["templating"]["list"]
    assert choice["type"] == "datasource" and choice["query"] == source["type"]
    assert choice["current"] == {"text": source["name"], "value": source["uid"]}
    used = {
        (panel["datasource"]["type"], panel["datasource"]["uid"])
        for panel in dashboard()["panels"]
        if panel["type"] != "row"
    }
    assert used == {(source["type"], f"${{{choice['name']}}}")}
