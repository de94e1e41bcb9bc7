"""`raysys features explain`: every feature of a plan in words."""

from __future__ import annotations

import subprocess
import sys

import pytest

from raysys.config import find_config, load_settings
from raysys.errors import UserError
from raysys.features.explain import as_markdown, explain
from raysys.stages import explain as stage
from raysys.stages.features_settings import FeaturesSettings


def settings() -> FeaturesSettings:
    return load_settings(FeaturesSettings, find_config("complete_journey", "features"))


def command(*more: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "raysys", "features", "explain", *more]
    return subprocess.run(line, capture_output=True, text=True)


@pytest.mark.long
def test_every_feature_of_a_plan_is_explained() -> None:
    done = command("--config", "complete_journey")
    assert done.returncode == 0, done.stderr
    for name in settings().plan.names:
        assert name in done.stdout


def test_one_feature_alone(capsys) -> None:
    stage.run(settings(), "item_trend")
    shown = capsys.readouterr().out
    assert "item_trend" in shown
    assert "user_recency" not in shown


def test_markdown_is_a_table_as_the_room_writes_it(capsys) -> None:
    stage.run(settings(), as_markdown=True)
    shown = capsys.readouterr().out
    assert shown == as_markdown(explain(settings().plan))
    assert shown.startswith("| feature |")


def test_an_unknown_feature_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'item_trend'"):
        stage.run(settings(), "item_tend")
