"""The ensemble of full rankings: candidates, ranks, and which method wins where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks._autogluon_next_item import joined
from raysys.ensemble.next_item import (
    PlainFacts,
    StackSettings,
    collect,
    fit_next_item,
    log_shares,
    target_ranks,
)
from raysys.learners.full_ranking import NOWHERE
from raysys.learners.sequence_protocol import SequenceModel, Sequences

N_ITEMS = 60


class Noisy(SequenceModel):
    """Knows the target (the item behind the last one) up to noise of its own."""

    n_items = N_ITEMS

    def __init__(self, seed: int, noise: float, scale: str = "share") -> None:
        self.seed, self.noise, self.scale = seed, noise, scale  # type: ignore[misc]

    def score(self, prefixes: Sequences) -> np.ndarray:
        rows = [self._row(prefixes[i]) for i in range(len(prefixes))]
        logits = np.array(rows, dtype=np.float32).reshape(len(prefixes), N_ITEMS)
        return logits if self.scale == "log" else np.exp(logits)

    def _row(self, prefix: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng([self.seed, *prefix.tolist()])
        row = rng.standard_normal(N_ITEMS) * self.noise
        row[(prefix[-1] + 1) % N_ITEMS] += 3
        return row

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path) -> SequenceModel:
        raise NotImplementedError


@pytest.fixture(scope="module")
def asked() -> tuple[Sequences, np.ndarray]:
    rng = np.random.default_rng(0)
    lists = rng.integers(0, N_ITEMS, (300, 3)).tolist()
    return Sequences.of(lists), np.array([(x[-1] + 1) % N_ITEMS for x in lists], dtype=np.int32)


@pytest.fixture(scope="module")
def facts() -> PlainFacts:
    level = np.zeros(N_ITEMS, dtype=np.float32)
    return PlainFacts(level, level)


MODELS = {"good": Noisy(1, 1.2), "other": Noisy(2, 1.2, "log"), "noise": Noisy(3, 50.0, "log")}


def worth(ranks: np.ndarray) -> np.ndarray:
    return np.where(ranks <= 20, 1.0 / ranks, 0.0)


def test_candidates_are_everybodys_first_places(asked, facts) -> None:  # type: ignore[no-untyped-def]
    prefixes, targets = asked
    few = prefixes.take(np.arange(20))
    found, alone = collect(MODELS, few, facts, targets[:20], top=5)
    for i in range(20):
        items = found.item[found.offsets[i] : found.offsets[i + 1]]
        expected = set()
        for name, model in MODELS.items():
            row = model.score(few.take(np.array([i])))[0]
            order = np.argsort(-row, kind="stable")
            expected |= set(order[:5].tolist())
            assert alone[name][i] == order.tolist().index(targets[i]) + 1
        assert set(items.tolist()) == expected
        assert (items[found.label[found.offsets[i] : found.offsets[i + 1]] > 0] == targets[i]).all()
    where = found.item == np.repeat(targets[:20], np.diff(found.offsets))
    np.testing.assert_array_equal(found.label > 0, where)


def test_two_that_err_apart_beat_either(asked, facts) -> None:  # type: ignore[no-untyped-def]
    prefixes, targets = asked
    candidates, alone = collect(MODELS, prefixes, facts, targets, top=10)
    fitted, judged = np.arange(200), np.arange(200, 300)
    ensemble = fit_next_item(
        tuple(MODELS), candidates.take(fitted), fitted, worth, StackSettings(trees=20)
    )
    later = candidates.take(judged)
    value = worth(target_ranks(ensemble.score(later), later)).mean()
    best = max(worth(alone[name][judged]).mean() for name in MODELS)
    assert value > best + 0.02
    weights = dict(zip(MODELS, ensemble.weights, strict=True))
    assert weights["noise"] < 0.2 * min(weights["good"], weights["other"])
    assert set(ensemble.figures) == {"single", "average", "listwise", "trees"}


def test_unknown_targets_are_missed(asked, facts) -> None:  # type: ignore[no-untyped-def]
    prefixes, targets = asked
    unknown = np.where(np.arange(len(targets)) % 2 == 0, -1, targets).astype(np.int32)
    candidates, alone = collect(MODELS, prefixes, facts, unknown, top=10)
    assert (alone["good"][::2] == NOWHERE).all() and (alone["good"][1::2] <= N_ITEMS).all()
    ranks = target_ranks(candidates.shares[0], candidates)
    assert (ranks[::2] == NOWHERE).all()


def test_trees_stop_by_other_cases_than_they_are_judged_by(asked, facts, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    import lightgbm

    prefixes, targets = asked
    candidates, _ = collect(MODELS, prefixes, facts, targets, top=10)
    fit, stopped_by = lightgbm.train, []

    def spied(parameters, train, n, valid_sets, callbacks):  # type: ignore[no-untyped-def]
        stopped_by.extend(len(each.group) for each in valid_sets)
        return fit(parameters, train, n, valid_sets=valid_sets, callbacks=callbacks)

    monkeypatch.setattr(lightgbm, "train", spied)
    judged = []

    def quality(ranks: np.ndarray) -> np.ndarray:
        judged.append(len(ranks))
        return worth(ranks)

    group = np.arange(len(targets))
    fit_next_item(tuple(MODELS), candidates, group, quality, StackSettings(trees=20))
    assert judged == [150] * 8  # four methods, two halves
    assert len(stopped_by) == 2 and all(10 < n < 50 for n in stopped_by)  # a fifth of the other


def test_without_any_hit_everybody_counts_alike(asked, facts) -> None:  # type: ignore[no-untyped-def]
    prefixes, targets = asked
    nothing = np.full(len(targets), -1, dtype=np.int32)
    candidates, _ = collect(MODELS, prefixes, facts, nothing, top=3)
    ensemble = fit_next_item(
        tuple(MODELS), candidates, np.arange(len(targets)), worth, StackSettings()
    )
    np.testing.assert_allclose(ensemble.weights, 1 / 3)
    assert ensemble.method == "average"


def test_the_best_alone_competes(asked, facts) -> None:  # type: ignore[no-untyped-def]
    """Few cases and many useless members: whatever is added to the one that knows is noise."""
    prefixes, targets = asked
    few = np.arange(40)
    useless = {f"noise {i}": Noisy(10 + i, 50.0, "log") for i in range(8)}
    models = {"good": MODELS["good"], **useless}
    found, alone = collect(models, prefixes.take(few), facts, targets[few], top=20)
    ensemble = fit_next_item(tuple(models), found, few, worth, StackSettings(k=20))
    assert ensemble.figures["single"] == pytest.approx(worth(alone["good"]).mean())
    assert ensemble.figures[ensemble.method] == max(ensemble.figures.values())
    rest = np.arange(40, 300)
    later, told = collect(models, prefixes.take(rest), facts, targets[rest], top=20)
    reached = worth(target_ranks(ensemble.score(later), later)).mean()
    assert reached > worth(told["good"]).mean() - 0.01


def test_parts_joined_are_the_whole(asked, facts) -> None:  # type: ignore[no-untyped-def]
    prefixes, targets = asked
    whole, _ = collect(MODELS, prefixes.take(np.arange(30)), facts, targets[:30], top=5)
    parts = [whole.take(np.arange(a, b)) for a, b in ((0, 12), (12, 13), (13, 30))]
    for name, value in vars(joined(parts)).items():
        np.testing.assert_array_equal(value, getattr(whole, name), err_msg=name)


def test_repeats_are_facts(facts: PlainFacts) -> None:
    told = facts.of(np.array([4, 7, 4, 9], dtype=np.int32), np.array([4, 9, 5], dtype=np.int32))
    np.testing.assert_array_equal(told[:, 3], [2, 1, 0])  # steps from the end
    np.testing.assert_array_equal(told[:, 4], [2, 1, 0])
    np.testing.assert_array_equal(facts.of(np.array([], np.int32), np.array([1], np.int32)), 0)


def test_shares_are_logarithms_of_parts() -> None:
    scores = np.array([1.0, 2.0, 5.0], dtype=np.float32)
    as_log = log_shares(scores, scores, scores.sum(), "log")
    np.testing.assert_allclose(np.exp(as_log), np.exp(scores) / np.exp(scores).sum(), rtol=1e-5)
    as_share = log_shares(scores, scores, scores.sum(), "share")
    np.testing.assert_allclose(np.exp(as_share), scores / 8, rtol=1e-4)
    assert np.isfinite(log_shares(scores * 0, scores * 0, np.float32(0), "share")).all()
