"""Slices: every request once, every purchase once, missed ones included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raysys.catalogue import Catalogue
from raysys.evaluation.metrics import Judgements, ndcg
from raysys.evaluation.slices import by_department, by_newness, by_price, read_missed
from raysys.features.examples import Examples
from tests.synthetic import write_examples


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Examples, Catalogue]:
    examples, catalogue = write_examples(tmp_path_factory.mktemp("features"), n_requests=160)
    return examples.with_folds(3), catalogue


def test_what_was_missed_completes_what_was_bought(shop: tuple[Examples, Catalogue]) -> None:
    examples, _ = shop
    judgements = Judgements.of(examples.batch())
    missed = read_missed(examples, "price")
    found = np.bincount(judgements.owner, minlength=judgements.n_requests)
    found += np.bincount(missed.owner, minlength=judgements.n_requests)
    assert np.array_equal(found, judgements.n_relevant)
    assert len(missed.item) > 0
    assert np.isfinite(missed.price).all()


def test_newness_takes_every_request_once(shop: tuple[Examples, Catalogue]) -> None:
    examples, _ = shop
    judgements = Judgements.of(examples.batch())
    n_orders = examples.requests()["n_orders"].to_numpy()
    slices = by_newness(judgements, n_orders)
    assert slices[0].name == "new: 0 orders"
    assert slices[0].requests == (n_orders == 0).sum()
    assert sum(part.requests for part in slices) == judgements.n_requests
    scores = np.arange(len(judgements.item), dtype=np.float32)
    whole = ndcg(judgements, judgements.ranks(scores))
    for part in slices:
        mine = ndcg(part.judgements, part.judgements.ranks(scores))
        inside = ~np.isnan(mine)
        np.testing.assert_allclose(mine[inside], whole[inside])


def test_departments_and_prices_take_every_purchase_once(
    shop: tuple[Examples, Catalogue],
) -> None:
    examples, catalogue = shop
    batch = examples.batch()
    judgements = Judgements.of(batch)
    missed = read_missed(examples, "price")
    price = batch.column("price").astype(np.float64)
    price[::7] = np.nan
    for slices in (
        by_department(judgements, missed, catalogue, most=3),
        by_price(judgements, missed, price),
    ):
        total = sum(part.judgements.n_relevant for part in slices)
        assert np.array_equal(total, judgements.n_relevant)
        assert sum(len(part.judgements.relevant) for part in slices) == len(judgements.relevant)
    names = [part.name for part in by_price(judgements, missed, price)]
    assert names[0].startswith("under ") and names[-1] == "price unknown"
    departments = by_department(judgements, missed, catalogue, most=3)
    assert [part.name for part in departments][-1] == "all others"
    kind, labels = catalogue.codes("department")
    first = departments[0]
    rows = judgements.relevant[np.isin(judgements.relevant, first.judgements.relevant)]
    assert {labels[kind[judgements.item[row]]] for row in rows} == {first.name}


def test_a_department_counts_its_own_items_only() -> None:
    """Two relevant of different kinds: each slice sees one, in the list as it was served."""
    judgements = Judgements(
        np.array([0, 1, 2], np.int32),
        np.array([1, 1, 0], np.float32),
        np.array([0, 3]),
        np.array([2], np.int32),
    )
    ranks = np.array([3, 2, 1], np.float32)
    second = judgements.only(np.array([False, True, False]), np.array([1], np.int32))
    assert ndcg(second, second.ranks(ranks))[0] == pytest.approx(1 / np.log2(3))


def test_unknown_prices_everywhere_give_no_bands(
    shop: tuple[Examples, Catalogue], tmp_path: Path
) -> None:
    examples, _ = shop
    judgements = Judgements.of(examples.batch())
    nothing = np.full(len(judgements.item), np.nan)
    assert by_price(judgements, read_missed(examples, None), nothing) == []
