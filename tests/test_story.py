"""The end-to-end proof: what benchmarks/story.py tells, in short."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.story import draw, figures, tell
from benchmarks.story_clicks import LOOKS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_loop_raises_what_shoppers_get_and_loses_nothing(tmp_path: Path) -> None:
    """Champion, shoppers, challenger, off-policy, A/B test, promotion, clicks; replicas die."""
    (tmp_path / "shop").mkdir()
    story = tell(tmp_path / "shop", seconds=16, rate=8)
    first, test, last = story.chapters
    assert last.reached > first.reached + 0.05
    arms = {answer["bundle"] for answer in test.outcome.answers}
    assert len(arms) == 2 and {a["bundle"] for a in last.outcome.answers} < arms
    assert [len(chapter.killed) for chapter in story.chapters] == [1, 1, 0]
    assert story.lost == [] and story.twice == []
    assert len(set(story.acknowledged)) > 1000
    assert 0 < story.retrained < story.kept.total()
    lists = sum(len(chapter.outcome.answers) for chapter in story.chapters)
    assert story.failed <= 0.05 * lists
    assert story.promised is not None
    assert story.promised.interval.low < story.promised.interval.high
    assert "challenger" in story.verdict[0]
    looked = story.looked
    assert looked is not None and len(looked.acknowledged) == 2 * LOOKS
    assert set(looked.known(looked.before, "user_category_clicks")) <= {0.0}
    counted = looked.known(looked.after, "user_category_clicks")
    assert counted == [pytest.approx(LOOKS, rel=1e-3)] * len(counted) and counted
    assert looked.share(looked.after) > looked.share(looked.before)
    assert looked.moved > 0  # by what counts the clicks on things of the kind, as planted
    draw(story, tmp_path / "story.svg")
    assert (tmp_path / "story.svg").stat().st_size > 5000
    assert {figure.name for figure in figures(story)} >= {"events_lost", "ab_test_lift"}
