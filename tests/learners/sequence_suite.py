"""One suite for every learner of the next item: a new one inherits it, names itself, is tested.

class TestMine(SequenceSuite):
    name = "mine"
    settings = {"epochs": 3}
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from raysys.errors import UserError
from raysys.learners.sequence_protocol import (
    ItemFacts,
    SequenceContext,
    SequenceModel,
    Sequences,
)
from raysys.learners.sequences import (
    SEQUENCE_LEARNERS,
    load_sequence_model,
    make_sequence_learner,
    save_sequence_model,
)

N_ITEMS = 40


def walks(n: int, seed: int) -> Sequences:
    """Sessions that walk: the next item is mostly the one after, at times one seen before."""
    rng = np.random.default_rng(seed)
    lists = []
    for _ in range(n):
        at = int(rng.integers(0, N_ITEMS - 5))
        session = [at]
        for _ in range(int(rng.integers(1, 6))):
            draw = rng.random()
            at = at + 1 if draw < 0.8 else int(rng.integers(0, N_ITEMS - 5))
            session.append(min(at, N_ITEMS - 5))  # the last items never come up
        lists.append(session)
    return Sequences.of(lists, ordered=True)


class SequenceSuite:
    """What holds for every learner of the next item."""

    name: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}
    hits: ClassVar[float] = 0.6
    """Share of walks whose next item must be among the first five."""

    @pytest.fixture(scope="class")
    @classmethod
    def train(cls) -> Sequences:
        return walks(300, 0)

    @pytest.fixture(scope="class")
    @classmethod
    def later(cls) -> Sequences:
        return walks(60, 1)

    @pytest.fixture(scope="class")
    @classmethod
    def facts(cls) -> ItemFacts:
        rng = np.random.default_rng(5)
        offsets = np.arange(N_ITEMS + 1, dtype=np.int64) // 2  # every other item has one
        attributes = rng.integers(0, 4, int(offsets[-1])).astype(np.int32)
        return ItemFacts(attributes, offsets, rng.standard_normal((N_ITEMS, 3)).astype(np.float32))

    @pytest.fixture(scope="class")
    @classmethod
    def context(cls, facts: ItemFacts) -> SequenceContext:
        return SequenceContext(N_ITEMS, facts, seed=3)

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, train: Sequences, context: SequenceContext) -> SequenceModel:
        return cls.make().fit(train, context)

    @classmethod
    def make(cls, **changed: Any) -> Any:
        return make_sequence_learner(cls.name, {**cls.settings, **changed})

    def test_is_listed(self) -> None:
        assert self.make().name == self.name in SEQUENCE_LEARNERS
        assert self.make().family in {"transformer", "baseline"}

    def test_finds_what_comes_next(self, model: SequenceModel, later: Sequences) -> None:
        prefixes, targets = later.prefixes()
        items, _ = model.propose(prefixes, 5)
        assert (items == targets[:, None]).any(axis=1).mean() > self.hits

    def test_scores_every_item(self, model: SequenceModel, later: Sequences) -> None:
        scores = model.score(later)
        assert scores.shape == (len(later), N_ITEMS) and scores.dtype == np.float32
        assert np.isfinite(scores).all()
        if model.scale == "share":
            assert (scores >= 0).all()

    def test_proposes_its_best(self, model: SequenceModel, later: Sequences) -> None:
        scores = model.score(later)
        items, values = model.propose(later, 7)
        np.testing.assert_array_equal(items, np.argsort(-scores, axis=1, kind="stable")[:, :7])
        np.testing.assert_array_equal(values, np.take_along_axis(scores, items, axis=1))
        assert model.propose(later, 10 * N_ITEMS)[0].shape == (len(later), N_ITEMS)

    def test_a_prefix_scores_the_same_alone(self, model: SequenceModel, later: Sequences) -> None:
        together = model.score(later)
        for i in (0, 7, len(later) - 1):
            alone = model.score(later.take(np.array([i])))
            np.testing.assert_allclose(alone[0], together[i], rtol=1e-4, atol=1e-5)

    def test_nothing_seen_and_never_seen(self, model: SequenceModel) -> None:
        scores = model.score(Sequences.of([[], [N_ITEMS - 1], [3] * 80]))
        assert np.isfinite(scores).all()
        assert scores[0].argmax() < N_ITEMS - 4  # something that was taken at all

    def test_no_prefix(self, model: SequenceModel) -> None:
        assert model.score(Sequences.of([])).shape == (0, N_ITEMS)

    def test_comes_back_from_a_folder_bit_for_bit(
        self, model: SequenceModel, later: Sequences, tmp_path: Path
    ) -> None:
        save_sequence_model(self.name, model, tmp_path / "model")
        names = [path.name for path in (tmp_path / "model").iterdir()]
        assert not [n for n in names if re.search(r"\.(pkl|pickle|pt|pth|bin|joblib)$", n)]
        again = load_sequence_model(tmp_path / "model")
        np.testing.assert_array_equal(again.score(later), model.score(later))

    def test_same_seed_same_model(
        self, model: SequenceModel, train: Sequences, later: Sequences, context: SequenceContext
    ) -> None:
        again = self.make().fit(train, context)
        np.testing.assert_array_equal(again.score(later), model.score(later))

    def test_refits_to_more(
        self, model: SequenceModel, train: Sequences, later: Sequences, context: SequenceContext
    ) -> None:
        before = model.score(later)
        more = self.make().refit(model, train, context)
        assert np.isfinite(more.score(later)).all()
        np.testing.assert_array_equal(model.score(later), before)

    def test_an_unknown_setting_is_refused(self) -> None:
        with pytest.raises(UserError, match="half_lif_"):
            self.make(half_lif_=0.1)

    def test_threads_do_not_disturb_each_other(
        self, model: SequenceModel, later: Sequences
    ) -> None:
        few = [later.take(np.arange(i, i + 5)) for i in range(0, 40, 5)]
        expected = [model.score(part) for part in few]
        with ThreadPoolExecutor(4) as pool:
            for scores, right in zip(pool.map(model.score, few * 3), expected * 3, strict=True):
                np.testing.assert_array_equal(scores, right)
