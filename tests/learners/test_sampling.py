from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raysys.features.batch import Batch
from raysys.learners.sampling import thinned, with_some_positive
from tests.synthetic import write_examples


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    folder: Path = tmp_path_factory.mktemp("shop")
    return write_examples(folder, n_requests=120, n_items=60)[0].with_folds(0, 1, 2).batch()


def rows(batch: Batch) -> set[tuple[int, int]]:
    return set(zip(batch.group.tolist(), batch.item.tolist(), strict=True))


def test_what_was_wanted_is_kept(batch: Batch) -> None:
    thin = thinned(batch, 8, 5, "some")
    assert batch.label is not None and thin.label is not None
    assert thin.label.sum() == batch.label.sum()
    assert thin.sizes.max() == 8 and thin.n_requests == batch.n_requests
    assert rows(thin) <= rows(batch)
    assert thinned(batch, 0, 5, "some") is batch


def test_each_learner_draws_others_and_the_same_again(batch: Batch) -> None:
    thin = thinned(batch, 8, 5, "some")
    assert rows(thin) == rows(thinned(batch, 8, 5, "some"))
    assert rows(thin) != rows(thinned(batch, 8, 5, "other"))
    assert rows(thin) != rows(thinned(batch, 8, 6, "some"))


def test_requests_without_a_pair_are_left_out(batch: Batch) -> None:
    useful = with_some_positive(batch)
    assert useful.label is not None
    positives = np.bincount(useful.group, useful.label > 0, minlength=useful.n_requests)
    assert (positives > 0).all() and (useful.sizes > 1).all()
