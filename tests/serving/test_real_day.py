"""A day of the grocer's log through serving gives the features that the offline replay gives."""

from __future__ import annotations

from datetime import date

import pytest

from benchmarks.real_day import compare


@pytest.mark.slow
def test_a_real_day_is_the_same_served_and_replayed(tmp_path) -> None:
    found = compare(tmp_path, date(2017, 6, 14), weeks=2, every=10)
    assert found.difference == 0
    assert found.events > 1_000 and found.rows > 500 and found.features > 30
