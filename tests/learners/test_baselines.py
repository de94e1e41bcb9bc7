from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.learners import make_learner
from raysys.learners.baselines import ColumnModel
from raysys.learners.protocol import Context
from tests.learners.suite import LearnerSuite
from tests.synthetic import write_examples


class TestPopular(LearnerSuite):
    name = "popular"


class TestRepeatPurchase(LearnerSuite):
    name = "repeat_purchase"

    def test_popularity_orders_what_was_never_bought(self, later: Batch) -> None:
        model = ColumnModel("user_item_purchases_112d", -1.0, "item_purchases_28d")
        features = np.full((4, len(later.names)), np.nan, dtype=np.float32)
        bought, popular = (later.names.index(name) for name in model.requires)
        features[:, bought] = [np.nan, np.nan, 0.5, 0.9]
        features[:, popular] = [50, 4, 0, np.nan]
        batch = replace(later.take_requests(np.array([0])), features=features)
        assert np.argsort(-model.score(batch)).tolist() == [3, 2, 0, 1]


class TestCoOccurrence(LearnerSuite):
    name = "co_occurrence"


def test_a_column_the_plan_lacks_is_a_users_error(tmp_path: Path) -> None:
    examples, catalogue = write_examples(tmp_path, n_requests=40, n_items=40)
    learner = make_learner("popular", {"column": "item_purchases_28"})
    with pytest.raises(UserError, match="did you mean 'item_purchases_28d'"):
        learner.fit(examples, Context(catalogue, tmp_path))
