"""The console in a real browser, with all that it can show: drift, feedback, an experiment."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from raysys import learners
from raysys.serving.app import http_app
from raysys.serving.args import ServeArgs
from raysys.serving.arms import Arms
from raysys.serving.rollout import UserConfig
from raysys.serving.service import Service
from tests.serving.watched import USERS, publish_watched
from tests.web.test_in_chromium import browser, listening, serious

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser"]
pytestmark = pytest.mark.slow

EXPERIMENT: dict[str, Any] = {
    "name": "fewer-of-a-kind",
    "surfaces": ["home"],
    "arms": [
        {"name": "control", "share": 0.5},
        {"name": "treatment", "share": 0.5, "policy": {"at_most": {"category": 2}}},
    ],
    "primary": "click_rate",
    "secondary": ["orders"],
    "minimum_effect": 0.05,
    "start": "2017-01-01T00:00:00Z",
}
METRICS: list[dict[str, Any]] = [
    {"name": "click_rate", "events": ["click"], "per": {"events": ["impression"]}},
    {"name": "orders", "events": ["purchase"], "value": "any"},
]
PAGES = ("", "/live", "/query?query=bread", "/drift", "/feedback", "/experiments",
         "/experiments/fewer-of-a-kind")  # fmt: skip


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address, once everything has figures."""
    home = tmp_path_factory.mktemp("console")
    learners.LEARNERS["hashed_words"] = "tests.serving.shop:HashedWordsLearner"
    registry = publish_watched(home / "shop")
    (home / "experiments.yaml").write_text(
        yaml.safe_dump({"metrics": METRICS, "experiments": [EXPERIMENT]})
    )
    args = ServeArgs.model_validate({
        "registry": str(registry.root), "clock": "log_end", "pages": {"console": True},
        "events": {"path": str(home / "eventlog")},
        "shown_lists": {"folder": str(home / "shown"), "segment_s": 0.1},
        "experiments": {"exposures": str(home / "exposures"), "segment_s": 0.05},
        "monitor": {
            "folder": str(home / "monitor"), "share": 1, "refresh_s": 0.2, "feedback_s": 0.5,
            "thresholds": {"least_requests": 20},
        },
    })  # fmt: skip
    arms = Arms(args, partial(Service), watch=False)
    arms.warm_up()
    arms.reconfigure(UserConfig(experiments=(str(home / "experiments.yaml"),)))
    try:
        with listening(http_app(arms, arms)) as address:  # type: ignore[arg-type]
            visit(address)
            until(address, "/drift", "answers counted")
            until(address, "/feedback", "by position: 1:")
            arms.look()
            until(address, "/experiments", "control")
            yield address
    finally:
        arms.close()
        del learners.LEARNERS["hashed_words"]


def visit(address: str) -> None:
    """Shoppers who look, search, click and buy."""
    with httpx.Client(base_url=address, timeout=30) as client:
        client.post("/v1/search", json={"query": "zzzz", "user_id": "u1"})
        events = []
        for number in range(120):
            user = f"u{number % USERS}"
            asked = {"user_id": user, "k": 8}
            answer = client.post("/v1/recommend", json=asked).json()
            common = {"user_id": user, "request_id": answer["request_id"]}
            told = [
                {"event_type": "impression", "position": item["position"], **common,
                 "item_id": item["item_id"]}
                for item in answer["items"]
            ]  # fmt: skip
            bought = {**common, "item_id": answer["items"][0]["item_id"]}
            told += [{"event_type": "click", "position": 1, **bought}] * (number % 3 == 0)
            told += [{"event_type": "purchase", **bought}] * (number % 9 == 0)
            events += told
        for at in range(0, len(events), 1000):
            sent = client.post("/v1/events", json={"events": events[at : at + 1000]})
            assert sent.status_code == 200, sent.text


def until(address: str, page: str, said: str) -> None:
    """Wait for a page to say something."""
    deadline = time.monotonic() + 60
    while said not in (text := httpx.get(f"{address}/console{page}", timeout=30).text):
        assert time.monotonic() < deadline, text
        time.sleep(0.1)


@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_of_the_console_can_be_used_by_everybody(
    browser: Browser, console: str, width: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, bypass_csp=True)
    page: Page = context.new_page()
    broken: list[str] = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    shots = os.environ.get("RAYSYS_SCREENSHOTS")
    for path in PAGES:
        answer = page.goto(f"{console}/console{path}")
        assert answer is not None and answer.status == 200, path
        if shots:
            name = path.strip("/").replace("/", "-").partition("?")[0] or "bundles"
            page.screenshot(path=Path(shots) / f"{name}-{width}.png", full_page=True)
        assert not serious(page), path
        overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert overflow <= 0, f"{path} is {overflow} pixels too wide at {width}"
    assert not broken
    context.close()
