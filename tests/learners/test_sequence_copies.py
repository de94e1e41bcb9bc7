"""Changed copies of sequences: of what is learned alone, weighed with their originals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raysys.errors import UserError
from raysys.learners import make_learner
from raysys.learners.sequence_copies import with_copies
from raysys.learners.sequence_protocol import SequenceContext, Sequences
from raysys.learners.sequences import (
    load_sequence_model,
    make_sequence_learner,
    save_sequence_model,
)
from raysys.text.augment import Augmentation
from tests.learners.sequence_suite import N_ITEMS, walks

TINY = {"width": 8, "heads": 1, "layers": 1, "epochs": 1, "batch_size": 256, "max_length": 8}
PIECES = Sequences.of(
    [[1, 2, 3, 4, 5, 6], [7, 8], [9, 10, 11], [4, 4, 4], [5, 3, 2, 1], [1, 3, 2], [2, 1, 3]],
    ordered=True,
)


def copied(kind: str, pieces: Sequences = PIECES, **more: object) -> Sequences:
    settings = Augmentation(methods=({"kind": kind},), **more)  # type: ignore[arg-type]
    every, _, made = with_copies(pieces, settings, 20, 9)
    copies = every.take(np.arange(len(pieces), len(every)))
    assert made == {kind: len(copies)}
    for i in range(len(pieces)):
        assert np.array_equal(every[i], pieces[i])
    return copies


@pytest.mark.parametrize("kind", ["crop", "mask", "reorder", "substitute", "insert"])
def test_copies_come_behind_and_hold_what_the_method_says(kind: str) -> None:
    copies = copied(kind, copies=4)
    assert len(copies) and (copies.sizes > 1).all()
    assert copies.items.min() >= 0, "what is masked is left out"
    assert copies.moment is not None and PIECES.moment is not None
    assert set(copies.moment) <= set(PIECES.moment)
    for i in range(len(copies)):
        before, after = PIECES[int(copies.moment[i])].tolist(), copies[i].tolist()
        assert after != before
        if kind == "crop":
            starts = range(len(before) - len(after) + 1)
            assert any(before[a : a + len(after)] == after for a in starts)
        if kind == "mask":
            rest = iter(before)
            assert all(item in rest for item in after)  # in their order
        if kind == "reorder":
            assert sorted(after) == sorted(before)
        if kind == "substitute":
            assert len(after) == len(before)
        if kind == "insert":
            assert len(after) > len(before)


def test_a_sequence_and_its_copies_are_drawn_as_often_as_it_was_alone() -> None:
    for weights in ("shared", "full"):
        told = Augmentation(methods=({"kind": "crop"},), copies=3, weights=weights)
        every, share, _ = with_copies(PIECES, told, 20, 9)
        assert every.moment is not None
        drawn = np.bincount(every.moment.astype(int), share)
        if weights == "shared":
            np.testing.assert_allclose(drawn, 1)
        else:
            assert drawn[0] == np.count_nonzero(every.moment == 0) > 1


def test_nothing_is_drawn_without_methods_and_the_same_with_them() -> None:
    every, share, made = with_copies(PIECES, Augmentation(), 20, 9)
    assert every is PIECES and share.tolist() == [1] * 7 and made == {}
    one, other = copied("reorder"), copied("reorder")
    assert np.array_equal(one.items, other.items)
    assert not np.array_equal(one.items, copied("reorder", seed=1).items)
    longer = Sequences.of([[1, 2] * 4, [1, 2, 1]] * 3)
    assert copied("insert", longer).sizes.max() == 9, "the last that the encoder reads"


@pytest.mark.long
def test_a_transformer_learns_from_copies_and_says_how_many(tmp_path: Path) -> None:
    train = walks(60, seed=1)
    context = SequenceContext(N_ITEMS, seed=2)
    plain = make_sequence_learner("sequence_transformer", TINY).fit(train, context)
    told = {**TINY, "augmentation": {"methods": [{"kind": "crop"}, {"kind": "insert"}]}}
    model = make_sequence_learner("sequence_transformer", told).fit(train, context)
    assert plain.augmented == {} and set(model.augmented) == {"crop", "insert"}
    assert all(count > 0 for count in model.augmented.values())
    asked = train.take(np.arange(3))
    assert not np.array_equal(model.score(asked), plain.score(asked))
    save_sequence_model("sequence_transformer", model, tmp_path / "model")
    again = load_sequence_model(tmp_path / "model")
    assert again.augmented == model.augmented
    assert np.array_equal(again.score(asked), model.score(asked))


def test_what_has_nothing_to_change_is_refused() -> None:
    swap = {"methods": [{"kind": "word_swap"}]}
    with pytest.raises(UserError, match="word_swap: a sequence has items and no text"):
        make_learner("next_item", {"settings": {"augmentation": swap}})
    crop = {"augmentation": {"methods": [{"kind": "crop"}]}}
    with pytest.raises(UserError, match="augmentation"):
        make_learner("next_item", {"learner": "item_knn", "settings": crop})
    timed = Sequences(PIECES.items, PIECES.offsets, PIECES.moment, np.arange(24.0))
    learner = make_sequence_learner("sequence_transformer", {**TINY, **crop})
    with pytest.raises(UserError, match="no times between their items"):
        learner.fit(timed, SequenceContext(20))
    quiet = make_sequence_learner("sequence_transformer", {**TINY, **crop, "time_gaps": False})
    assert quiet.fit(timed, SequenceContext(20)).augmented["crop"] > 0
