from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.learners import make_learner, trees
from raysys.learners.protocol import Context
from raysys.learners.validation import NDCG
from tests.learners.suite import LearnerSuite, TrainedOnSeveralWorkers
from tests.synthetic import write_examples

SMALL = {"n_estimators": 40, "early_stopping_rounds": 10, "learning_rate": 0.15}


class TreeSuite(LearnerSuite, TrainedOnSeveralWorkers):
    def test_stops_early_and_tells_how_it_goes(self, train: Examples, context: Context) -> None:
        told: list[tuple[int, float]] = []
        learner = make_learner(self.name, {**SMALL, "n_estimators": 400})
        learner.fit_local(train, context, lambda step, value: told.append((step, value)))
        steps, values = zip(*told, strict=True)
        assert steps == tuple(range(1, len(steps) + 1))
        assert len(steps) < 400
        assert len(steps) - (int(np.argmax(values)) + 1) == 10

    def test_who_listens_may_end_it(self, train: Examples, context: Context) -> None:
        class EnoughError(Exception):
            pass

        def report(step: int, value: float) -> None:
            if step == 3:
                raise EnoughError

        with pytest.raises(EnoughError):
            make_learner(self.name, SMALL).fit_local(train, context, report)

    def test_reads_the_features_it_is_given(self, train: Examples, context: Context) -> None:
        chosen = {"features": ("user_*", "price"), "exclude": ("user_brand_*",)}
        model = make_learner(self.name, {**SMALL, **chosen}).fit_local(train, context)
        assert "price" in model.requires and "covisitation" not in model.requires
        assert "user_brand_share" not in model.requires
        assert model.requires == tuple(n for n in train.names if n in model.requires)

    def test_a_pattern_without_a_match_is_a_users_error(
        self, train: Examples, context: Context
    ) -> None:
        learner = make_learner(self.name, {**SMALL, "exclude": ("covisitatoin",)})
        with pytest.raises(UserError, match="did you mean 'covisitation'"):
            learner.fit(train, context)

    def test_fewer_candidates_do(self, train: Examples, context: Context, later: Batch) -> None:
        model = make_learner(self.name, {**SMALL, "candidates": 8}).fit_local(train, context)
        assert NDCG(later)(model.score(later)) > 0.25

    def test_many_rows_score_as_few_do(
        self, model: trees.TreeModel, later: Batch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right = model.score(later)
        monkeypatch.setattr(trees, "ROWS_PER_THREAD", 100)
        np.testing.assert_array_equal(model.score(later), right)

    def test_names_what_it_leans_on(self, model: trees.TreeModel) -> None:
        importance = model.importance()
        assert tuple(importance) == model.requires
        assert sum(importance.values()) > 0

    def test_without_early_stopping_all_trees_are_grown(
        self, train: Examples, context: Context, later: Batch
    ) -> None:
        settings = {**SMALL, "n_estimators": 15, "early_stopping_rounds": 0}
        model = make_learner(self.name, settings).fit_local(train, context)
        assert NDCG(later)(model.score(later)) > 0.2


class TestXGBoostRanker(TreeSuite):
    name = "xgboost_ranker"
    settings = SMALL

    @pytest.mark.parametrize("objective", ["map", "pairwise"])
    def test_other_objectives_rank_too(
        self, train: Examples, context: Context, later: Batch, objective: str
    ) -> None:
        learner = make_learner(self.name, {**SMALL, "objective": objective})
        assert NDCG(later)(learner.fit_local(train, context).score(later)) > 0.25


class TestLightGBMRanker(TreeSuite):
    name = "lightgbm_ranker"
    settings = SMALL


@pytest.mark.parametrize("name", ["xgboost_ranker", "lightgbm_ranker"])
@pytest.mark.parametrize(
    "bad", [{"learning_rate": 0}, {"subsample": 1.5}, {"n_estimators": 0}, {"last_fraction": 1}]
)
def test_impossible_settings_are_refused(name: str, bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        make_learner(name, bad)


@pytest.mark.long
def test_labels_may_be_graded(tmp_path: Path) -> None:
    from tests.learners.suite import rewritten

    examples, catalogue = write_examples(tmp_path / "shop", n_requests=120, n_items=60)

    def graded(table):  # a purchase counts 1, what was not wanted but has a low price 0.25
        import pyarrow as pa

        label = table["label"].to_numpy() + 0.25 * (table["price"].to_numpy() < 1.5)
        at = table.schema.get_field_index("label")
        return table.set_column(at, table.schema.field("label"), pa.array(label, pa.float32()))

    examples = rewritten(examples, tmp_path / "graded", graded)
    context = Context(catalogue, tmp_path)
    for name in ("xgboost_ranker", "lightgbm_ranker"):
        model = make_learner(name, SMALL).fit_local(examples.with_folds(0, 1), context)
        later = examples.with_folds(2).batch()
        assert NDCG(later)(model.score(later)) > 0.2
    with pytest.raises(UserError, match=r"labels of 0 and 1, and there is 0\.25"):
        learner = make_learner("xgboost_ranker", {**SMALL, "objective": "map"})
        learner.fit_local(examples.with_folds(0, 1), context)


@pytest.mark.parametrize("name", ["xgboost_ranker", "lightgbm_ranker"])
def test_a_tail_that_wants_nothing_stops_nobody(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It ranks every number of trees alike: not the first of them is the best."""
    import pyarrow as pa

    from tests.learners.suite import rewritten

    examples, catalogue = write_examples(tmp_path / "shop", n_requests=120, n_items=60)

    def quiet(table):  # type: ignore[no-untyped-def]
        label = np.where(table["request"].to_numpy() < 50, table["label"].to_numpy(), 0)
        at = table.schema.get_field_index("label")
        return table.set_column(at, table.schema.field("label"), pa.array(label, pa.float32()))

    examples = rewritten(examples, tmp_path / "quiet", quiet).with_folds(0, 1)
    model = make_learner(name, SMALL).fit_local(examples, Context(catalogue, tmp_path))
    assert _trees(model) == 40
    assert "nothing was wanted in the last 10% of the rows" in caplog.text


def test_more_candidates_than_lightgbm_orders_are_a_users_error(tmp_path: Path) -> None:
    folder, many = tmp_path / "shop", 10_050
    examples, catalogue = write_examples(folder, 8, many + 50, n_candidates=many)
    context, some = Context(catalogue, tmp_path), examples.with_folds(0, 1)
    with pytest.raises(UserError, match=r"10,\d\d\d candidates, and LightGBM orders 10,000"):
        make_learner("lightgbm_ranker", {**SMALL, "candidates": 0}).fit_local(some, context)
    make_learner("lightgbm_ranker", {**SMALL, "n_estimators": 2}).fit_local(some, context)


@pytest.mark.parametrize("name", ["xgboost_ranker", "lightgbm_ranker"])
class TestGoingOn:
    """More trees onto those of a fitted model."""

    def test_old_trees_stay_and_new_ones_come(
        self, name: str, grown: tuple[Examples, Context], tmp_path: Path
    ) -> None:
        examples, context = grown
        learner = make_learner(name, {**SMALL, "n_estimators": 6, "early_stopping_rounds": 0})
        model = learner.fit_local(examples.with_folds(0), context)
        before = model.score(examples.with_folds(2).batch())
        more = learner.resume(model, examples.with_folds(1), context, steps=5, rate=0.5)
        later = examples.with_folds(2).batch()
        assert np.array_equal(model.score(later), before)  # not changed itself
        assert not np.array_equal(more.score(later), before)
        assert NDCG(later)(more.score(later)) > NDCG(later)(before) - 0.02
        assert _trees(more) == _trees(model) + 5
        more.save(tmp_path)
        again = type(more).load(tmp_path, context.catalogue)
        assert np.array_equal(again.score(later), more.score(later))
        once_more = learner.resume(model, examples.with_folds(1), context, steps=5, rate=0.5)
        assert np.array_equal(once_more.score(later), more.score(later))

    def test_a_model_that_gains_nothing_stays(
        self, name: str, grown: tuple[Examples, Context], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        examples, context = grown
        learner = make_learner(name, {**SMALL, "n_estimators": 6})
        model = learner.fit_local(examples.with_folds(0), context)
        noise = np.random.default_rng(0).normal(0.5, 0.1, (2, 1000))
        for better, worse, stays in (
            (np.full(30, 0.5), np.full(30, 0.5), True),
            (noise[1], noise[0], True),  # by less than a standard error
            (np.full(30, 0.5), np.full(30, 0.4), False),
        ):
            told = iter([better, worse])
            judge = type("_Judge", (), {"each": lambda self, scores, told=told: next(told)})
            monkeypatch.setattr(trees, "NDCG", lambda tail, judge=judge: judge())
            more = learner.resume(model, examples.with_folds(1), context, 5, 0.5)
            assert (more is model) == stays


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Examples, Context]:
    examples, catalogue = write_examples(tmp_path_factory.mktemp("features"), 160, 60)
    return examples, Context(catalogue, tmp_path_factory.mktemp("scratch"))


def _trees(model: object) -> int:
    booster = model.booster  # type: ignore[attr-defined]
    rounds = getattr(booster, "num_boosted_rounds", None) or booster.current_iteration
    return int(rounds())
