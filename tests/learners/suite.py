"""One suite for every learner: a new one inherits `LearnerSuite`, names itself, and is tested.

class TestMine(LearnerSuite):
    name = "mine"
    settings = {"steps": 5}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.catalogue import Catalogue
from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.learners import LEARNERS, load_model, make_learner
from raysys.learners.protocol import Context, Learner, Model, Resources
from raysys.learners.validation import NDCG
from tests.synthetic import write_examples


@pytest.fixture(scope="package")
def ray() -> Iterator[None]:
    """A local Ray, for all tests of a package that ask for it; its `conftest.py` imports it."""
    from raysys.cluster import ray_session

    with ray_session():
        yield


class LearnerSuite:
    """What holds for every learner. Fits in this process; Ray Train has a slow test below."""

    name: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}
    gain_over_random: ClassVar[float] = 0.1
    """By how much NDCG@10 must exceed that of random scores, on a later fold."""

    @pytest.fixture(scope="class")
    @classmethod
    def shop(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[Examples, Catalogue]:
        return write_examples(tmp_path_factory.mktemp("features"), n_requests=300, n_items=120)

    @pytest.fixture(scope="class")
    @classmethod
    def more_settings(cls, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        """Settings that need a folder; override where there are some."""
        return {}

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, more_settings: dict[str, Any]) -> Callable[..., Learner[Any]]:
        def make(**changed: Any) -> Learner[Any]:
            return make_learner(cls.name, {**cls.settings, **more_settings, **changed})

        return make

    @pytest.fixture(scope="class")
    @classmethod
    def context(
        cls, shop: tuple[Examples, Catalogue], tmp_path_factory: pytest.TempPathFactory
    ) -> Context:
        return Context(shop[1], tmp_path_factory.mktemp("scratch"), seed=3)

    @pytest.fixture(scope="class")
    @classmethod
    def train(cls, shop: tuple[Examples, Catalogue]) -> Examples:
        return shop[0].with_folds(0, 1)

    @pytest.fixture(scope="class")
    @classmethod
    def later(cls, shop: tuple[Examples, Catalogue]) -> Batch:
        return shop[0].with_folds(2).batch()

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, make: Callable[..., Learner[Any]], train: Examples, context: Context) -> Model:
        return make().fit_local(train, context)

    def test_is_listed(self) -> None:
        learner = make_learner(self.name, {})
        assert learner.name == self.name in LEARNERS
        assert learner.family in {"tree", "transformer", "baseline"}

    def test_ranks_better_than_random(self, model: Model, later: Batch) -> None:
        judge = NDCG(later)
        chance = np.mean([judge(np.random.default_rng(i).random(len(later))) for i in range(9)])
        assert judge(model.score(later)) > chance + self.gain_over_random

    def test_scores_are_finite_floats_one_a_row(self, model: Model, later: Batch) -> None:
        scores = model.score(later)
        assert scores.shape == (len(later),)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()

    def test_a_request_scores_the_same_alone(self, model: Model, later: Batch) -> None:
        together = model.score(later)
        for which in (0, 7, later.n_requests - 1):
            alone = model.score(later.take_requests(np.array([which])))
            a, b = later.offsets[which], later.offsets[which + 1]
            np.testing.assert_allclose(alone, together[a:b], rtol=1e-5, atol=1e-6)

    def test_comes_back_from_a_folder_bit_for_bit(
        self, model: Model, later: Batch, context: Context, tmp_path: Path
    ) -> None:
        model.save(tmp_path)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert files
        unsafe = [p.name for p in files if re.search(r"\.(pkl|pickle|pt|pth|bin|joblib)$", p.name)]
        assert not unsafe
        again = load_model(self.name, tmp_path, context.catalogue)
        assert again.requires == model.requires
        np.testing.assert_array_equal(again.score(later), model.score(later))
        second = tmp_path / "second"
        second.mkdir()
        again.save(second)
        third = load_model(self.name, second, context.catalogue)
        np.testing.assert_array_equal(third.score(later), model.score(later))

    def test_reads_only_what_it_requires(self, model: Model, later: Batch) -> None:
        order = list(reversed(model.requires))
        narrow = replace(later, names=tuple(order), features=later.columns(order))
        np.testing.assert_array_equal(model.score(narrow), model.score(later))
        if model.requires:
            without = order[1:]
            broken = replace(later, names=tuple(without), features=later.columns(without))
            with pytest.raises((KeyError, ValueError)):
                model.score(broken)

    def test_same_seed_same_model(
        self,
        model: Model,
        make: Callable[..., Learner[Any]],
        train: Examples,
        context: Context,
        later: Batch,
    ) -> None:
        again = make().fit_local(train, context)
        np.testing.assert_array_equal(again.score(later), model.score(later))

    def test_an_unknown_setting_is_refused(self) -> None:
        with pytest.raises(UserError, match="learning_rat_"):
            make_learner(self.name, {"learning_rat_": 0.1})

    def test_nothing_wanted_is_a_users_error(
        self,
        make: Callable[..., Learner[Any]],
        train: Examples,
        context: Context,
        tmp_path: Path,
    ) -> None:
        barren = rewritten(train, tmp_path, lambda t: with_column(t, "label", 0.0))
        for fit in (make().fit_local, make().fit):
            with pytest.raises(UserError, match="no positive label"):
                fit(barren, context)

    def test_somebody_new_gets_finite_scores(self, model: Model, later: Batch) -> None:
        rows = slice(int(later.offsets[4]), int(later.offsets[5]))
        features = later.features[rows].copy()
        for at, name in enumerate(later.names):
            if name.startswith("user_") or name == "covisitation":
                features[:, at] = np.nan
        scores = model.score(request(later, later.item[rows], features, history=[]))
        assert np.isfinite(scores).all()

    def test_one_candidate(self, model: Model, later: Batch) -> None:
        alone = request(later, later.item[:1], later.features[:1], history=[3, 1])
        scores = model.score(alone)
        assert scores.shape == (1,) and np.isfinite(scores).all()

    def test_no_candidate(self, model: Model, later: Batch) -> None:
        nothing = request(later, later.item[:0], later.features[:0], history=[3, 1])
        assert model.score(nothing).shape == (0,)

    def test_a_column_that_knows_nothing(
        self,
        make: Callable[..., Learner[Any]],
        train: Examples,
        context: Context,
        later: Batch,
        tmp_path: Path,
    ) -> None:
        """NaN throughout, in fitting and in scoring: of any column, also of those required."""
        names = make().fit_local(train, context).requires[:1] or ("price",)
        empty = rewritten(train, tmp_path, lambda t: with_column(t, names[0], np.nan))
        blank = later.features.copy()
        blank[:, later.names.index(names[0])] = np.nan
        scores = make().fit_local(empty, context).score(replace(later, features=blank))
        assert np.isfinite(scores).all()

    def test_threads_do_not_disturb_each_other(self, model: Model, later: Batch) -> None:
        from concurrent.futures import ThreadPoolExecutor

        few = [later.take_requests(np.arange(i, i + 5)) for i in range(0, 40, 5)]
        expected = [model.score(batch) for batch in few]
        with ThreadPoolExecutor(4) as pool:
            for scores, right in zip(pool.map(model.score, few * 5), expected * 5, strict=True):
                np.testing.assert_array_equal(scores, right)

    @pytest.mark.slow
    def test_on_ray_with_two_folds(
        self,
        make: Callable[..., Learner[Any]],
        train: Examples,
        context: Context,
        later: Batch,
        ray: None,
    ) -> None:
        """What training does: all folds at once. The second equals the fit of one process."""
        first, second = make().fit_folds([train.with_folds(0), train], context)
        here = make().fit_local(train, context)
        np.testing.assert_allclose(second.score(later), here.score(later), rtol=1e-4, atol=1e-5)
        assert np.isfinite(first.score(later)).all()
        assert not [path for path in context.scratch.rglob("*") if path.is_file()]


class TrainedOnSeveralWorkers:
    """For learners that share one training among workers."""

    @pytest.mark.slow
    def test_two_workers_two_folds(
        self,
        make: Callable[..., Learner[Any]],
        train: Examples,
        context: Context,
        later: Batch,
        ray: None,
    ) -> None:
        two = replace(context, resources=Resources(workers=2))
        judge = NDCG(later)
        chance = judge(np.random.default_rng(0).random(len(later)))
        for model in make().fit_folds([train.with_folds(0), train], two):
            assert judge(model.score(later)) > chance + 0.05


def request(like: Batch, items: Any, features: Any, history: list[int]) -> Batch:
    """One unlabelled request, as when serving."""
    return Batch(
        names=like.names,
        features=features,
        item=np.asarray(items, dtype=np.int32),
        offsets=np.array([0, len(items)], dtype=np.int64),
        history=[np.array(history, dtype=np.int32)],
        user=np.array([-1], dtype=np.int32),
    )


def rewritten(examples: Examples, folder: Path, change: Callable[[pa.Table], pa.Table]) -> Examples:
    """A copy of the examples with every table changed."""
    for kind in ("examples", "requests"):
        for path in examples.files(kind):
            table = pq.read_table(path, partitioning=None)
            place = folder / path.relative_to(examples.root)
            place.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(change(table) if kind == "examples" else table, place)
    return replace(examples, root=folder)


def with_column(table: pa.Table, name: str, value: float) -> pa.Table:
    """The table with one value throughout a float32 column."""
    column = pa.array(np.full(table.num_rows, value, dtype=np.float32))
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
