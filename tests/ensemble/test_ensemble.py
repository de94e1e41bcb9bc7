"""The ensemble: better than its members, honest by time, able to lose any of them."""

from __future__ import annotations

import time
from itertools import combinations, pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from raysys.ensemble import (
    FALLBACKS,
    BaseScores,
    Combination,
    Ensemble,
    EnsembleSettings,
    fit_ensemble,
    ndcg,
)
from raysys.ensemble.methods import Method
from raysys.ensemble.normalise import FORMS, normalise
from raysys.ensemble.stack import fit_listwise
from raysys.ensemble.tree_stack import TreeStackSettings
from raysys.errors import UserError
from tests.ensemble.planted import planted

NOISE = {"xgb": 1.0, "lgb": 1.1, "tower": 1.3, "popular": 3.0, "repeat": 2.5}
FAMILIES = {
    "xgb": "tree",
    "lgb": "tree",
    "tower": "transformer",
    "popular": "baseline",
    "repeat": "baseline",
}


LINEAR = EnsembleSettings(methods=("stack_standard", "average_standard", "blend"))
SMALL = TreeStackSettings(n_estimators=15, num_leaves=4)


@pytest.fixture(scope="module")
def fitted() -> Ensemble:
    return fit_ensemble(planted(NOISE), FAMILIES, LINEAR)


@pytest.fixture(scope="module")
def later() -> BaseScores:
    """A period after those the ensemble was fitted on."""
    return planted(NOISE, seed=1, folds=(3,))


def mean_ndcg(scores: BaseScores, score: np.ndarray) -> float:
    judgements = scores.judgements
    return float(np.nanmean(ndcg(judgements, judgements.ranks(score), 10)))


@pytest.mark.long
def test_it_beats_its_best_member(fitted: Ensemble, later: BaseScores) -> None:
    """Independent noise: the average of several knows more than any one."""
    full = fitted.score(later.base, later.offsets)
    assert full.fallback == "full"
    assert full.missing == ()
    best = max(mean_ndcg(later, scores) for scores in later.base.values())
    assert mean_ndcg(later, full.score) > best + 0.03


def test_every_fallback_beats_its_best_member(fitted: Ensemble, later: BaseScores) -> None:
    for name, combination in fitted.fallbacks.items():
        base = {m: later.base[m] for m in combination.members}
        found = fitted.score(base, later.offsets)
        assert found.fallback == name
        best = max(mean_ndcg(later, scores) for scores in base.values())
        assert mean_ndcg(later, found.score) > best


def test_fallbacks_hold_their_families(fitted: Ensemble) -> None:
    assert tuple(fitted.fallbacks) == tuple(FALLBACKS)
    for name, combination in fitted.fallbacks.items():
        assert {FAMILIES[m] for m in combination.members} == FALLBACKS[name]


def test_any_members_may_be_lost(fitted: Ensemble, later: BaseScores) -> None:
    """Whatever is left gives finite scores, no worse than the worst that is present."""
    for size in range(1, len(NOISE) + 1):
        for present in combinations(NOISE, size):
            base = {name: later.base[name] for name in present}
            found = fitted.score(base, later.offsets)
            assert np.isfinite(found.score).all()
            assert ((found.probability > 0) & (found.probability < 1)).all()
            worst = min(mean_ndcg(later, scores) for scores in base.values())
            assert mean_ndcg(later, found.score) >= worst - 1e-9
            if found.fallback == "popularity":
                assert not {FAMILIES[name] for name in present} - {"baseline"}


def test_a_lone_tree_is_not_thrown_away(fitted: Ensemble, later: BaseScores) -> None:
    """Both baselines are there, so `popularity` would be complete; the tree knows more."""
    base = {name: later.base[name] for name in ("lgb", "popular", "repeat")}
    found = fitted.score(base, later.offsets)
    assert "xgb" in found.missing
    assert mean_ndcg(later, found.score) > mean_ndcg(later, later.base["popular"]) + 0.1


def test_scores_that_are_not_finite_count_as_lost(fitted: Ensemble, later: BaseScores) -> None:
    broken = later.base | {"tower": np.full_like(later.base["tower"], np.nan)}
    assert fitted.score(broken, later.offsets).fallback == "no_transformer"


def test_nobody_is_left(fitted: Ensemble) -> None:
    with pytest.raises(ValueError, match="xgb"):
        fitted.score({"stranger": np.zeros(2, np.float32)}, np.array([0, 2]))


def test_a_member_without_weight_still_orders_when_alone() -> None:
    scores = planted({"good": 0.5, "useless": 60.0})
    ensemble = fit_ensemble(scores, {"good": "tree", "useless": "tree"}, LINEAR)
    ensemble.fallbacks["full"].weights[:, 1] = 0
    ensemble.fallbacks["trees_only"].weights[:, 1] = 0
    alone = {"useless": scores.base["useless"]}
    found = ensemble.score(alone, scores.offsets)
    assert np.array_equal(found.score, normalise(alone["useless"], scores.offsets, "standard"))


def test_requests_of_one_or_no_candidate(fitted: Ensemble) -> None:
    base = {name: np.array([3, 1, 2], np.float32) for name in NOISE}
    offsets = np.array([0, 0, 1, 3])
    found = fitted.score(base, offsets)
    assert np.isfinite(found.score).all()
    assert found.score[2] > found.score[1]
    empty = {name: np.zeros(0, np.float32) for name in NOISE}
    assert len(fitted.score(empty, np.array([0, 0])).score) == 0


def test_save_and_load(fitted: Ensemble, later: BaseScores, tmp_path: Path) -> None:
    fitted.save(tmp_path / "ensemble.json")
    again = Ensemble.load(tmp_path / "ensemble.json")
    assert again.members == fitted.members == tuple(NOISE)
    assert again.folds == (2,)
    for present in ([*NOISE], ["xgb", "lgb"], ["popular"]):
        base = {name: later.base[name] for name in present}
        one, two = fitted.score(base, later.offsets), again.score(base, later.offsets)
        assert np.array_equal(one.score, two.score)
        assert np.array_equal(one.probability, two.probability)
        assert one.fallback == two.fallback


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ensemble.json"
    path.write_text('{"families": {}}')
    with pytest.raises(UserError, match=r"ensemble\.json"):
        Ensemble.load(path)


def test_serving_scores_equal_those_of_the_whole_fold(fitted: Ensemble, later: BaseScores) -> None:
    """One request at a time or all at once: the same to the last bit."""
    whole = fitted.score(later.base, later.offsets)
    for request in (0, 7, 50):
        rows = slice(later.offsets[request], later.offsets[request + 1])
        base = {name: scores[rows] for name, scores in later.base.items()}
        one = fitted.score(base, np.array([0, rows.stop - rows.start]))
        assert np.array_equal(one.score, whole.score[rows])


def test_probabilities_are_calibrated_and_follow_the_score(
    fitted: Ensemble, later: BaseScores
) -> None:
    found = fitted.score(later.base, later.offsets)
    order = np.argsort(found.score)
    assert (np.diff(found.probability[order]) >= 0).all()
    assert found.probability.mean() == pytest.approx(later.label.mean(), rel=0.1)
    top = found.probability > np.quantile(found.probability, 0.98)
    assert found.probability[top].mean() == pytest.approx(later.label[top].mean(), rel=0.15)


def test_stacking_recovers_planted_weights() -> None:
    """Relevance drawn from a softmax of known weights; the fit finds them."""
    rng = np.random.default_rng(0)
    scores = planted({"a": 1, "b": 1, "c": 1}, n_requests=3000, n_candidates=30)
    inputs = rng.normal(size=(3, len(scores.label))).astype(np.float32)
    weights = np.array([1.5, 0.5, 0.0])
    logits = weights @ inputs
    offsets = scores.offsets
    label = np.zeros(len(scores.label), np.float32)
    for start, stop in pairwise(offsets):
        gumbel = logits[start:stop] + rng.gumbel(size=stop - start)
        label[start + int(np.argmax(gumbel))] = 1
    judgements = type(scores.judgements)(
        scores.judgements.item, label, offsets, np.ones(scores.n_requests, np.int32)
    )
    found = fit_listwise(inputs, judgements, ridge=0)
    np.testing.assert_allclose(found, weights, atol=0.08)


@pytest.mark.long
@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_prefers_who_knows_more(method: str) -> None:
    settings = EnsembleSettings(methods=(method,), trees=SMALL)
    scores = planted({"sharp": 0.5, "blunt": 4.0}, n_requests=200)
    share = fit_ensemble(scores, {"sharp": "tree", "blunt": "tree"}, settings).fallbacks["full"]
    assert share.method == method
    assert share.share["sharp"] > 0.7
    assert (share.weights >= 0).all()


@pytest.mark.long
def test_methods_are_judged_on_rows_held_out_of_the_served_models_fold() -> None:
    """Earlier folds, scored by models that saw less, have no say."""
    scores = planted(NOISE)
    full = fit_ensemble(scores, FAMILIES, LINEAR).fallbacks["full"]
    shuffled = {
        name: np.where(np.repeat(scores.fold, np.diff(scores.offsets)) == 1, -base, base)
        for name, base in scores.base.items()
    }
    other = BaseScores(scores.request, scores.fold, scores.judgements, shuffled)
    again = fit_ensemble(other, FAMILIES, LINEAR).fallbacks["full"]
    assert again.to_dict() == full.to_dict()
    last = scores.take(np.flatnonzero(scores.fold == 2))
    best = max(mean_ndcg(last, last.base[name]) for name in NOISE)
    assert full.figures["held_out_ndcg"] > best


def test_a_method_whose_weights_do_not_carry_over_is_not_taken() -> None:
    """Two members take turns to know nothing: each third of the time has weights of its own."""
    scores = planted({"a": 1.0, "b": 1.0}, folds=(1,))
    settings = EnsembleSettings(methods=("stack_standard",), blocks=2)
    half = np.repeat(np.arange(scores.n_requests) < scores.n_requests // 2, np.diff(scores.offsets))
    noise = np.random.default_rng(5).normal(size=len(half)).astype(np.float32)
    base = {
        "a": np.where(half, scores.base["a"], noise),
        "b": np.where(half, noise, scores.base["b"]),
    }
    turns = BaseScores(scores.request, scores.fold, scores.judgements, base)
    families = {"a": "tree", "b": "tree"}
    honest = fit_ensemble(turns, families, settings).fallbacks["full"]
    judgements = turns.judgements
    seen, _ = honest.answer(turns.base, turns.offsets)
    in_sample = float(np.nanmean(ndcg(judgements, judgements.ranks(seen), 10)))
    assert honest.figures["held_out_ndcg"] < in_sample - 0.05


@pytest.mark.long
def test_a_member_that_knows_nothing_does_no_harm() -> None:
    """It gets next to no weight, whatever its family."""
    for seed in range(4):
        scores = planted({**NOISE, "tower": 60.0}, n_requests=300, seed=seed)
        fallbacks = fit_ensemble(scores, FAMILIES, LINEAR).fallbacks
        held_out = {name: c.figures["held_out_ndcg"] for name, c in fallbacks.items()}
        assert held_out["full"] > held_out["no_transformer"] - 0.01
        full = fallbacks["full"]
        assert full.share["tower"] < 0.1 and set(full.members) == set(FAMILIES)
        assert full.weights.shape == (2, len(FAMILIES))


def test_a_member_that_does_harm_loses_its_say() -> None:
    """What it knew in the first half is the opposite in the second: no weights of it carry over."""
    scores = planted({"a": 1.0, "b": 1.0, "turncoat": 0.2}, n_requests=900, folds=(1,))
    half = np.repeat(np.arange(900) < 600, np.diff(scores.offsets))
    base = {**scores.base, "turncoat": np.where(half, 1, -1) * scores.base["turncoat"]}
    turned = BaseScores(scores.request, scores.fold, scores.judgements, base)
    families = {"a": "tree", "b": "tree", "turncoat": "transformer"}
    full = fit_ensemble(turned, families, LINEAR).fallbacks["full"]
    assert full.share["turncoat"] == 0 and set(full.members) == set(families)
    assert full.figures["held_out_ndcg"] > 0.3


@pytest.mark.long
def test_one_fold_is_enough() -> None:
    ensemble = fit_ensemble(planted(NOISE, folds=(1,)), FAMILIES, LINEAR)
    assert ensemble.folds == (1,)
    assert ensemble.fallbacks["full"].figures["held_out_ndcg"] > 0


def test_without_baselines_there_is_no_popularity() -> None:
    ensemble = fit_ensemble(
        planted({"a": 1.0, "b": 1.0}), {"a": "tree", "b": "transformer"}, LINEAR
    )
    assert set(ensemble.fallbacks) == {"full", "no_transformer", "trees_only"}


def test_one_request_takes_well_under_a_millisecond() -> None:
    """200 candidates, six members, both forms of normalisation."""
    names = [f"m{i}" for i in range(6)]
    scores = planted(dict.fromkeys(names, 1.0), n_requests=100)
    ensemble = fit_ensemble(
        scores, dict.fromkeys(names, "tree"), EnsembleSettings(methods=("stack_both",))
    )
    rng = np.random.default_rng(0)
    base = {name: rng.normal(size=200).astype(np.float32) for name in names}
    offsets = np.array([0, 200])
    ensemble.score(base, offsets)
    took = []
    for _ in range(100):
        began = time.perf_counter()
        ensemble.score(base, offsets)
        took.append(time.perf_counter() - began)
    assert min(took) < 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_normalised_scores_have_one_scale(form: str) -> None:
    rng = np.random.default_rng(0)
    offsets = np.array([0, 100, 100, 101, 301])
    scores = (rng.normal(size=301) * 1e4 + 1e6).astype(np.float32)
    found = normalise(scores, offsets, form)  # type: ignore[arg-type]
    assert found[100] == 0
    for rows in (slice(0, 100), slice(101, 301)):
        assert abs(found[rows].mean()) < 1e-5
        assert found[rows].std() == pytest.approx(1, abs=0.05)
        assert np.array_equal(np.argsort(found[rows]), np.argsort(scores[rows]))
    same = normalise(np.full(5, 0.1, np.float32), np.array([0, 5]), form)  # type: ignore[arg-type]
    assert not same.any()


def test_equal_scores_stay_equal() -> None:
    scores = np.array([0, 0, 0, 5, 5, 9], np.float32)
    for form in FORMS:
        found = normalise(scores, np.array([0, 6]), form)
        assert found[0] == found[1] == found[2] < found[3] == found[4] < found[5]


def test_lost_weight_is_scaled_up() -> None:
    scores = planted({"a": 1.0, "b": 1.0}, n_requests=20)
    full = fit_ensemble(scores, {"a": "tree", "b": "tree"}, LINEAR).fallbacks["full"]
    half = Combination(("a", "b"), np.array([[0.5, 1.5], [0, 0]]), full.calibration, "test")
    alone = half.answer({"a": scores.base["a"]}, scores.offsets)[0]
    expected = 2.0 * normalise(scores.base["a"], scores.offsets, "standard")
    np.testing.assert_allclose(alone, expected, rtol=1e-6)
