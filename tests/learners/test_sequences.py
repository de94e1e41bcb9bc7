"""Learners of the next item: the suite for each, and what is particular to one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from raysys.errors import UserError
from raysys.learners.sequence_encoder import Encoder, Shape
from raysys.learners.sequence_popularity import ageing
from raysys.learners.sequence_protocol import (
    ItemFacts,
    SequenceContext,
    SequenceModel,
    Sequences,
)
from raysys.learners.sequence_training import Trainer
from raysys.learners.sequences import load_sequence_model, make_sequence_learner
from tests.learners.sequence_suite import N_ITEMS, SequenceSuite, walks

TINY = {"width": 16, "heads": 2, "layers": 1, "epochs": 6, "batch_size": 128, "max_length": 8}


class TestRecentPopularity(SequenceSuite):
    name = "recent_popularity"
    hits: ClassVar[float] = 0.05


class TestItemKNN(SequenceSuite):
    name = "item_knn"


class TestSessionKNN(SequenceSuite):
    name = "session_knn"


@pytest.mark.long
class TestSequenceTransformer(SequenceSuite):
    name = "sequence_transformer"
    settings = {**TINY, "learning_rate": 2e-2}

    def test_a_deadline_ends_it_with_what_it_has(
        self, train: Sequences, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        context = SequenceContext(
            N_ITEMS, deadline=time.monotonic(), report=lambda epoch, model: seen.append(epoch)
        )
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_step", lambda *_: pytest.fail("a step after the deadline"))
            model = self.make(epochs=10_000).fit(train, context)
        assert seen == [1]
        assert np.isfinite(model.score(train.take(np.arange(3)))).all()

    def test_reports_models_that_training_leaves_alone(
        self, train: Sequences, later: Sequences
    ) -> None:
        kept: list[SequenceModel] = []
        scores = []

        def report(epoch: int, model: SequenceModel) -> None:
            kept.append(model)
            scores.append(model.score(later))

        last = self.make(epochs=2).fit(train, SequenceContext(N_ITEMS, report=report))
        np.testing.assert_array_equal(kept[0].score(later), scores[0])
        assert not np.array_equal(scores[0], last.score(later))

    def test_learns_that_nothing_comes_twice(self) -> None:
        """Sessions without repeats: what was seen sinks; with `repeats` off nothing says so."""
        rng = np.random.default_rng(0)
        train = Sequences.of([rng.permutation(12)[:6].tolist() for _ in range(150)])
        context = SequenceContext(12)
        means = {}
        for repeats in (True, False):
            model = self.make(repeats=repeats, epochs=6).fit(train, context)
            scores = model.score(train.take(np.arange(50)).without_last(np.arange(50)))
            shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            means[repeats] = np.mean([shares[i, train[i][:-1]].sum() for i in range(50)])
        assert means[True] < 0.5 * means[False]

    def test_nothing_follows_anything(self) -> None:
        with pytest.raises(UserError, match="no sequence has two items"):
            self.make().fit(Sequences.of([[1], [2]]), SequenceContext(N_ITEMS))

    def test_heads_must_divide_the_width(self) -> None:
        with pytest.raises(UserError, match="heads 3 do not divide width 16"):
            self.make(heads=3)

    @pytest.mark.long
    def test_times_are_read(self, context: SequenceContext) -> None:
        """Short gaps: one item on; long gaps: five on. Only times tell which."""
        rng = np.random.default_rng(0)
        lists, times = [], []
        for _ in range(450):
            start, short = int(rng.integers(0, 20)), bool(rng.random() < 0.5)
            lists.append([start, start + 7, start + (8 if short else 13)])
            times.extend([0.0, 2.0 if short else 90_000.0, 100_000.0])
        train = Sequences.of(lists)
        timed = Sequences(train.items, train.offsets, None, np.array(times))
        model = self.make(epochs=15, batch_size=64).fit(timed, context)
        asked = timed.take(np.arange(100))
        found = model.propose(asked.without_last(np.arange(100)), 1)[0][:, 0]
        assert (found == asked.items[2::3]).mean() > 0.8


@pytest.mark.long
class TestMaskedTransformer(SequenceSuite):
    name = "sequence_transformer"
    settings = {**TINY, "objective": "masked", "negatives": 20, "learning_rate": 1e-2,
                "epochs": 14, "batch_size": 48, "mask_share": 0.4}  # fmt: skip


def test_sequences_age_by_their_place_in_time() -> None:
    told = Sequences.of([[1], [2], [3], [4]], ordered=True)
    np.testing.assert_allclose(ageing(told, 0.25), [0.125, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(ageing(told, 0.0), 1.0)
    np.testing.assert_allclose(ageing(Sequences.of([[1], [2]]), 0.25), 1.0)


def test_prefixes_are_all_beginnings() -> None:
    prefixes, targets = Sequences.of([[1, 2, 3], [4], [], [5, 6]]).prefixes()
    assert [prefixes[i].tolist() for i in range(len(prefixes))] == [[1], [1, 2], [5]]
    assert targets.tolist() == [2, 3, 6]


def test_what_is_seen_again_can_count_or_not() -> None:
    """Sessions that come back: with `again` the item itself is a candidate, without it is not."""
    train = Sequences.of([[1, 2]] * 5 + [[1, 3]] * 4)
    prefix = Sequences.of([[1]])
    for again, expected in ((0.0, 2), (9.0, 1)):
        learner = make_sequence_learner("session_knn", {"again": again})
        model = learner.fit(train, SequenceContext(5))
        assert model.score(prefix)[0].argmax() == expected


def test_an_unknown_learner_and_a_wrong_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no learner of sequences 'gru'"):
        make_sequence_learner("gru", {})
    with pytest.raises(UserError, match=r"learner\.json cannot be read"):
        load_sequence_model(tmp_path)


def test_walks_are_what_they_say() -> None:
    assert walks(50, 0).items.max() <= N_ITEMS - 5


def test_a_batch_whose_every_place_is_hidden_asks_for_no_item() -> None:
    """Short sequences, the last of an epoch: nothing but the mask goes in."""
    offsets = np.arange(N_ITEMS + 1, dtype=np.int64)
    facts = ItemFacts(np.zeros(N_ITEMS, np.int32), offsets, None)
    shape = Shape(N_ITEMS, 8, 1, 2, 6, 0.0, 0.0, False, True, n_attributes=1)
    found = Encoder(shape, facts).item_vectors(torch.empty(0, dtype=torch.int64))
    assert found.shape == (0, 8)


@pytest.mark.parametrize("name", ["recent_popularity", "item_knn", "session_knn"])
def test_what_the_prefix_holds_can_be_left_out(name: str) -> None:
    """Where nobody takes a thing twice, a place given to what was taken is lost."""
    train = Sequences.of([[1, 2, 3], [2, 1, 3], [1, 2, 4], [2, 1, 1]])
    prefixes = Sequences.of([[1, 2, 1], [4], []])
    context = SequenceContext(5)
    as_is = make_sequence_learner(name, {}).fit(train, context).score(prefixes)
    half = make_sequence_learner(name, {"seen": 0.5}).fit(train, context).score(prefixes)
    none = make_sequence_learner(name, {"seen": 0.0}).fit(train, context)
    held = np.zeros((3, 5), dtype=bool)
    held[0, [1, 2]], held[1, 4] = True, True
    assert (as_is[0, [1, 2]] > 0).all()
    np.testing.assert_array_equal(half, np.where(held, as_is / 2, as_is))
    np.testing.assert_array_equal(none.score(prefixes), np.where(held, 0, as_is))
    assert none.propose(prefixes, 1)[0][0, 0] == 3


def test_pieces_hold_every_step_once() -> None:
    told = Sequences.of([[1, 2, 3, 4, 5, 6], [7], [], [8, 9, 10]], ordered=True)
    pieces = told.pieces(3)
    found = [pieces[i].tolist() for i in range(len(pieces))]
    assert found == [[1, 2], [2, 3, 4], [4, 5, 6], [7], [], [8, 9, 10]]
    assert pieces.moment is not None and pieces.moment.tolist() == [0, 0, 0, 1, 2, 3]


def test_some_prefixes_are_those_of_all() -> None:
    told = Sequences.of([[1], [2, 3, 4], [], [5, 6, 7, 8]])
    every, targets = told.prefixes()
    which = np.array([0, 3, 4])
    some, asked = told.prefixes(which, longest=2)
    assert asked.tolist() == targets[which].tolist()
    assert [some[i].tolist() for i in range(3)] == [[2], [5, 6], [6, 7]]
    assert every[4].tolist() == [5, 6, 7]


@pytest.mark.long
def test_the_transformer_learns_all_of_a_long_sequence() -> None:
    """Steps of even items stand before the last piece; only who reads them knows them."""
    rng = np.random.default_rng(0)
    lists = []
    for _ in range(60):
        early = [int(rng.integers(0, 20)) for _ in range(20)]
        late = [int(rng.integers(20, 40)) for _ in range(9)]
        lists.append([each for item in early for each in (item, (item + 7) % 20)] + late)
    train = Sequences.of(lists)
    asked = Sequences.of([[item] for item in range(20)])
    expected = (np.arange(20) + 7) % 20
    hits = {}
    for whole in (True, False):
        settings = {**TINY, "whole": whole, "epochs": 12, "learning_rate": 1e-2, "start": "random"}
        model = make_sequence_learner("sequence_transformer", settings).fit(
            train, SequenceContext(40, seed=1)
        )
        hits[whole] = (model.propose(asked, 1)[0][:, 0] == expected).mean()
    assert hits[True] > 0.8 and hits[False] < 0.3
