"""What one trial does: goes on after a kill, measures what it costs, and fails clearly."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from raysys.ensemble import BaseScores, EnsembleSettings, fit_ensemble
from raysys.ensemble.bench import Beside
from raysys.ensemble.ranking import Judgements
from raysys.errors import UserError
from raysys.learners import make_learner
from raysys.learners.validation import NDCG
from raysys.tuning.ensemble import EnsembleObjective
from raysys.tuning.metrics import (
    COSTS,
    REPORTED,
    check_metrics,
    latency_ms,
    quiet_ms,
    ranking_figures,
)
from raysys.tuning.objective import Job, LearnerObjective, Rows
from tests.synthetic import write_examples
from tests.tuning import toy

FAST = {"n_estimators": 30, "early_stopping_rounds": 29, "min_child_samples": 5, "num_leaves": 7}


class KilledError(BaseException):
    """Stands for the kill: nobody catches it."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    examples, catalogue = write_examples(tmp_path_factory.mktemp("shop") / "features", 200, 100)
    return Rows(examples.with_folds(0, 1), examples.with_folds(2).batch()), catalogue


@pytest.fixture
def objective(shop, tmp_path):
    rows, catalogue = shop
    folder = tmp_path / "trials"
    return LearnerObjective("lightgbm_ranker", FAST, rows, catalogue, folder, 1, grace=6, every=6)


JOB = Job(3, {"learning_rate": 0.1})


def test_a_trial_reports_all_that_can_be_an_objective_or_a_constraint(objective):
    told = []
    metrics = objective(JOB, lambda step, score: told.append((step, score)))
    assert set(metrics) == set(REPORTED)
    assert all(np.isfinite(value) for value in metrics.values())
    assert 0 < metrics["ndcg@10"] < 1 and metrics["size_mb"] > 0.001
    assert [step for step, _ in told] == [6, 12, 18, 24, 30]


def test_a_killed_trial_goes_on_from_its_checkpoint_to_the_same_end(objective, tmp_path):
    whole = replace(objective, folder=tmp_path / "whole")
    expected, steps = whole(JOB, lambda *_: None), []

    def tell(step, score):
        steps.append(step)
        if step == 18 and steps.count(18) == 1:
            raise KilledError

    with pytest.raises(KilledError):
        objective(JOB, tell)
    spent = float((objective.folder / "trial-3" / "seconds.json").read_text())
    metrics = objective(JOB, tell)
    assert steps == [6, 12, 18, 18, 24, 30], "the checkpoint of step 12 was there, not of 18"
    assert metrics["seconds"] >= spent > 0
    for name in REPORTED:
        assert name in COSTS or metrics[name] == expected[name]


def test_a_child_goes_on_from_its_parents_checkpoint(objective):
    objective(Job(0, {"learning_rate": 0.1}, steps=12), lambda *_: None)
    steps = []
    child = Job(1, {"learning_rate": 0.3}, steps=24, parent=0)
    metrics = objective(child, lambda step, _: steps.append(step))
    assert steps == [18, 24]
    alone = objective(Job(2, {"learning_rate": 0.3}, steps=24), lambda *_: None)
    assert metrics["ndcg@10"] != alone["ndcg@10"]
    with pytest.raises(UserError, match="checkpoint of trial-9 is gone"):
        objective(Job(4, {}, steps=24, parent=9), lambda *_: None)


def test_a_proxy_takes_fewer_steps(objective):
    steps = []
    replace(objective, share=0.4)(JOB, lambda step, _: steps.append(step))
    assert steps == [6, 12]


@pytest.mark.long
def test_a_proxy_takes_fewer_epochs_of_sequences(shop, tmp_path):
    rows, catalogue = shop
    fixed = {"settings": {"width": 8, "layers": 1, "heads": 1, "epochs": 4, "batch_size": 16}}
    trial = LearnerObjective("next_item", fixed, rows, catalogue, tmp_path, 1, grace=1, every=1)
    taken = []
    for share, epochs in ((1.0, 4), (0.5, 2)):
        told: list[int] = []
        part = replace(trial, share=share, folder=tmp_path / str(share))
        part(Job(0, {"settings.width": 16}), lambda step, _, told=told: told.append(step))
        # a pass may end an example or two before the last of its steps
        assert told == list(range(1, len(told) + 1)) and abs(len(told) - epochs) <= 1
        taken.append(len(told))
    assert taken[0] > taken[1]


@pytest.mark.parametrize(
    ("learner", "fixed", "values", "expected"),
    [
        ("next_item", {}, {}, {"settings": {"epochs": 2.5}}),
        ("next_item", {"settings": {"width": 8}}, {"settings.epochs": 6},
         {"settings": {"width": 8, "epochs": 1.5}}),
        ("next_item", {}, {"learner": "item_knn"}, {"learner": "item_knn"}),
        ("cross_encoder_ranker", {}, {}, {"training": {"epochs": 0.25}}),
        ("cross_encoder_ranker", {"training": {"max_steps": 100}}, {"training.warm_up": 0.2},
         {"training": {"max_steps": 25, "warm_up": 0.2}}),
        ("two_tower", {"steps": 60}, {}, {"steps": 15}),
        ("lightgbm_ranker", {"n_estimators": 2}, {}, {"n_estimators": 1}),
    ],
)  # fmt: skip
def test_a_quarter_of_the_steps_is_a_quarter_of_what_each_learner_counts(
    learner, fixed, values, expected, tmp_path
):
    trial = LearnerObjective(learner, fixed, None, None, tmp_path, share=0.25)
    found = trial._settings(Job(0, values))
    assert found == expected
    make_learner(learner, found)


def test_data_and_nested_settings_reach_the_fit(objective, shop):
    rows, _ = shop
    values = {"data.negatives": 4, "data.window_days": 20.0, "learning_rate": 0.1}
    examples, validation = rows.of(values)
    assert validation is rows.validation
    few, all_of_them = examples.batch(), rows.examples.batch()
    assert few.n_requests < all_of_them.n_requests
    wanted = few.label > 0
    per_request = np.bincount(few.group[~wanted], minlength=few.n_requests)
    assert per_request.max() == 4
    kept = np.isin(all_of_them.request, few.request)
    assert wanted.sum() == (all_of_them.label[kept[all_of_them.group]] > 0).sum()
    assert objective(Job(1, values), print)["ndcg@10"] != objective(JOB, print)["ndcg@10"]


class Odd:
    """A model that scores in a wrong way."""

    def __init__(self, score):
        self._score = score

    def score(self, batch):
        return np.array([self._score(at) for at in range(len(batch))], dtype=np.float32)


@pytest.mark.parametrize(
    ("score", "problem"),
    [
        (lambda at: np.nan if at == 5 else at, "not finite"),
        (lambda at: 0.5, "every candidate of a request got the same score"),
    ],
    ids=["nan", "constant"],
)
def test_scores_that_rank_nothing_are_a_failure_with_a_reason(
    objective, monkeypatch, score, problem
):
    from raysys.learners.lightgbm_ranker import LightGBMRanker

    monkeypatch.setattr(LightGBMRanker, "fit_local", lambda *_, **__: Odd(score))
    with pytest.raises(ValueError, match=problem):
        objective(JOB, print)


def test_figures_agree_with_the_learners_own(shop):
    rows, _ = shop
    judged = rows.validation
    scores = np.random.default_rng(0).random(len(judged)).astype(np.float32)
    figures = ranking_figures(Judgements.of(judged), scores)
    assert figures["ndcg@10"] == pytest.approx(NDCG(judged)(scores), abs=1e-6)
    assert figures["recall@10"] <= figures["recall@20"] <= 1
    perfect = ranking_figures(Judgements.of(judged), judged.label)
    found = Judgements.of(judged)
    assert perfect["mrr"] == pytest.approx(
        len(np.unique(found.owner)) / (found.n_relevant > 0).sum()
    )


def test_latency_is_of_one_request_of_a_hundred(shop):
    asked = []

    class Counting:
        def score(self, batch):
            asked.append((batch.n_requests, len(batch), batch.features.shape[0], batch.label))
            return batch.features[:, 0]

    rows, _ = shop
    assert latency_ms(Counting(), rows.validation) >= 0
    assert set(asked) == {(1, 100, 100, None)}
    assert quiet_ms(lambda: None) < 50


def test_latency_is_of_one_thread_as_train_measures_it():
    seen = []

    def pools():
        return [pool["num_threads"] for pool in threadpool_info()]

    with threadpool_limits(2):
        before = pools()
        quiet_ms(lambda: seen.append(pools()), 1)
        assert pools() == before and max(before) == 2
    assert {threads for each in seen for threads in each} == {1}


def test_latency_is_what_a_call_takes_while_others_leave_it_alone(monkeypatch):
    """As where most calls wait for another trial on the same core."""
    clock = iter(np.cumsum([9.0 if at % 2 and at % 6 != 1 else 0.002 for at in range(100)]))
    fake = SimpleNamespace(perf_counter=lambda: float(next(clock)))
    monkeypatch.setattr("raysys.tuning.metrics.time", fake)
    assert quiet_ms(lambda: None, 21) == pytest.approx(2)


@pytest.mark.parametrize(
    ("metric", "constraints", "direction", "problem"),
    [
        ("ndgc@10", {}, "max", r"no trial reports 'ndgc@10'; did you mean 'ndcg@10'\?"),
        ("ndcg@10", {"latency": 5}, "max", r"no cost is called 'latency'; did you mean 'latency_"),
        ("ndcg@10", {}, "min", "min would look for the worst ndcg@10"),
        ("size_mb", {}, "max", "max would look for the worst size_mb"),
    ],
)
def test_an_objective_that_no_trial_reports_is_refused(metric, constraints, direction, problem):
    with pytest.raises(UserError, match=problem):
        check_metrics(metric, constraints, direction)
    check_metrics("ndcg@10", {"latency_ms": 5}, "max")


@pytest.mark.long
def test_an_ensemble_is_judged_on_blocks_it_was_not_fitted_on(shop, tmp_path):
    judged = shop[0].validation
    rng = np.random.default_rng(1)
    base = {
        name: (judged.label * skill + rng.normal(size=len(judged))).astype(np.float32)
        for name, skill in (("good", 2.0), ("fair", 1.0), ("noise", 0.0))
    }
    scores = BaseScores.of(judged, 2, base)
    families = {"good": "tree", "fair": "transformer", "noise": "baseline"}
    objective = EnsembleObjective(scores, families, {"blocks": 2}, tmp_path)
    one = objective(Job(0, {"methods": 'list ["average_standard"]', "rounds": 12}), print)
    assert set(one) == set(REPORTED)
    alone = {
        name: ranking_figures(scores.judgements, each)["ndcg@10"] for name, each in base.items()
    }
    assert one["ndcg@10"] > alone["fair"]
    same = objective(Job(1, {"methods": 'list ["average_standard"]', "rounds": 12}), print)
    assert same["ndcg@10"] == one["ndcg@10"]
    few = objective(Job(2, {"methods": 'list ["average_rank"]', "rounds": 1}), print)
    assert few["ndcg@10"] != one["ndcg@10"]

    # a member that is right only in the blocks that are fitted on must not look good
    n = scores.n_requests
    block = np.repeat(np.arange(3), [len(part) for part in np.array_split(np.arange(n), 3)])
    late = (block == 2)[judged.group]
    turned = np.where(late, -judged.label, judged.label).astype(np.float32)
    liar = BaseScores.of(judged, 2, {**base, "fair": turned})
    told = EnsembleObjective(liar, families, {"blocks": 2}, tmp_path)(Job(3, {}), print)
    fitted = fit_ensemble(liar, families, EnsembleSettings(blocks=2))
    seen = ranking_figures(liar.judgements, fitted.score(liar.base, liar.offsets).score)
    assert told["ndcg@10"] < seen["ndcg@10"]


def test_an_ensemble_s_trees_read_features_and_labels_that_overlap_are_purged(shop, tmp_path):
    judged = shop[0].validation
    rng = np.random.default_rng(1)
    base = {"a": rng.normal(size=len(judged)).astype(np.float32)}
    base["b"] = (base["a"] + rng.normal(size=len(judged))).astype(np.float32)
    batch = replace(judged, names=("oracle",), features=judged.label[:, None].copy())
    scores, families = BaseScores.of(batch, 2, base), {"a": "tree", "b": "tree"}
    moment = np.arange(scores.n_requests, dtype=np.int64) * 3_600_000
    fits: list[int] = []

    def beside(settings: EnsembleSettings) -> Beside:
        names = tuple(settings.trees.features)
        return Beside(moment, None, names, batch.columns(names))

    quick = {"blocks": 2, "methods": ["tree"]}
    told = {}
    for name, features in (("scores", []), ("features", ["oracle"])):
        fixed = {**quick, "trees": {"features": features}}
        objective = EnsembleObjective(
            scores, families, fixed, tmp_path / name, beside=beside, batch=batch
        )
        told[name] = objective(Job(0, {}), print)["ndcg@10"]
    perfect = ranking_figures(scores.judgements, batch.label)["ndcg@10"]
    assert told["features"] > 0.99 * perfect > told["scores"]

    class Watched(BaseScores):
        def take(self, which):
            fits.append(len(which))
            return super().take(which)

    watched = Watched(**{name: getattr(scores, name) for name in scores.__dataclass_fields__})
    for hours in (0, 5):
        fits.clear()
        fixed = {"blocks": 2, "gap_hours": hours, "methods": ["average_standard"]}
        EnsembleObjective(watched, families, fixed, tmp_path / "gap", beside=beside)(
            Job(0, {}), print
        )
        first = next(n for n in fits if n != scores.n_requests)
        assert first == scores.n_requests - len(np.array_split(moment, 3)[0]) - hours


@pytest.mark.long
@pytest.mark.parametrize("by", ["user", "query", "session"])
def test_an_ensemble_is_judged_on_groups_it_was_not_fitted_on(shop, tmp_path, monkeypatch, by):
    from raysys.tuning import ensemble

    judged = shop[0].validation
    rng = np.random.default_rng(1)
    base = {name: rng.normal(size=len(judged)).astype(np.float32) for name in "ab"}
    scores, families = BaseScores.of(judged, 2, base), {"a": "tree", "b": "tree"}
    group = np.arange(scores.n_requests) % 7
    fits: list[np.ndarray] = []
    fit = ensemble.fit_ensemble

    def watched(taken, families, settings, beside):
        fits.append(beside.group)
        return fit(taken, families, settings, beside)

    monkeypatch.setattr(ensemble, "fit_ensemble", watched)
    fixed = {"blocks": 2, "block_by": by, "methods": ["average_standard"], "rounds": 2}
    beside = Beside(np.arange(scores.n_requests, dtype=np.int64), group, window_ms=10**9)
    trial = EnsembleObjective(scores, families, fixed, tmp_path, beside=lambda _: beside)
    trial(Job(0, {}), print)
    left_out = [set(range(7)) - set(each.tolist()) for each in fits]
    assert len(fits) == 3 and all(left_out)
    assert set().union(*left_out) == set(range(7)) and sum(map(len, left_out)) == 7
    for each, out in zip(fits, left_out, strict=True):
        assert len(each) == np.count_nonzero(~np.isin(group, list(out))), "all others are there"
    with pytest.raises(ValueError, match=f"need the {by} of each request"):
        EnsembleObjective(scores, families, fixed, tmp_path)(Job(1, {}), print)


def test_a_population_of_real_trees_grows_from_its_checkpoints(objective, tmp_path):
    space = {
        "learning_rate": {"kind": "float", "low": 0.02, "high": 0.5, "log": True},
        "num_leaves": {"kind": "int", "low": 3, "high": 15},
    }
    scheduler = {"kind": "pbt", "population": 3, "interval": 6}
    made = toy.plan(tmp_path, space=space, scheduler=scheduler, trials=9)
    fixed = {"early_stopping_rounds": 0, "min_child_samples": 5}
    folder = made.checkpoints
    bred = replace(objective, fixed=fixed, folder=folder, grace=6, every=6)
    trials = toy.drive(made, 9, lambda job: bred(job, print))
    assert [trial.steps for trial in trials] == [6] * 3 + [12] * 3 + [18] * 3
    assert all(trial.state == "complete" for trial in trials)
    for trial in trials:
        (last,) = (folder / f"trial-{trial.number}").glob("step-*")
        assert last.name == f"step-{trial.steps:09d}"
    moved = [t for t in trials if t.parent is not None and t.values != trials[t.parent].values]
    assert moved, "some went on from a stronger one with other settings"
