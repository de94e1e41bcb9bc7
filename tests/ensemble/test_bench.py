"""Blocks that are held out: purged of labels that overlap, by user where users are to be new."""

from __future__ import annotations

import numpy as np
import pytest

from raysys.ensemble import BaseScores, Beside, EnsembleSettings, fit_ensemble
from raysys.ensemble.bench import HOUR_MS, Bench
from raysys.ensemble.calibrate import choose_calibration, fit_platt, read_calibration
from raysys.ensemble.cost import Subset, marked, paying, subsets
from tests.ensemble.planted import planted

QUICK = EnsembleSettings(methods=("stack_standard",))


def test_labels_that_reach_into_a_block_are_not_fitted_on() -> None:
    scores = planted({"a": 1.0}, n_requests=90, folds=(1,))
    hours = np.arange(90, dtype=np.int64) * HOUR_MS
    bench = Bench(scores, ("a",), QUICK, Beside(moment=hours, window_ms=5 * HOUR_MS))
    for fitted, scored in bench.parts:
        gap = np.abs(hours[fitted][:, None] - hours[scored][None, :]).min(initial=99 * HOUR_MS)
        assert gap > 5 * HOUR_MS
    assert [len(f) for f, _ in bench.parts] == [55, 50, 55]
    shorter = QUICK.model_copy(update={"gap_hours": 0.0})
    parts = Bench(scores, ("a",), shorter, Beside(moment=hours, window_ms=5 * HOUR_MS)).parts
    assert [len(f) for f, _ in parts] == [60, 60, 60]
    with pytest.raises(ValueError, match="hours to settle"):
        Bench(scores, ("a",), QUICK, Beside(moment=hours, window_ms=90 * HOUR_MS))


@pytest.mark.parametrize("by", ["user", "query", "session"])
def test_blocks_by_group_share_none(by: str) -> None:
    scores = planted({"a": 1.0}, n_requests=90, folds=(1,))
    group = np.arange(90) % 11
    group[::7] = -1  # nobody knows whose: each alone, on either side
    settings = QUICK.model_copy(update={"block_by": by})
    parts = Bench(scores, ("a",), settings, Beside(group=group)).parts
    assert len(parts) == 3
    assert sorted(np.concatenate([scored for _, scored in parts]).tolist()) == list(range(90))
    for fitted, scored in parts:
        assert len(fitted) + len(scored) == 90
        assert set(group[fitted]) & set(group[scored]) <= {-1}
    with pytest.raises(ValueError, match=f"blocks by {by} need the {by} of each request"):
        Bench(scores, ("a",), settings)


def test_without_anything_relevant_there_is_nothing_to_fit() -> None:
    scores = planted({"a": 1.0, "b": 1.0}, n_requests=30)
    judgements = scores.judgements.only(np.zeros(len(scores.label), bool), np.zeros(30, np.int32))
    empty = BaseScores(scores.request, scores.fold, judgements, scores.base)
    with pytest.raises(ValueError, match="relevant"):
        fit_ensemble(empty, {"a": "tree", "b": "tree"}, QUICK)


def test_the_calibration_that_fits_unseen_rows_is_taken() -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(size=30_000).astype(np.float32)
    rows = np.arange(len(score))
    parts = [(rows[::2], rows[1::2]), (rows[1::2], rows[::2])]

    def drawn(p: np.ndarray) -> np.ndarray:
        return (rng.random(len(p)) < p).astype(np.float32)

    logistic = drawn(1 / (1 + np.exp(-(1.5 * score - 2))))
    found = choose_calibration(score[:600], logistic[:600], [(rows[:300], rows[300:600])])
    assert found.method == "platt"  # few rows of a logistic truth: two numbers suffice
    steps = drawn(np.where(score > 1, 0.8, 0.02))
    stepped = choose_calibration(score, steps, parts)
    assert stepped.method == "isotonic"
    assert stepped.log_loss["isotonic"] < stepped.log_loss["platt"]
    curve = fit_platt(score, logistic)
    assert (curve.slope, curve.offset) == pytest.approx((1.5, -2), abs=0.08)
    for calibration in (curve, stepped.calibration):
        again = read_calibration(calibration.to_dict())
        assert np.array_equal(again(score), calibration(score))
    assert fit_platt(score, drawn(1 / (1 + np.exp(score)))).slope == 0  # more is never less
    with pytest.raises(ValueError, match="magic"):
        read_calibration({"kind": "magic"})


def test_subsets_on_the_front_are_beaten_by_none_as_cheap() -> None:
    scores = planted({"a": 1.0, "b": 1.2, "c": 8.0}, n_requests=200)
    bench = Bench(scores, ("a", "b", "c"), QUICK)
    cost = {"a": 1.0, "b": 0.5, "c": 2.0}
    found = subsets(bench, cost)
    assert {each.members for each in found} >= {("a", "b", "c"), ("a", "b"), ("a",), ("b",), ("c",)}
    for each in found:
        assert each.milliseconds == pytest.approx(sum(cost[name] for name in each.members))
        beaten = any(o.milliseconds <= each.milliseconds and o.ndcg > each.ndcg for o in found)
        assert each.best != beaten
    assert marked([Subset(("x",), 0.1, 1.0), Subset(("y",), 0.1, 2.0)])[1].best is False


def test_who_does_not_pay_goes_first() -> None:
    scores = planted({"a": 1.0, "b": 1.0, "noise": 60.0, "base": 2.0}, n_requests=300)
    families = {"a": "tree", "b": "tree", "noise": "transformer", "base": "baseline"}
    bench = Bench(scores, tuple(families), QUICK)
    told: list[str] = []
    cost = dict.fromkeys(families, 1.0)
    left = paying(bench, families, cost, 0.02, lambda name, _: told.append(name))
    assert told[0] == "noise" and left[:2] == ("a", "b")
    strict = paying(bench, families, cost, 1e9)
    assert [families[name] for name in strict] == ["tree", "baseline"]  # fallbacks keep theirs
    assert paying(bench, families, cost, -1e9) == tuple(families)
