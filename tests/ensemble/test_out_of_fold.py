"""Out-of-fold by group, and forward folds that are purged: who saw whom."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raysys.catalogue import Catalogue
from raysys.config import Settings
from raysys.ensemble.folds import BaseScores, fit_forward, forward_folds
from raysys.ensemble.out_of_fold import GROUPS, GroupFolds, moments_of, purged
from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.features.examples import Examples, Share
from raysys.learners.protocol import Context, Learner, Model
from tests.synthetic import DAY, write_examples


class Memory(Model):
    """Knows by heart what each user wanted, and nothing else: the leak that groups rule out."""

    def __init__(self, wanted: set[tuple[int, int]], users: set[int]) -> None:
        self.wanted, self.users = wanted, users

    def score(self, batch: Batch) -> np.ndarray:
        pairs = zip(batch.user[batch.group].tolist(), batch.item.tolist(), strict=True)
        return np.array([pair in self.wanted for pair in pairs], dtype=np.float32)

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path, catalogue: Catalogue) -> Memory:
        raise NotImplementedError


class MemoryLearner(Learner[Settings]):
    name = "memory"
    family = "baseline"
    settings_model = Settings
    model_class = Memory

    def fit(self, examples: Examples, context: Context) -> Model:
        batch = examples.batch()
        assert batch.label is not None
        rows = np.flatnonzero(batch.label > 0)
        owners = batch.user[batch.group[rows]].tolist()
        pairs = zip(owners, batch.item[rows].tolist(), strict=True)
        return Memory(set(pairs), set(batch.user.tolist()))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Examples, Catalogue]:
    return write_examples(tmp_path_factory.mktemp("features"), n_requests=160)


def cut(shop: tuple[Examples, Catalogue], folder: Path, folds: int = 3) -> GroupFolds:
    train = shop[0].with_folds(0, 1)
    users = train.requests()["user"].to_numpy().astype(np.int64)
    return GroupFolds.write(folder / GROUPS, "user", train, users, folds, seed=0)


def ordinals(view: Examples) -> set[int]:
    return set(view.requests()["request"].to_pylist())


def users_of(view: Examples) -> set[int]:
    return set(view.requests()["user"].to_pylist())


def test_no_user_is_scored_by_a_model_that_saw_them(
    shop: tuple[Examples, Catalogue], tmp_path: Path
) -> None:
    examples, catalogue = shop
    train, groups = examples.with_folds(0, 1), cut(shop, tmp_path)
    fits = groups.fits(train)
    models = fit_forward(MemoryLearner(Settings()), fits, Context(catalogue, tmp_path))
    for name, model in models.items():
        assert isinstance(model, Memory)
        assert model.users == users_of(fits[name])
        assert not model.users & users_of(groups.scored(train, name))
        assert model.wanted
    scores = groups.score({"memory": models}, train)
    assert scores.request.tolist() == sorted(ordinals(train)) and scores.folds == (0, 1)
    assert not scores.base["memory"].any()  # who knows users by heart knows nothing of these
    whole = MemoryLearner(Settings()).fit(train, Context(catalogue, tmp_path))
    assert whole.score(train.batch()).any()
    assert np.array_equal(scores.label, train.batch().label)  # the rows of the batch, in its order


def test_scores_by_group_are_stored_by_fold_and_come_back(
    shop: tuple[Examples, Catalogue], tmp_path: Path
) -> None:
    examples, catalogue = shop
    train, groups = examples.with_folds(0, 1), cut(shop, tmp_path)
    models = fit_forward(
        MemoryLearner(Settings()), groups.fits(train), Context(catalogue, tmp_path)
    )
    scores = groups.score({"memory": models}, train)
    scores.write(tmp_path)
    again = BaseScores.read(tmp_path, train)
    assert np.array_equal(again.request, scores.request)
    assert np.array_equal(again.judgements.item, scores.judgements.item)
    assert GroupFolds.read(tmp_path / GROUPS) == groups
    assert GroupFolds.read(tmp_path / "none.parquet") is None
    one = again.together((0, 1))
    assert one.folds == (1,) and one.request.tolist() == scores.request.tolist()
    assert again.together((0,)).request.tolist() == sorted(ordinals(examples.with_folds(0)))


def test_a_model_that_saw_the_group_is_refused(
    shop: tuple[Examples, Catalogue], tmp_path: Path
) -> None:
    examples, catalogue = shop
    train, groups = examples.with_folds(0, 1), cut(shop, tmp_path)
    learner, context = MemoryLearner(Settings()), Context(catalogue, tmp_path)
    wrong: Iterable[Examples] = (
        train,
        groups.scored(train, "user=1"),
        replace(train, share=Share(groups.table, 0, inside=False)),
    )
    for view in wrong:
        with pytest.raises(ValueError, match="user=1 would be scored"):
            fit_forward(learner, {"user=1": view}, context)
    content = pq.read_table(groups.table)
    torn = content["share"].to_numpy().copy()
    torn[0] = (torn[0] + 1) % 3  # one request of a user in another share than the others
    pq.write_table(content.set_column(1, "share", [torn]), groups.table)
    with pytest.raises(ValueError, match="saw 1 of it"):
        groups.fits(train)


def test_strangers_are_groups_of_their_own_and_few_groups_are_said(
    shop: tuple[Examples, Catalogue], tmp_path: Path
) -> None:
    train = shop[0].with_folds(0, 1)
    nobody = np.full(train.requests().num_rows, -1, dtype=np.int64)
    groups = GroupFolds.write(tmp_path / GROUPS, "query", train, nobody, 4, seed=0)
    assert groups.names == ("query=0", "query=1", "query=2", "query=3")
    assert len(groups.fits(train)) == 4
    with pytest.raises(UserError, match="1 groups cannot be cut into 2") as raised:
        GroupFolds.write(tmp_path / GROUPS, "query", train, nobody * 0, 2, seed=0)
    assert raised.value.where == "out_of_fold.folds"


@pytest.mark.parametrize("days", [0, 5])
def test_labels_that_overlap_the_scored_fold_are_purged(
    shop: tuple[Examples, Catalogue], tmp_path: Path, days: int
) -> None:
    examples = shop[0]
    forward = forward_folds(examples, 2)
    views = purged(forward, days * DAY, tmp_path)
    for fold, view in views.items():
        begins = moments_of(examples.with_folds(fold)).min()
        assert (moments_of(view) + days * DAY < begins).all()
        gone = ordinals(forward[fold]) - ordinals(view)
        assert bool(gone) == bool(days)
        moments = moments_of(replace(forward[fold], share=None))
        assert len(gone) == int((moments + days * DAY >= begins).sum())
    with pytest.raises(UserError, match="no request is left to fit"):
        purged(forward, 400 * DAY, tmp_path)


def test_the_tail_of_a_share_is_of_that_share(
    shop: tuple[Examples, Catalogue], tmp_path: Path
) -> None:
    train = shop[0].with_folds(0, 1)
    view = cut(shop, tmp_path).fits(train)["user=0"]
    head, tail = view.head_and_tail(0.25)
    assert ordinals(head) | ordinals(tail) == ordinals(view) != ordinals(train)
    assert max(ordinals(head)) < min(ordinals(tail))
    one, other = view.of_worker(0, 2), view.of_worker(1, 2)
    assert ordinals(one) | ordinals(other) == ordinals(view)
