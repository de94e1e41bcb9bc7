"""Fits that were killed go on from their checkpoint, and end as if they had not been."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raysys.learners import make_learner
from raysys.learners.pieces import Pieces
from raysys.learners.protocol import Context
from raysys.storage import CheckpointFolder
from tests.synthetic import write_examples
from tests.text.tiny import write_tiny_bert

TREES = {"n_estimators": 47, "early_stopping_rounds": 46, "subsample": 0.7, "colsample": 0.6}
EXACT = {
    "lightgbm_ranker": {**TREES, "num_leaves": 7, "min_child_samples": 5},
    "xgboost_ranker": {**TREES, "max_depth": 3},
}


class KilledError(Exception):
    """Stands for the kill: the fit ends between two steps, nothing is cleaned up."""


def killer(at: int, told: list[tuple[int, float]]):
    def report(step: int, score: float) -> None:
        told.append((step, score))
        if step == at:
            raise KilledError

    return report


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    examples, catalogue = write_examples(tmp_path_factory.mktemp("shop") / "features", 240, 100)
    scratch = tmp_path_factory.mktemp("scratch")
    return examples, Context(catalogue, scratch, seed=3)


@pytest.mark.parametrize("name", EXACT)
def test_killed_twice_the_trees_are_the_same_bits(name, shop, tmp_path):
    examples, context = shop
    train, judged = examples.with_folds(0, 1), examples.with_folds(2).batch()
    learner = make_learner(name, EXACT[name])

    whole: list[tuple[int, float]] = []
    alone = replace(context, checkpoint=CheckpointFolder(tmp_path / "alone", 10))
    expected = learner.fit_local(train, alone, lambda *each: whole.append(each)).score(judged)

    place = replace(context, checkpoint=CheckpointFolder(tmp_path / "killed", 10))
    told: list[tuple[int, float]] = []
    for at in (13, 28):
        with pytest.raises(KilledError):
            learner.fit_local(train, place, killer(at, told))
    model = learner.fit_local(train, place, lambda *each: told.append(each))
    np.testing.assert_array_equal(model.score(judged), expected)
    steps = [step for step, _ in told]
    assert steps.index(28) - steps.index(13) == 18, "goes on at 11, not at 1"
    assert dict(told) == dict(whole)


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    settings = {
        "model": str(write_tiny_bert(tmp_path_factory.mktemp("bert"))),
        "text": ("title", "category"),
        "steps": 8,
        "batch_size": 8,
        "head": {"epochs": 2, "width": 8, "vector_size": 4, "batch_size": 16, "dropout": 0.3},
    }
    return make_learner("two_tower", settings)


@pytest.mark.parametrize("cuts", [(3, 6), (10, 13)], ids=["towers", "head"])
def test_killed_twice_two_towers_are_the_same_bits(towers, shop, tmp_path, cuts, monkeypatch):
    """Killed where a checkpoint was just written: nothing of the process's memory is left."""
    examples, context = shop
    train, judged = examples.with_folds(0, 1), examples.with_folds(2).batch()
    alone = replace(context, checkpoint=CheckpointFolder(tmp_path / "alone", 3))
    expected = towers.fit_local(train, alone).score(judged)

    place = replace(context, checkpoint=CheckpointFolder(tmp_path / "killed", 3))
    writing, written, waiting = CheckpointFolder.writing, [], list(cuts)

    @contextlib.contextmanager
    def killed_after(folder, step):
        with writing(folder, step) as fresh:
            yield fresh
        at = step + (8 if folder.root.name == "head" else 0)
        written.append(at)
        if waiting and at >= waiting[0]:
            waiting.pop(0)
            raise KilledError

    monkeypatch.setattr(CheckpointFolder, "writing", killed_after)
    for _ in cuts:
        with pytest.raises(KilledError):
            towers.fit_local(train, place)
    model = towers.fit_local(train, place)
    np.testing.assert_array_equal(model.score(judged), expected)
    assert written == sorted(set(written)), "no step was taken twice"


EPOCHS = {
    "history": 12,
    "settings": {"width": 16, "layers": 1, "epochs": 8, "batch_size": 32, "negatives": 20},
}


@pytest.mark.long
@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_killed_twice_a_sequence_transformer_is_the_same_bits(objective, shop, tmp_path):
    """What numpy and torch draw goes on where it stood: order, hidden places, dropout."""
    examples, context = shop
    train, judged = examples.with_folds(0, 1), examples.with_folds(2).batch()
    settings = {**EPOCHS["settings"], "objective": objective}
    learner = make_learner("next_item", {**EPOCHS, "settings": settings})

    whole: list[tuple[int, float]] = []
    expected = learner.fit_local(train, context, lambda *each: whole.append(each)).score(judged)
    ends = [step for step, _ in whole]
    assert ends == list(range(1, len(ends) + 1)) and len(ends) >= 6
    assert len({score for _, score in whole}) > 1, "it is the model so far that is judged"

    place = replace(context, checkpoint=CheckpointFolder(tmp_path / "killed", 2))
    told: list[tuple[int, float]] = []
    for at in (3, 5):
        with pytest.raises(KilledError):
            learner.fit_local(train, place, killer(at, told))
    model = learner.fit_local(train, place, lambda *each: told.append(each))
    np.testing.assert_array_equal(model.score(judged), expected)
    steps = [step for step, _ in told]
    assert steps == [1, 2, 3, 3, 4, 5, 5, *ends[5:]], "goes on after 2 and after 4"
    assert dict(told) == dict(whole)
    again = learner.fit_local(train, place, killer(0, told))
    assert len(told) == len(steps), "an ended fit is not fitted again"
    np.testing.assert_array_equal(again.score(judged), expected)


def test_the_tail_that_judges_is_not_learned_from(shop, monkeypatch):
    from raysys.learners import next_item

    examples, context = shop
    seen = []
    sequences = next_item.shop_sequences

    def watched(view, history):
        seen.append(view)
        return sequences(view, history)

    monkeypatch.setattr(next_item, "shop_sequences", watched)
    learner = make_learner("next_item", {**EPOCHS, "last_fraction": 0.25})
    learner.fit_local(examples.with_folds(0), context, lambda *_: None)
    learner.fit_local(examples.with_folds(0), context)
    watched_by, whole = (view.requests().num_rows for view in seen)
    assert watched_by == whole - round(whole * 0.25)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    settings = {
        "model": str(write_tiny_bert(tmp_path_factory.mktemp("bert"))),
        "text": ("title", "category"),
        "max_tokens": 24,
        "history": 4,
        "requests": 60,
        "training": {
            "max_steps": 14,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "evaluate_every": {"steps": 4},
        },
    }
    return make_learner("cross_encoder_ranker", settings)


@pytest.mark.long
def test_killed_twice_a_cross_encoder_is_the_same_bits(reader, shop, tmp_path):
    examples, context = shop
    train = examples.with_folds(0, 1)
    judged = examples.with_folds(2).batch().take_requests(np.arange(12))
    whole: list[tuple[int, float]] = []
    expected = reader.fit_local(train, context, lambda *each: whole.append(each)).score(judged)
    assert [step for step, _ in whole] == [4, 8, 12, 14]

    place = replace(context, checkpoint=CheckpointFolder(tmp_path / "killed", 3))
    told: list[tuple[int, float]] = []
    for at in (8, 12):
        with pytest.raises(KilledError):
            reader.fit_local(train, place, killer(at, told))
    model = reader.fit_local(train, place, lambda *each: told.append(each))
    np.testing.assert_array_equal(model.score(judged), expected)
    assert [step for step, _ in told] == [4, 8, 8, 12, 12, 14], "goes on after 6 and after 9"
    assert dict(told) == dict(whole)


@pytest.mark.long
def test_a_cross_encoder_killed_while_it_is_judged_is_not_fitted_again(reader, shop, tmp_path):
    examples, context = shop
    judged = examples.with_folds(2).batch().take_requests(np.arange(12))
    place = replace(context, checkpoint=CheckpointFolder(tmp_path / "ended", 10))
    first = reader.fit_local(examples.with_folds(0, 1), place)
    told: list[tuple[int, float]] = []
    again = reader.fit_local(examples.with_folds(0, 1), place, lambda *each: told.append(each))
    assert told == []
    np.testing.assert_array_equal(first.score(judged), again.score(judged))
    assert not list(context.scratch.rglob("cross_encoder_ranker*")), "nothing is left elsewhere"


def test_an_ended_fit_is_not_fitted_again(shop, tmp_path):
    examples, context = shop
    place = replace(context, checkpoint=CheckpointFolder(tmp_path / "ended", 10))
    learner = make_learner("lightgbm_ranker", EXACT["lightgbm_ranker"])
    first = learner.fit_local(examples.with_folds(0, 1), place)
    told: list[tuple[int, float]] = []
    again = learner.fit_local(examples.with_folds(0, 1), place, lambda *each: told.append(each))
    assert told == []
    judged = examples.with_folds(2).batch()
    np.testing.assert_array_equal(first.score(judged), again.score(judged))


def test_a_kill_while_writing_leaves_the_checkpoint_before(tmp_path: Path):
    folder = CheckpointFolder(tmp_path / "fit", 5)
    assert folder.last() is None
    with folder.writing(5) as fresh:
        (fresh / "state").write_text("5")
    with pytest.raises(KilledError), folder.writing(10) as fresh:
        (fresh / "state").write_text("half of 1")
        raise KilledError
    assert (folder.last() / "state").read_text() == "5"
    with folder.writing(10) as fresh:
        (fresh / "state").write_text("10")
    assert [path.name for path in folder.root.iterdir()] == ["step-000000010"]
    assert folder.due(15) and not folder.due(16)


def test_patience_reaches_over_pieces(tmp_path: Path):
    def course(folder: CheckpointFolder | None) -> Pieces:
        values = [0.1, 0.3, 0.2, 0.3, 0.25, 0.2, 0.9]
        pieces = Pieces(7, 4, None, folder)
        for start, stop in pieces:
            for step in range(start, stop):
                if pieces.tell(values[step]):
                    stop = step + 1
                    break
            pieces.keep(stop, b"trees")
        return pieces

    for folder in (None, CheckpointFolder(tmp_path / "pieces", 2)):
        pieces = course(folder)
        assert (pieces.best, len(pieces.scores)) == (2, 6)
    shutil.rmtree(tmp_path / "pieces")


SEQUENCES = {"width": 16, "layers": 1, "epochs": 3, "batch_size": 128, "learning_rate": 2e-2}


def test_folds_of_sequences_share_no_checkpoint(shop, tmp_path):
    """The second would go on where the first ended, and know what it must not."""
    examples, context = shop
    folds = [examples.with_folds(0), examples.with_folds(0, 1)]
    judged = examples.with_folds(2).batch()
    learner = make_learner("next_item", {"settings": SEQUENCES, "history": 12})
    alone = learner.fit_folds(folds, replace(context, checkpoint=None))
    kept = CheckpointFolder(tmp_path / "kept", 5)
    beside = learner.fit_folds(folds, replace(context, checkpoint=kept))
    again = learner.fit_folds(folds, replace(context, checkpoint=kept))
    for one, other, third in zip(alone, beside, again, strict=True):
        np.testing.assert_array_equal(one.score(judged), other.score(judged))
        np.testing.assert_array_equal(one.score(judged), third.score(judged))
