"""The end-to-end proof: what benchmarks/story.py tells, in short."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.story import draw, figures, tell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_loop_raises_what_shoppers_get_and_loses_nothing(tmp_path: Path) -> None:
    """Champion, shoppers, challenger, off-policy, A/B test, promotion; replicas die on the way."""
    (tmp_path / "shop").mkdir()
    story = tell(tmp_path / "shop", seconds=16, rate=8)
    first, test, last = story.chapters
    assert last.reached > first.reached + 0.05
    arms = {answer["bundle"] for answer in test.outcome.answers}
    assert len(arms) == 2 and {a["bundle"] for a in last.outcome.answers} < arms
    assert [len(chapter.killed) for chapter in story.chapters] == [1, 1, 0]
    assert story.kept >= story.acknowledged > 1000
    assert 0 < story.retrained < story.kept
    lists = sum(len(chapter.outcome.answers) for chapter in story.chapters)
    assert story.failed <= 0.05 * lists
    assert story.promised is not None
    assert story.promised.interval.low < story.promised.interval.high
    assert "challenger" in story.verdict[0]
    draw(story, tmp_path / "story.svg")
    assert (tmp_path / "story.svg").stat().st_size > 5000
    assert {figure.name for figure in figures(story)} >= {"events_lost", "ab_test_lift"}
