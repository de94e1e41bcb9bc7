"""The page of a round, where figures are lacking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raysys.report import Report
from raysys.stages.learn_gate import verdict
from raysys.stages.learn_report import HTML, _steps, write_report


def test_a_learner_without_finite_scores_is_told_and_ends_nothing() -> None:
    nothing = {"value": None, "low": None, "high": None}
    gap = {"value": 0.01, "low": -0.01, "high": 0.03}
    effects = [
        {"step": "state", "before": 0.1, "after": 0.11, "difference": gap},
        {"step": "gru", "before": 0.11, "after": None, "difference": nothing},
    ]
    alone = {
        "gru": {"before": 0.1, "after": None, "difference": nothing},
        "popular": {"before": 0.1, "after": 0.11, "difference": gap},
    }
    gate = {
        "metric": "ndcg@10",
        "difference": {"ndcg@10": gap},
        "effects": effects,
        "alone": alone,
    }
    page = Report("a round", "what came of it")
    _steps(page, {"gate": gate, "against": "published", "unchanged": {}, "weights": {}})
    html = page.html()
    assert "gru alone: its scores are not all finite numbers." in html
    assert "popular alone: 0.1000, then 0.1100" in html


def test_a_gate_without_anything_relevant_refuses_and_is_told(tmp_path: Path) -> None:
    nothing = {"ndcg@10": {"value": None, "low": None, "high": None}}
    gate: dict[str, Any] = {
        "metric": "ndcg@10",
        "requests": 40,
        "users": 7,
        "first": "2026-01-01T00:00",
        "last": "2026-01-02T00:00",
        "champion": nothing,
        "challenger": nothing,
        "difference": nothing,
        "effects": [
            {"step": "state", "before": None, "after": None, "difference": nothing["ndcg@10"]}
        ],
        "alone": {},
    }
    judged = verdict(gate, better=False)
    assert not judged.passes
    told: dict[str, Any] = {
        "round": 3,
        "outcome": "refused",
        "reason": judged.reason,
        "window": {"starts": {"gate": "2026-01-01"}},
        "requests": {"gate": 40},
        "found": [40],
        "gate": gate,
        "events": 900,
        "seconds": 2.0,
        "champion": "a-1",
        "trigger": "it was asked for",
        "challenger": "",
        "promoted": "",
        "against": "live",
        "new_items": 0,
        "unchanged": {},
        "weights": {},
        "times": {},
    }
    write_report(told, tmp_path)
    assert "nothing could be compared" in (tmp_path / HTML).read_text()
