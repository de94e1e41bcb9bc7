"""Smoothed rates: priors, parents, and impressions that count by their position."""

from __future__ import annotations

import numpy as np
import pytest

from raysys.features.live import LiveFeatures
from raysys.features.plan import FeaturePlan
from tests.features import every
from tests.features.every import DAY, KINDS, as_columns

IMPRESSION, CLICK, _ = KINDS


def events(*rows: tuple[int, int, int, int]):
    """Of kind, item, position, query; all at one moment."""
    return as_columns(
        [(0, item, kind, 0, 1, 1.0, 0, 0, query, position) for kind, item, position, query in rows]
    )


def told(rows, plan: FeaturePlan = every.PLAN, time: int = 1) -> dict[str, np.ndarray]:
    live: LiveFeatures = every.live(plan)
    live.apply(events(*rows))
    items = np.arange(every.N_ITEMS, dtype=np.int32)
    batch = live.batch(1, items, time, query=1)
    return {name: batch.column(name) for name in ("ctr", "query_ctr")}


def test_without_trials_it_is_the_prior() -> None:
    assert told([])["ctr"][0] == np.float32(0.1)
    assert np.isnan(told([])["query_ctr"][0])  # nobody was ever shown anything


def test_clicks_and_impressions_are_added_to_the_prior() -> None:
    rates = told([(IMPRESSION, 0, 1, -1)] * 10 + [(CLICK, 0, 0, -1)] * 4)
    assert rates["ctr"][0] == pytest.approx((4 + 5 * 0.1) / (10 + 5))
    assert rates["ctr"][1] == np.float32(0.1)


def test_an_impression_counts_by_how_likely_its_position_is_looked_at() -> None:
    """Clicks ÷ Σ propensity: an item shown low must not look worse for it."""
    low = [(IMPRESSION, 0, 2, -1)] * 20 + [(CLICK, 0, 2, -1)] * 4
    high = [(IMPRESSION, 1, 1, -1)] * 10 + [(CLICK, 1, 1, -1)] * 4
    rates = told(low + high)
    assert rates["ctr"][0] == rates["ctr"][1] == np.float32((4 + 0.5) / (10 + 5))
    beyond, unknown = ((IMPRESSION, 2, 9, -1), (IMPRESSION, 2, 0, -1))
    assert told([beyond] * 4)["ctr"][2] == np.float32(0.5 / (4 * 0.25 + 5))
    assert told([unknown])["ctr"][2] == np.float32(0.5 / (1 + 5))


def test_a_level_without_trials_takes_its_parents_rate() -> None:
    """Query and item → item → category → all: empirical Bayes, from coarse to fine."""
    # items 0 and 8 are of category c0, 1 of c1; 4 of none
    rows = [(IMPRESSION, 0, 1, -1)] * 6 + [(CLICK, 0, 1, -1)] * 3
    rows += [(IMPRESSION, 1, 1, -1)] * 2 + [(IMPRESSION, 0, 1, 1)] * 2 + [(CLICK, 0, 1, 1)] * 2
    rates = told(rows)["query_ctr"]
    everything = 5 / 10
    category = (5 + 5 * everything) / (8 + 5)
    item = (5 + 5 * category) / (8 + 5)
    assert rates[0] == pytest.approx((2 + 5 * item) / (2 + 5))
    assert rates[8] == pytest.approx(category)
    assert rates[1] == pytest.approx((5 * (5 * everything) / 7) / 7)  # two trials on two levels
    assert rates[2] == pytest.approx(everything)  # its category was never shown


def test_an_item_without_a_category_is_still_drawn_towards_something() -> None:
    rates = told([(IMPRESSION, 4, 1, -1)] * 4 + [(CLICK, 4, 1, -1)] * 2)["query_ctr"]
    assert rates[4] == np.float32(0.5)


def test_successes_before_any_trial_tell_no_rate() -> None:
    rates = told([(CLICK, 0, 0, -1)] * 3)
    assert np.isnan(rates["query_ctr"]).all()  # and not infinite, which trees refuse
    assert rates["ctr"][0] == pytest.approx((3 + 5 * 0.1) / 5)
    rates = told([(CLICK, 0, 0, -1)] * 3 + [(IMPRESSION, 1, 1, -1)] * 4)
    assert np.isfinite(rates["query_ctr"]).all()


def test_old_clicks_fade() -> None:
    rows = [(IMPRESSION, 0, 1, -1)] * 10 + [(CLICK, 0, 0, -1)] * 4
    assert told(rows, time=7 * DAY)["ctr"][0] == pytest.approx((2 + 0.5) / (5 + 5))
