"""What the towers are fine-tuned on, with copies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysys.catalogue import Catalogue
from raysys.features.examples import Examples
from raysys.text.augment import Augmentation
from raysys.text.augment.pairs import PairCopies, augment_pairs
from raysys.text.encoder import Encoder
from raysys.text.histories import PAD, history_codes
from raysys.text.items import ItemTexts, item_texts
from raysys.text.towers import sampled_softmax_loss
from raysys.text.tuning import Course, Requests
from tests.synthetic import write_examples
from tests.text.tiny import write_tiny_bert

LENGTH = 12
COURSE = Course(
    steps=6, batch_size=16, history_sample=20, negatives=3, learning_rate=1e-3,
    head_learning_rate=1e-3, warm_up=0.1, weight_decay=0.0, temperature=0.1,
    popularity_correction=1.0,
)  # fmt: skip
SETTINGS = Augmentation(
    methods=(
        {"kind": "word_dropout", "probability": 0.5}, {"kind": "crop"}, {"kind": "mask"},
        {"kind": "substitute"},
    ),
    copies=2,
    seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Examples, Catalogue]:
    return write_examples(tmp_path_factory.mktemp("shop"), n_requests=160, n_items=60)


@pytest.fixture(scope="module")
def train(shop: tuple[Examples, Catalogue]) -> Any:
    return shop[0].with_folds(0, 1).batch()


@pytest.fixture(scope="module")
def texts(shop: tuple[Examples, Catalogue]) -> ItemTexts:
    return item_texts(shop[1], ("title", "brand"))


@pytest.fixture(scope="module")
def copies(train: Any, texts: ItemTexts) -> PairCopies:
    return augment_pairs(train, texts, LENGTH, SETTINGS)


def test_a_copy_is_a_changed_history_of_its_request(
    copies: PairCopies, train: Any, texts: ItemTexts
) -> None:
    history = history_codes(train.history, texts, LENGTH)
    assert copies.row.tolist() == sorted(copies.row)
    assert (copies.history != history[copies.row]).any(axis=1).all()
    assert (copies.history[:, 0] != PAD).all()
    by_text = copies.augmented == "word_dropout"
    every = [*texts.distinct, *copies.texts]
    assert copies.history.max() < len(every)
    assert copies.history[~by_text].max() < len(texts)
    for row, codes in zip(copies.row[by_text], copies.history[by_text], strict=True):
        for old, new in zip(history[row], codes, strict=True):
            assert (old == PAD) == (new == PAD)
            if new != PAD:
                words = iter(every[old].split())
                assert all(word in words for word in every[new].split())
    assert copies.counts(SETTINGS).keys() == {"word_dropout", "crop", "mask", "substitute"}
    wanted = np.bincount(train.group, train.label > 0, minlength=train.n_requests) > 0
    long = np.array([len(items) >= 2 for items in train.history])
    assert copies.counts(SETTINGS)["crop"] == 2 * (long & wanted).sum()
    some = (wanted & (history[:, 0] != PAD)).sum()
    assert copies.counts(SETTINGS)["word_dropout"] == pytest.approx(some, rel=0.3)


def test_a_worker_makes_the_copies_of_its_own_requests(
    copies: PairCopies, shop: tuple[Examples, Catalogue], train: Any, texts: ItemTexts
) -> None:
    """Substitution looks at what the worker has; the rest is the same on any number of workers."""
    without = SETTINGS.model_copy(update={"methods": SETTINGS.methods[:3]})

    def told(batch: Any, found: PairCopies) -> set[tuple[Any, ...]]:
        every = [*texts.distinct, *found.texts, ""]
        return {
            (int(batch.request[row]), name, tuple(every[code] for code in codes))
            for row, name, codes in zip(found.row, found.augmented, found.history, strict=True)
        }

    whole = told(train, augment_pairs(train, texts, LENGTH, without))
    parts = set()
    for rank in (0, 1):
        batch = shop[0].with_folds(0, 1).of_worker(rank, 2).batch()
        parts |= told(batch, augment_pairs(batch, texts, LENGTH, without))
    assert parts == whole


def test_lessons_have_copies_that_want_what_the_original_wants(
    copies: PairCopies, train: Any, texts: ItemTexts
) -> None:
    plain, more = Requests(train, texts, LENGTH), Requests(train, texts, LENGTH, copies)
    added = more.useful[len(plain.useful) :] - train.n_requests
    assert set(copies.row[added]) <= set(plain.useful)
    for at in added:
        wanted = more.positives[train.n_requests + at]
        np.testing.assert_array_equal(wanted, plain.positives[copies.row[at]])
    assert more.weight is not None
    source = np.concatenate([np.arange(train.n_requests), copies.row])
    sums = np.bincount(source, more.weight)
    np.testing.assert_allclose(sums, 1, rtol=1e-6)
    for lesson in more.lessons(COURSE, seed=1):
        assert lesson.weight is not None and lesson.weight.min() > 0
        assert (lesson.texts[lesson.columns] < len(texts)).all()  # only items are ranked
    assert max(lesson.texts.max() for lesson in more.lessons(COURSE, 1)) >= len(texts)
    full = Requests(train, texts, LENGTH, replace(copies, weights="full"))
    assert full.weight is not None and (full.weight == 1).all()


def test_off_is_as_before(train: Any, texts: ItemTexts) -> None:
    """No copies: the same lessons, and no weights, so nobody's figures move."""
    plain = Requests(train, texts, LENGTH)
    none = Requests(train, texts, LENGTH, augment_pairs(train, texts, LENGTH, Augmentation()))
    assert plain.weight is None
    for left, right in zip(plain.lessons(COURSE, 1), none.lessons(COURSE, 1), strict=True):
        assert left.weight is None
        np.testing.assert_array_equal(left.texts, right.texts)
        np.testing.assert_array_equal(left.history, right.history)


def test_weights_are_those_of_a_weighted_mean() -> None:
    """An example thrice with a third of the weight is the example once."""
    generator = torch.manual_seed(0)
    scores = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    positive = torch.tensor([[True, False, True, False], [False, True, False, False]])
    log_q = torch.zeros(4, dtype=torch.float64)
    once = sampled_softmax_loss(scores, positive, log_q, 0.5)
    which = torch.tensor([0, 1, 0, 0])
    third = torch.tensor([1 / 3, 1, 1 / 3, 1 / 3], dtype=torch.float64)
    thrice = sampled_softmax_loss(scores[which], positive[which], log_q, 0.5, third)
    assert float(thrice) == pytest.approx(float(once), rel=1e-12)
    unweighted = sampled_softmax_loss(scores[which], positive[which], log_q, 0.5)
    assert float(unweighted) != pytest.approx(float(once), rel=1e-3)


def test_further_texts_are_read_as_texts_of_the_catalogue(tmp_path: Path) -> None:
    encoder = Encoder.open(str(write_tiny_bert(tmp_path)), 16, 1)
    lines = ["whole milk, acme", "bread", "milk", "cheddar cheese, dairy"]
    whole = encoder.states(lines)
    joined = encoder.states(lines[:2]).followed_by(encoder.states(lines[2:]))
    assert len(joined) == 4
    left, right = encoder.vectors(whole), encoder.vectors(joined)
    torch.testing.assert_close(left, right, atol=2e-3, rtol=0)
