"""Two towers with copies: of training rows alone, counted in the model and in what train says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.features.examples import Examples
from raysys.learners import load_model, make_learner
from raysys.learners.protocol import Context
from raysys.learners.two_tower_model import META, TwoTowerModel
from tests.learners.suite import rewritten
from tests.synthetic import write_examples
from tests.text.tiny import write_tiny_bert

METHODS = [{"kind": "word_dropout"}, {"kind": "crop"}, {"kind": "insert"}]
AUGMENTED = {"methods": METHODS, "copies": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "model": str(write_tiny_bert(tmp_path_factory.mktemp("bert"))),
        "text": ("title", "brand"),
        "steps": 6,
        "max_tokens": 16,
        "head": {"epochs": 1, "width": 8, "vector_size": 4},
    }


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Examples, Context]:
    folder = tmp_path_factory.mktemp("shop")
    examples, catalogue = write_examples(folder, n_requests=160, n_items=60)
    return examples, Context(catalogue, folder / "scratch", seed=3)


@pytest.fixture(scope="module")
def model(tiny: dict[str, Any], shop: tuple[Examples, Context]) -> TwoTowerModel:
    examples, context = shop
    learner = make_learner("two_tower", {**tiny, "augmentation": AUGMENTED})
    fitted = learner.fit_local(examples.with_folds(0, 1), context)
    assert isinstance(fitted, TwoTowerModel)
    return fitted


def requests_with(least: int, examples: Examples) -> int:
    """Requests with so long a history that one can learn from; of two items a crop changes it."""
    batch = examples.batch()
    assert batch.label is not None
    wanted = np.bincount(batch.group, batch.label > 0, minlength=batch.n_requests) > 0
    return int((wanted & np.array([len(items) >= least for items in batch.history])).sum())


def test_copies_are_of_training_folds_and_counted(
    model: TwoTowerModel, shop: tuple[Examples, Context]
) -> None:
    examples, _ = shop
    assert set(model.augmented) == {"word_dropout", "crop", "insert"}
    train = examples.with_folds(0, 1)
    assert model.augmented["crop"] == 2 * requests_with(2, train)
    assert requests_with(2, examples.with_folds(2)) > 0  # which would have had some, too
    assert 0 < model.augmented["insert"] <= model.augmented["crop"]
    assert model.augmented["word_dropout"] == 2 * requests_with(1, train)


def test_validation_and_report_rows_have_no_part_in_it(
    model: TwoTowerModel, tiny: dict[str, Any], shop: tuple[Examples, Context], tmp_path: Path
) -> None:
    """Other histories in folds 2 and 3: the same copies, the same model. No text was added to it,
    so what it scores is scored as it is."""
    examples, context = shop

    other = rewritten(examples, tmp_path / "other", lambda table: table)
    for path in other.with_folds(2, 3).files("requests"):
        table = pq.read_table(path, partitioning=None)
        turned = [list(reversed(items)) for items in table["history"].to_pylist()]
        place = table.schema.get_field_index("history")
        kind = table.schema.field("history")
        pq.write_table(table.set_column(place, kind, pa.array(turned, kind.type)), path)
    learner = make_learner("two_tower", {**tiny, "augmentation": AUGMENTED})
    again = learner.fit_local(other.with_folds(0, 1), context)
    later = examples.with_folds(2, 3).batch()
    assert isinstance(again, TwoTowerModel)
    assert again.augmented == model.augmented
    np.testing.assert_array_equal(again.score(later), model.score(later))
    assert len(model.vectors) == len(model.texts)


def test_the_watched_tail_is_not_copied(tiny: dict[str, Any], shop: tuple[Examples, Context]
                                        ) -> None:  # fmt: skip
    """A search judges on the last tenth of the rows: they are neither fitted on nor copied."""
    examples, context = shop
    told: list[float] = []
    learner = make_learner("two_tower", {**tiny, "augmentation": AUGMENTED})
    view = examples.with_folds(0, 1)
    fitted = learner.fit_local(view, context, lambda step, value: told.append(value))
    head, _ = view.head_and_tail(learner.settings.last_fraction)
    assert fitted.augmented["crop"] == 2 * requests_with(2, head) < 2 * requests_with(2, view)
    assert told and all(0 < value <= 1 for value in told)


def test_the_counts_come_back_with_the_model(
    model: TwoTowerModel, shop: tuple[Examples, Context], tmp_path: Path
) -> None:
    model.save(tmp_path)
    again = load_model("two_tower", tmp_path, shop[1].catalogue)
    assert again.augmented == model.augmented
    assert json.loads((tmp_path / META).read_text())["augmented"] == model.augmented


def test_copies_change_the_model_and_off_is_off(
    model: TwoTowerModel, tiny: dict[str, Any], shop: tuple[Examples, Context]
) -> None:
    examples, context = shop
    view, later = examples.with_folds(0, 1), examples.with_folds(2).batch()
    without = make_learner("two_tower", tiny).fit_local(view, context)
    off = make_learner("two_tower", {**tiny, "augmentation": {"seed": 9, "copies": 5}})
    same = off.fit_local(view, context)
    assert without.augmented == {} == same.augmented
    np.testing.assert_array_equal(without.score(later), same.score(later))
    assert not np.array_equal(without.score(later), model.score(later))


@pytest.mark.slow
def test_train_says_how_many_copies_there_were(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Through Ray Train with two workers: the counts are of both."""
    from raysys.config import parse_settings
    from raysys.stages import train
    from raysys.storage import read_manifest
    from tests.stages.workspace import write_features

    workspace = write_features(tmp_path)
    content = {
        "learners": {"popular": {}, "two_tower": {**tiny, "augmentation": AUGMENTED}},
        "resources": {"workers": 2, "cpus_per_worker": 1},
    }
    train.run(parse_settings(train.TrainSettings, content, where="test"), workspace)
    augmented = read_manifest(workspace.train).figures["augmented"]
    assert set(augmented) == {"two_tower"}
    train_folds = Examples(workspace.features, (0, 1))
    assert augmented["two_tower"]["crop"] == 2 * requests_with(2, train_folds)
