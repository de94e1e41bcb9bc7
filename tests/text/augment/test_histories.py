"""Crop, mask, reorder, substitute, insert: over all histories at once, each as if it were alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import UserError
from raysys.retrieval.covisitation import CoVisitation
from raysys.text.augment import Augmentation, HistoryCopies, augment_histories
from raysys.text.augment.histories import UNKNOWN

HISTORIES = st.lists(st.lists(st.integers(0, 30), max_size=12, unique=True), max_size=8)
KINDS = ("crop", "mask", "reorder", "substitute", "insert")


def near(n_items: int = 31, k: int = 3) -> CoVisitation:
    """Item i is near i + 1 and i + 2; the last two thirds have no neighbours."""
    neighbours = np.full((n_items, k), -1, np.int32)
    for item in range(n_items // 3):
        neighbours[item, :2] = item + 1, item + 2
    return CoVisitation(neighbours, (neighbours >= 0).astype(np.float32))


def copies_of(
    histories: list[list[int]], *methods: dict[str, Any], ids: np.ndarray | None = None, **more: Any
) -> HistoryCopies:
    arrays = [np.array(items, np.int32) for items in histories]
    ids = np.arange(len(arrays)) if ids is None else ids
    return augment_histories(arrays, ids, Augmentation(methods=methods, **more), near())


@settings(deadline=None)
@given(HISTORIES, st.floats(0.05, 0.95))
def test_crop_is_a_stretch(histories: list[list[int]], strength: float) -> None:
    found = copies_of(histories, {"kind": "crop", "strength": strength})
    assert found.row.tolist() == [at for at, items in enumerate(histories) if len(items) >= 2]
    for row, new in zip(found.row, found.history, strict=True):
        old, size = histories[row], max(1, int(np.floor(strength * len(histories[row]) + 1e-9)))
        assert len(new) == size and new.dtype == np.int32
        assert any(old[a : a + size] == new.tolist() for a in range(len(old) - size + 1))


@settings(deadline=None)
@given(HISTORIES, st.floats(0.05, 0.95))
def test_mask_hides_some_and_leaves_one(histories: list[list[int]], strength: float) -> None:
    found = copies_of(histories, {"kind": "mask", "strength": strength})
    for row, new in zip(found.row, found.history, strict=True):
        old = np.array(histories[row])
        hidden = new == UNKNOWN
        assert hidden.sum() == min(max(1, round(strength * len(old))), len(old) - 1)
        np.testing.assert_array_equal(new[~hidden], old[~hidden])


@settings(deadline=None)
@given(HISTORIES, st.floats(0.05, 1.0))
def test_reorder_shuffles_one_stretch(histories: list[list[int]], strength: float) -> None:
    found = copies_of(histories, {"kind": "reorder", "strength": strength})
    for row, new in zip(found.row, found.history, strict=True):
        old = histories[row]
        assert Counter(old) == Counter(new.tolist())
        moved = np.flatnonzero(new != np.array(old))
        size = min(len(old), max(2, int(np.floor(strength * len(old) + 1e-9))))
        assert 2 <= moved[-1] - moved[0] + 1 <= size


@settings(deadline=None)
@given(HISTORIES, st.floats(0.05, 1.0))
def test_substitute_and_insert_take_neighbours(histories: list[list[int]], strength: float) -> None:
    known = near().neighbours
    for kind in ("substitute", "insert"):
        found = copies_of(histories, {"kind": kind, "strength": strength})
        able = [sum(known[item, 0] >= 0 for item in items) for items in histories]
        assert found.row.tolist() == [
            at for at, items in enumerate(histories) if len(items) >= 2 and able[at]
        ]
        for row, new in zip(found.row, found.history, strict=True):
            old = histories[row]
            changed = max(1, round(strength * able[row]))
            if kind == "substitute":
                at = np.flatnonzero(new != np.array(old))
                assert len(at) == changed
                assert all(new[i] in known[old[i]][known[old[i]] >= 0] for i in at)
            else:
                assert len(new) == len(old) + changed
                rest = iter(new.tolist())
                assert all(item in rest for item in old)  # the old ones, in their order
                fresh = Counter(new.tolist()) - Counter(old)
                assert set(fresh) <= set(known[old].ravel().tolist()) - {-1}


def test_every_place_comes_up() -> None:
    n = 3000
    histories = [list(range(5))] * n
    cropped = copies_of(histories, {"kind": "crop", "strength": 0.6})
    starts = np.bincount([items[0] for items in cropped.history], minlength=3) / n
    np.testing.assert_allclose(starts, 1 / 3, atol=0.035)
    masked = copies_of(histories, {"kind": "mask", "strength": 0.2})
    hidden = np.mean([items == UNKNOWN for items in masked.history], axis=0)
    np.testing.assert_allclose(hidden, 1 / 5, atol=0.03)
    shuffled = copies_of(histories, {"kind": "reorder", "strength": 0.6})
    orders = Counter(tuple(items.tolist()) for items in shuffled.history)
    assert (
        len(orders) == 13
    )  # 3 stretches × 5 orders that differ; two of them come of two stretches
    # a stretch of three comes out as it was once in six times, and is left out then
    assert len(shuffled) / n == pytest.approx(5 / 6, abs=0.03)


@pytest.mark.long
@settings(deadline=None)
@given(HISTORIES, st.randoms(use_true_random=False), st.integers(0, 5))
def test_neither_order_nor_chunks_matter(
    histories: list[list[int]], random: Any, seed: int
) -> None:
    methods = [{"kind": kind, "probability": 0.7} for kind in KINDS]
    ids = 1000 + 7 * np.arange(len(histories))
    whole = copies_of(histories, *methods, ids=ids, copies=2, seed=seed)
    expected = sorted(
        (int(ids[row]), name, tuple(items.tolist()))
        for row, name, items in zip(whole.row, whole.augmented, whole.history, strict=True)
    )
    order = list(range(len(histories)))
    random.shuffle(order)
    cut = len(order) // 2
    found = []
    for part in (order[:cut], order[cut:]):
        some = copies_of([histories[i] for i in part], *methods, ids=ids[part], copies=2, seed=seed)
        assert some.row.tolist() == sorted(some.row)
        found += [
            (int(ids[part][row]), name, tuple(items.tolist()))
            for row, name, items in zip(some.row, some.augmented, some.history, strict=True)
        ]
    assert sorted(found) == expected


def test_probability_copies_and_what_is_missing() -> None:
    histories = [list(range(6))] * 2000
    found = copies_of(histories, {"kind": "crop", "probability": 0.25}, copies=2)
    assert len(found) / 4000 == pytest.approx(0.25, abs=0.025)
    assert not len(copies_of(histories)) and not len(copies_of([], {"kind": "crop"}))
    assert not len(copies_of(histories, {"kind": "word_swap"}))  # of texts, not of histories
    with pytest.raises(UserError, match="bought together"):
        augment_histories([np.array([1, 2], np.int32)], np.arange(1),
                          Augmentation(methods=({"kind": "insert"},)))  # fmt: skip
