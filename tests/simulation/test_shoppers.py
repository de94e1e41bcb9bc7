"""Shoppers behave as they are said to, and visit a real shop."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.special import logit

from raysys.catalogue import Catalogue
from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.experiments.analysis import analyse
from raysys.experiments.assignment import draw
from raysys.experiments.users import read_events, read_exposures, user_table
from raysys.simulation import Memory, Shoppers, ShopperSettings
from raysys.stages.simulate import SimulateSettings, run
from raysys.storage import Workspace
from tests.experiments.settings import arms, home, shop
from tests.synthetic import make_catalogue


@pytest.fixture(scope="module")
def shoppers() -> Shoppers:
    return Shoppers(make_catalogue(200), ShopperSettings(shoppers=200))


def repeat(shoppers, items, times=2000, seed=0, **more):
    rng = np.random.default_rng(seed)
    kept = [shoppers.react(3, items, 10.0, Memory(), rng, **more) for _ in range(times)]
    return np.mean([r.clicked for r in kept], 0), np.mean([r.purchased for r in kept], 0)


def test_clicks_and_purchases_come_as_often_as_told(shoppers):
    items = shoppers.ideal(3, 10.0, 8)
    clicks, purchases = repeat(shoppers, items)
    told = shoppers.click_probability(3, items, 10.0)
    assert np.allclose(clicks, told, atol=0.04)
    expected = shoppers.value(3, items, 10.0)
    assert clicks.sum() == pytest.approx(expected[0], rel=0.05)
    assert purchases.sum() == pytest.approx(expected[1], rel=0.1)


def test_positions_matter_and_queries_do(shoppers):
    same = np.full(6, shoppers.ideal(3, 10.0, 1)[0])
    told = shoppers.click_probability(3, same, 10.0)
    assert np.allclose(told / told[0], np.arange(1, 7) ** -0.8)
    query = shoppers.query(3, np.random.default_rng(0))
    items = np.arange(200)
    answers = shoppers.answers(items, query)
    assert 0 < answers.sum() < 200
    searched = shoppers.click_probability(3, items, 10.0, query=query)
    plain = shoppers.click_probability(3, items, 10.0)
    assert (searched[answers] == plain[answers]).all()
    examined = shoppers.examination(items + 1)
    lost = logit(plain / examined) - logit(searched / examined)
    assert np.allclose(lost, 4.0 * ~answers)
    assert answers[shoppers.ideal(3, 10.0, 5, query)].all()


def test_the_ideal_list_is_the_best(shoppers):
    best = shoppers.value(3, shoppers.ideal(3, 10.0, 6), 10.0)[0]
    rng = np.random.default_rng(0)
    others = [shoppers.value(3, rng.choice(200, 6, replace=False), 10.0)[0] for _ in range(200)]
    assert best > max(others)
    share = [
        np.isin(shoppers.code[shoppers.ideal(one, 10.0, 20)], shoppers.liked[one]).mean()
        for one in range(100)
    ]
    assert np.mean(share) > 0.45  # less than 0.2 by chance: two of ten kinds


def test_what_is_passed_by_tires_and_is_forgotten(shoppers):
    items, memory = shoppers.ideal(3, 10.0, 1), Memory()
    fresh = shoppers.click_probability(3, items, 10.0, memory)[0]
    memory.passed[int(items[0])] = (4.0, 10.0)
    tired = shoppers.click_probability(3, items, 10.0, memory)[0]
    later = shoppers.click_probability(3, items, 17.0, memory)[0]
    rested = shoppers.click_probability(3, items, 200.0, memory)[0]
    assert tired < later < rested
    assert rested == pytest.approx(shoppers.click_probability(3, items, 200.0)[0])
    assert tired < 0.7 * fresh


def test_budgets_end_and_begin_with_the_month():
    one = Shoppers(make_catalogue(200), ShopperSettings(shoppers=1, budget=3, click=3, purchase=9))
    memory, rng, items = Memory(), np.random.default_rng(0), np.arange(40)
    for day in range(20):
        one.react(0, items, float(day), memory, rng)
        assert memory.spent <= one.budget[0]
    assert memory.spent > 0.5 * one.budget[0]
    again = one.react(0, items, 40.0, memory, rng)
    assert again.purchased.any() and memory.month == 1


def test_seasons_come_every_year(shoppers):
    items = np.arange(200)
    year = [shoppers.utility(3, items, day) for day in (0.0, 182.6, 365.25)]
    assert np.allclose(year[0], year[2])
    assert np.abs(year[0] - year[1]).max() > 0.3


def test_the_same_seed_makes_the_same_shoppers():
    a, b, c = (Shoppers(make_catalogue(50), ShopperSettings(seed=seed)) for seed in (1, 1, 2))
    assert (a.taste == b.taste).all() and not (a.taste == c.taste).all()
    with pytest.raises(UserError, match="empty catalogue"):
        Shoppers(Catalogue(make_catalogue(5).table.slice(0, 0)), ShopperSettings())


def test_no_shop_is_a_message(tmp_path):
    settings = parse_settings(SimulateSettings, {"url": "http://127.0.0.1:1"}, where="tests")
    with pytest.raises(UserError, match="no catalogue"):
        run(settings, Workspace(tmp_path))
    (tmp_path / "features").mkdir()
    make_catalogue(20).save(tmp_path / "features" / "catalogue.parquet")
    with pytest.raises(UserError, match="the shop does not answer"):
        run(settings, Workspace(tmp_path))


def test_an_experiment_on_simulated_shoppers_finds_the_better_ranking(shoppers, tmp_path):
    """The whole way without HTTP: draw arms, show lists, log, analyse; the truth is known."""
    settings = shop(home(arms=arms(0.5, 0.5), segments=[], guardrails=[], secondary=[]))
    experiment = settings.experiments[0]
    start_ms = int(experiment.start.timestamp() * 1000)
    exposures, events = [], []
    rng = np.random.default_rng(0)
    for shopper in range(200):
        user = shoppers.name(shopper)
        arm = draw(experiment, user)
        memory = Memory()
        for visit_ in range(4):
            best = shoppers.ideal(shopper, 0.0, 12)
            # the champion shows anything, the challenger what is liked
            items = best if arm.name == "challenger" else rng.choice(200, 12, replace=False)
            when = start_ms + visit_ * 3_600_000
            exposures.append((experiment.name, arm.name, user, when))
            done = shoppers.react(shopper, items, float(visit_), memory, rng)
            events += [("impression", user, when)] * 12
            events += [("click", user, when)] * int(done.clicked.sum())
    for name, rows, columns in (
        ("exposures", exposures, ("experiment", "arm", "user_id", "timestamp")),
        ("events", events, ("event_type", "user_id", "timestamp")),
    ):
        frame = pl.DataFrame(rows, schema=columns, orient="row")
        frame = frame.with_columns(pl.col("timestamp").cast(pl.Datetime("ms", "UTC")))
        frame.write_parquet(tmp_path / f"{name}.parquet")
    table = user_table(
        experiment,
        [settings.metric("click_rate")],
        read_exposures(Path(tmp_path / "exposures.parquet")),
        read_events(Path(tmp_path / "events.parquet")),
    )
    found = analyse(experiment, settings, table)
    assert found.trusted and found.of("primary")[0].state == "better"
