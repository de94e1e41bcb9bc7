"""An event that one replica took is in the lists of another; `benchmarks.loop` says how soon."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.loop import measure_freshness

pytestmark = pytest.mark.slow


def test_profiles_and_lists_of_another_replica_know_alone_and_under_load(tmp_path: Path) -> None:
    figures = {each.name: each for each in measure_freshness(tmp_path, 4)}
    seconds = {"freshness_p99_s", "freshness_list_p99_s"}
    seconds |= {"freshness_under_load_p99_s", "freshness_list_under_load_p99_s"}
    assert figures.keys() == seconds | {"fresh_at_once"}
    assert figures["fresh_at_once"].value == 1  # of the replica that took it, in its next answer
