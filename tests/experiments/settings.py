"""A shop's experiments, for tests."""

import copy
import datetime as dt
from typing import Any

from raysys.config import parse_settings
from raysys.experiments import Experiment, ExperimentsSettings

START = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
DURING = dt.datetime(2026, 1, 20, tzinfo=dt.UTC)
METRICS: list[dict[str, Any]] = [
    {"name": "orders", "events": ["purchase"], "value": "any"},
    {"name": "revenue", "events": "purchase", "value": "revenue", "winsorise": 0.99},
    {"name": "click_rate", "events": ["click"], "per": {"events": ["impression"]}},
    {"name": "searches", "events": ["search"], "better": "lower"},
]
HOME: dict[str, Any] = {
    "name": "home_ranking",
    "surfaces": ["home"],
    "arms": [
        {"name": "champion", "share": 0.1, "bundle": "champion"},
        {"name": "challenger", "share": 0.1, "bundle": "challenger"},
    ],
    "primary": "click_rate",
    "secondary": ["orders", "revenue"],
    "guardrails": ["searches"],
    "minimum_effect": 0.05,
    "start": START,
}


def home(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(HOME) | changes


def shop(*experiments: dict[str, Any], metrics: Any = None) -> ExperimentsSettings:
    content = {"metrics": metrics or METRICS, "experiments": list(experiments or [HOME])}
    return parse_settings(ExperimentsSettings, content, where="experiments.yaml")


def one(**changes: Any) -> Experiment:
    return shop(home(**changes)).experiments[0]


def arms(*shares: float, **more: Any) -> list[dict[str, Any]]:
    names = ("champion", "challenger", "third", "fourth")
    return [
        {"name": n, "share": s, "bundle": n, **more}
        for n, s in zip(names, shares, strict=False)
    ]  # fmt: skip
