"""The page of a round, where figures are lacking."""

from __future__ import annotations

from raysys.report import Report
from raysys.stages.learn_report import _steps


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
